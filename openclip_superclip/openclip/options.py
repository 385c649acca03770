"""The options of a training command, read once; hooks and checks take this object instead of OpenCLIP's args."""

import functools
from argparse import Namespace

from ..checkpoints.resume import Resumed
from ..config import Config, DataConfig, config_from, data_config_from
from ..errors import InputError


class CommandLine:
    """A parsed command line of OpenCLIP's training, read once.

    Args:
        args: OpenCLIP's parsed arguments.
    """

    def __init__(self, args: Namespace):
        self.args = args
        self.config: Config | None = config_from(vars(args))  # None without --superclip
        self.data: DataConfig = data_config_from(vars(args))
        self.only_options: bool = getattr(args, "only_options", False)  # without the model and the data
        self.resumed = Resumed(None)  # the checkpoint of --resume

    @property
    def is_ours(self) -> bool:
        """Whether a flag of ours is given; otherwise training is stock OpenCLIP's."""
        return self.config is not None or self.data.slices is not None

    @functools.cached_property
    def leaves_head_out(self) -> bool:
        """Whether a model without a class head, student or teacher, loads weights with one."""
        from ..checkpoints.pretrained import starts_with_head

        args = self.args
        return (self.config is None and starts_with_head(args.model, args.pretrained)) or starts_with_head(
            args.distill_model, args.distill_pretrained
        )

    @property
    def records_words(self) -> bool:
        logs = self.args.logs
        return self.config.word_course == "on" and bool(logs) and logs.lower() != "none"

    @functools.cached_property
    def reads_table(self) -> bool:
        from ..data.tables import is_table

        return is_table(self.args.train_data, self.args.dataset_type)

    @property
    def columns(self):
        from ..data.tables import Columns

        return Columns(self.args.csv_separator, self.args.csv_img_key, self.args.csv_caption_key)

    @functools.cached_property
    def separates_words(self) -> bool:
        """Whether each loss has its own tokens: of another caption, or none for a missing caption."""
        from ..data.tables import has_empty_captions

        if self.config.captions == "dual" or not self.args.train_data or not self.reads_table:
            return self.config.captions == "dual"
        found = has_empty_captions(self.args.train_data, self.columns)
        if found and self.args.distill_model is not None:
            raise InputError(
                f"--train-data: {self.args.train_data} has rows without a caption, which --superclip cannot train with "
                "--distill-model: remove these rows, as superclip shards does"
            )
        return found

    @functools.cached_property
    def tokenizer(self):
        from open_clip import get_tokenizer

        args = self.args
        return get_tokenizer(args.model, cache_dir=args.cache_dir, context_length=args.force_context_length)
