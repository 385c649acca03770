"""The parsed command line of a training, read once; the checks take this object instead of
OpenCLIP's args."""

import functools
import os
import sys
from argparse import Namespace
from pathlib import Path

from ..checkpoints.resume import Resumed
from ..data.table_split import split_table
from ..data.tables import Columns, check_table, detect_columns, has_empty_captions, is_table
from ..data.tar_shards import is_remote
from ..errors import InputError
from ..flags import Config, DataConfig, config_from, data_config_from


class Training:
    """A training as OpenCLIP's parsed arguments describe it."""

    def __init__(self, args: Namespace):
        self.options = args
        self.config: Config | None = config_from(vars(args))  # None without --superclip
        self.data_config: DataConfig = data_config_from(vars(args))
        # without the model and the data
        self.only_options: bool = getattr(args, "only_options", False)
        self.resumed = Resumed(None)  # the checkpoint of --resume
        self.num_steps = 0  # of the run, as the check of the data has counted; 0 if unknown

    @property
    def is_ours(self) -> bool:
        """Whether a flag of ours is given; otherwise training is stock OpenCLIP's."""
        data = self.data_config
        return self.config is not None or data.slices is not None or data.val_fraction is not None

    @property
    def is_table(self) -> bool:
        return is_table(self.options.train_data, self.options.dataset_type)

    @property
    def decodes_images(self) -> bool:
        """Whether the checks decode images: on one rank, and not again in superclip run."""
        return launched()[0] == 0 and not getattr(self.options, "images_checked", False)

    @property
    def columns(self) -> Columns:
        return Columns(
            self.options.csv_separator, self.options.csv_img_key, self.options.csv_caption_key
        )

    def find_columns(self) -> None:
        """Sets OpenCLIP's options for the columns of a table that still have its defaults."""
        if (
            not (self.is_ours and self.is_table)
            or self.only_options
            or is_remote(self.options.train_data)
        ):
            return
        given = [
            None if value == default else value
            for value, default in zip(self.columns, Columns(), strict=True)
        ]
        columns = detect_columns(self.options.train_data, *given, "--train-data")
        if columns != self.columns and launched()[0] == 0:
            print(f"superclip: {self.options.train_data}: {columns.description}", file=sys.stderr)
        self.options.csv_separator, self.options.csv_img_key, self.options.csv_caption_key = columns

    def hold_out(self) -> None:
        """Splits the table of --train-data by --val-fraction, and sets OpenCLIP's options for
        both parts."""
        options, fraction = self.options, self.data_config.val_fraction
        if fraction is None:
            return
        split = split_table(
            options.train_data, self.columns, fraction, Path(options.logs), "--train-data", "--logs"
        )
        try:
            check_table(
                split.train,
                self.columns,
                self.config or Config(),
                options.batch_size,
                launched()[1],
                max_decoded=0,
                accum_freq=options.accum_freq,
            )
        except InputError:
            split.remove()
            raise
        options.train_data, options.val_data = split.train, split.val

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
        """Returns whether a model without a class head, student or teacher, loads weights with
        one."""
        from ..checkpoints.pretrained import starts_with_head

        options = self.options
        models = [(options.distill_model, options.distill_pretrained)]
        if self.config is None:
            models.append((options.model, options.pretrained))
        return any(starts_with_head(*model) for model in models)

    @property
    def has_logs(self) -> bool:
        logs = self.options.logs
        return bool(logs) and logs.lower() != "none"

    @property
    def records_words(self) -> bool:
        return self.config.word_course == "on" and self.has_logs

    @property
    def separates_words(self) -> bool:
        """Whether each loss has its own tokens: of another caption, or none for a missing
        caption."""
        return self.config.captions == "dual" or self.has_empty_captions

    @functools.cached_property
    def tokenizer(self):
        from ..checkpoints.model_files import open_tokenizer

        options = self.options
        return open_tokenizer(options.model, options.force_context_length, options.cache_dir)


def launched() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks by the variables of horovodrun,
    torchrun, srun or mpirun."""
    from open_clip_train.distributed import world_info_from_env

    _, rank, world_size = world_info_from_env()
    return int(os.environ.get("HOROVOD_RANK", rank)), int(
        os.environ.get("HOROVOD_SIZE", world_size)
    )
