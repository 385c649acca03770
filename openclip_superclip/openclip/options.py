"""The parsed command line of a training, read once; the checks take this object instead of OpenCLIP's args."""

import functools
import os
from argparse import Namespace

from ..checkpoints.resume import Resumed
from ..data.tables import Columns, has_empty_captions, is_table
from ..flags import Config, DataConfig, config_from, data_config_from


class Training:
    """A training as OpenCLIP's parsed arguments describe it."""

    def __init__(self, args: Namespace):
        self.options = args
        self.config: Config | None = config_from(vars(args))  # None without --superclip
        self.data_config: DataConfig = data_config_from(vars(args))
        self.only_options: bool = getattr(args, "only_options", False)  # without the model and the data
        self.resumed = Resumed(None)  # the checkpoint of --resume

    @property
    def is_ours(self) -> bool:
        """Whether a flag of ours is given; otherwise training is stock OpenCLIP's."""
        return self.config is not None or self.data_config.slices is not None

    @property
    def is_table(self) -> bool:
        return is_table(self.options.train_data, self.options.dataset_type)

    @property
    def decodes_images(self) -> bool:
        """Whether the checks decode images: on one rank, and not again in superclip run."""
        return launched()[0] == 0 and not getattr(self.options, "images_checked", False)

    @property
    def columns(self) -> Columns:
        return Columns(self.options.csv_separator, self.options.csv_img_key, self.options.csv_caption_key)

    @functools.cached_property
    def has_empty_captions(self) -> bool:
        """Whether the training data is a table in which captions are missing."""
        return self.is_table and has_empty_captions(self.options.train_data, self.columns)

    def options_with_defaults(self) -> dict:
        """Returns OpenCLIP's options with its defaults of lr, betas and eps for the model."""
        from open_clip_train.params import get_default_params

        given, defaults = vars(self.options), get_default_params(self.options.model)
        return given | {name: value for name, value in defaults.items() if given[name] is None}

    def leaves_head_out(self) -> bool:
        """Returns whether a model without a class head, student or teacher, loads weights with one."""
        from ..checkpoints.pretrained import starts_with_head

        options = self.options
        models = [(options.distill_model, options.distill_pretrained)]
        if self.config is None:
            models.append((options.model, options.pretrained))
        return any(starts_with_head(*model) for model in models)

    @property
    def records_words(self) -> bool:
        logs = self.options.logs
        return self.config.word_course == "on" and bool(logs) and logs.lower() != "none"

    @property
    def separates_words(self) -> bool:
        """Whether each loss has its own tokens: of another caption, or none for a missing caption."""
        return self.config.captions == "dual" or self.has_empty_captions

    @functools.cached_property
    def tokenizer(self):
        from ..checkpoints.model_files import open_tokenizer

        options = self.options
        return open_tokenizer(options.model, options.force_context_length, options.cache_dir)


def launched() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks by the variables of horovodrun, torchrun, srun or mpirun."""
    from open_clip_train.distributed import world_info_from_env

    _, rank, world_size = world_info_from_env()
    return int(os.environ.get("HOROVOD_RANK", rank)), int(os.environ.get("HOROVOD_SIZE", world_size))
