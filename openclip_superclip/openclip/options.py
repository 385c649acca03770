"""The parsed command line of a training, read once; the checks take this object instead of OpenCLIP's args."""

import functools
import os
from argparse import Namespace

from ..checkpoints.resume import Resumed
from ..data.tables import Columns
from ..data.training_data import DataOptions
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

    @functools.cached_property
    def data(self) -> DataOptions:
        options = self.options
        image, caption, json = (getattr(options, name, None) for name in ("image_key", "text_key", "json_text_key"))
        caption, naflex = caption or "txt", getattr(options, "use_naflex", False)
        if image not in (None, "jpg;png;jpeg;webp") or json or ";" in caption:
            caption = ""  # OpenCLIP 4 reads other images, several captions or JSON
        return DataOptions(
            train_data=options.train_data,
            val_data=options.val_data,
            dataset_type=options.dataset_type,
            columns=Columns(options.csv_separator, options.csv_img_key, options.csv_caption_key),
            num_samples=options.train_num_samples,
            batch_size=options.batch_size,
            accum_freq=1 if naflex else options.accum_freq,  # NaFlex has batches of various sizes
            counts_tokens=naflex and options.naflex_num_train_image_tokens is not None,
            workers=options.workers,
            resampled=options.dataset_resampled,
            caption=caption,
            slices=self.data_config.slices,
            config=self.config,
            rank=launched_rank(),
            world_size=launched_size(),
        )

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
        return self.config.captions == "dual" or self.data.has_empty_captions

    @functools.cached_property
    def tokenizer(self):
        from open_clip import get_tokenizer

        options = self.options
        return get_tokenizer(options.model, cache_dir=options.cache_dir, context_length=options.force_context_length)


def launched_rank() -> int:
    """Returns the rank of this process, from the variables of horovodrun, torchrun, srun or mpirun."""
    return int(os.environ.get("HOROVOD_RANK", _world()[1]))


def launched_size() -> int:
    """Returns the number of ranks, from the same variables."""
    return int(os.environ.get("HOROVOD_SIZE", _world()[2]))


def _world() -> tuple[int, int, int]:
    from open_clip_train.distributed import world_info_from_env

    return world_info_from_env()
