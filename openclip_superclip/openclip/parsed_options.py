"""The parsed command line of a training, read once; the checks take this object instead of
OpenCLIP's args."""

import os
from argparse import Namespace
from functools import cached_property

from ..checkpoints.resume import Resumed, resumed_checkpoint
from ..data.tables import Columns, is_table, read_table
from ..flags import Config, DataConfig, config_from, given_options


class Training:
    """A training as OpenCLIP's parsed arguments describe it."""

    def __init__(self, args: Namespace):
        self.options = args
        self.config: Config | None = config_from(vars(args))  # None without --superclip
        self.data_config = DataConfig(**given_options(DataConfig, vars(args)))
        # without the model and the data
        self.only_options: bool = getattr(args, "only_options", False)
        self.num_steps = 0  # of the run, once its data is checked; 0 if unknown

    @property
    def is_ours(self) -> bool:
        """Whether a flag of ours is given; otherwise training is stock OpenCLIP's."""
        data = self.data_config
        return self.config is not None or data.slices is not None or data.val_fraction is not None

    @property
    def is_table(self) -> bool:
        return is_table(self.options.train_data, self.options.dataset_type)

    @property
    def in_run(self) -> bool:
        """Whether this is a rank of `superclip run`, which has checked the data, and checks the
        weights of each epoch."""
        return getattr(self.options, "in_run", False)

    @property
    def decodes_images(self) -> bool:
        """Whether the checks decode images: on one rank, and not again in superclip run."""
        return launched()[0] == 0 and not self.in_run

    @property
    def is_naflex(self) -> bool:
        """Whether batches have various sizes, with OpenCLIP 4's NaFlex."""
        return getattr(self.options, "use_naflex", False)

    @property
    def accum_freq(self) -> int:
        """The batches that every step needs."""
        return 1 if self.is_naflex else self.options.accum_freq

    @property
    def columns(self) -> Columns:
        return Columns(
            self.options.csv_separator, self.options.csv_img_key, self.options.csv_caption_key
        )

    @cached_property
    def has_empty_captions(self) -> bool:
        """Whether the training data is a table in which captions are missing, which OpenCLIP reads
        as the word 'nan'; the check of the data sets it."""
        if not self.is_table:
            return False
        table = read_table(self.options.train_data, self.columns, Config(), "--train-data")
        return table.num_empty > 0

    def options_with_defaults(self) -> dict:
        """Returns OpenCLIP's options with its defaults of lr, betas and eps for the model."""
        from open_clip_train.params import get_default_params

        options = vars(self.options)
        defaults = get_default_params(self.options.model)
        missing = {name: value for name, value in defaults.items() if options[name] is None}
        return options | missing

    @cached_property
    def leaves_head_out(self) -> bool:
        """Whether a model without a class head, student or teacher, loads weights with one."""
        from ..checkpoints.starting_weights import starts_with_head

        options = self.options
        if self.only_options:
            return False
        models = [(options.distill_model, options.distill_pretrained)]
        if self.config is None:
            models.append((options.model, options.pretrained))
        return any(starts_with_head(*model) for model in models)

    @cached_property
    def resumed(self) -> Resumed:
        """The checkpoint of --resume, if it is known before OpenCLIP starts; InputError if there
        is none."""
        options = self.options
        is_unnamed = options.name is None or options.remote_sync is not None
        if options.resume == "latest" and is_unnamed:
            return Resumed(None)
        return resumed_checkpoint(
            options.resume,
            os.path.join(options.logs, options.name or ""),
            save_most_recent=options.save_most_recent,
            is_ours=self.is_ours,
        )

    @property
    def with_ddp(self) -> bool | None:
        """Whether names in OpenCLIP 3's checkpoints begin with `module.`; None for a single
        process, which resumes from both kinds."""
        from open_clip_train.distributed import is_using_distributed

        if getattr(self.options, "horovod", False):
            return False
        return is_using_distributed() or None

    @property
    def has_logs(self) -> bool:
        return (self.options.logs or "none").lower() != "none"

    @property
    def separates_words(self) -> bool:
        """Whether each loss has its own tokens: of another caption, or none for a missing
        caption."""
        return self.config.captions == "dual" or self.has_empty_captions

    @cached_property
    def model(self):
        """The Architecture of --model."""
        from ..checkpoints.architecture import trained_architecture

        options = self.options
        return trained_architecture(options.model, options.pretrained, "--model", options.cache_dir)

    @cached_property
    def teacher(self):
        """The Architecture of --distill-model."""
        from ..checkpoints.architecture import trained_architecture

        options = self.options
        return trained_architecture(
            options.distill_model, options.distill_pretrained, "--distill-model", options.cache_dir
        )

    @cached_property
    def tokenizer(self):
        options = self.options
        model = self.model.with_options({"force_context_length": options.force_context_length})
        return model.tokenizer(cache_dir=options.cache_dir)

    @cached_property
    def start_of_towers(self) -> str:
        """Where the towers' weights come from; InputError if OpenCLIP would ignore an option."""
        from ..checkpoints.starting_weights import start_of_towers

        options = self.options
        return start_of_towers(
            self.model,
            options.pretrained,
            options.cache_dir,
            pretrained_image=options.pretrained_image,
        )


def launched() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks by the variables of horovodrun,
    torchrun, srun or mpirun."""
    from open_clip_train.distributed import world_info_from_env

    _, rank, world_size = world_info_from_env()
    return int(os.environ.get("HOROVOD_RANK", rank)), int(
        os.environ.get("HOROVOD_SIZE", world_size)
    )
