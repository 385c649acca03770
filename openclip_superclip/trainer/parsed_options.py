"""The parsed command line of a training, read once: checks, the start and the hooks take this
object instead of OpenCLIP's args."""

import os
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.model_configurations import openclip_name
from ..checkpoints.resume import Resumed, read_resumed, resumed_checkpoint
from ..checkpoints.resume_record import NAME, Changes, changes, read_record, record_of
from ..data.data_check import NUM_LOOKED_FOR, DataCheck, check_data, check_table
from ..data.held_out import TRAIN, TableSplit, split_table
from ..data.slices import Split, batches_of_shards, batches_of_table
from ..data.tables import Columns, detect_columns, has_columns, kind
from ..data.tar_shards import IMAGES, is_remote
from ..errors import InputError
from ..flags import (
    Config,
    DataConfig,
    config_from,
    given_options,
    is_given,
    is_idf_file,
    options_of,
)

if TYPE_CHECKING:  # it imports torch
    from ..checkpoints.weights import Checkpoint


class Training:
    """A training as OpenCLIP's parsed arguments describe it.

    Files are read when something of them is first asked for, and once: a value that is wrong by
    itself is reported before OpenCLIP's models are imported. InputError for what cannot be read.
    """

    def __init__(self, args: Namespace):
        self.options = args
        self.config: Config | None = config_from(vars(args))  # None without --superclip
        self.data_config = DataConfig(**given_options(DataConfig, vars(args)))
        # without the model and the data
        self.only_options: bool = getattr(args, "only_options", False)
        # on a rank of `superclip run`: what its first node has found in the data
        self.in_run: dict | None = getattr(args, "in_run", None)
        has_data = args.train_data or args.dataset_type == "synthetic"
        self.kind = kind(args.train_data or "", args.dataset_type) if has_data else ""
        self.val_kind = kind(args.val_data, args.dataset_type) if args.val_data else ""
        self.given_columns = Columns(args.csv_separator, args.csv_img_key, args.csv_caption_key)

    @cached_property
    def rank(self) -> int:
        return launched()[0]

    @cached_property
    def world_size(self) -> int:
        return launched()[1]

    @property
    def is_ours(self) -> bool:
        """Whether a flag of ours is given; otherwise training is stock OpenCLIP's."""
        return is_given(vars(self.options))

    @property
    def reads_contents(self) -> bool:
        """Whether this process decodes images and reads the values of weights: one rank does, and
        not again in superclip run."""
        return self.rank == 0 and self.in_run is None

    @property
    def is_naflex(self) -> bool:
        """Whether batches have various sizes, with OpenCLIP 4's NaFlex."""
        return getattr(self.options, "use_naflex", False)

    @property
    def accum_freq(self) -> int:
        """The batches that every step needs."""
        return 1 if self.is_naflex else self.options.accum_freq

    @property
    def caption_member(self) -> str:
        """The extension of a caption in shards."""
        return getattr(self.options, "text_key", None) or "txt"  # of OpenCLIP 4

    @cached_property
    def columns(self) -> Columns:
        """The columns of the table of --train-data, or of --val-data alone: those that the options
        name, detected if they have OpenCLIP's defaults and the table does not have those."""
        given = self.given_columns
        flag, data, data_kind = "--train-data", self.options.train_data, self.kind
        if not data:
            flag, data, data_kind = "--val-data", self.options.val_data, self.val_kind
        is_known = self.only_options or self.in_run is not None
        if is_known or data_kind != "table" or is_remote(data):
            return given
        if has_columns(data, given, flag):
            return given
        chosen = [
            None if value == default else value
            for value, default in zip(given, Columns(), strict=True)
        ]
        return detect_columns(data, *chosen, flag)

    @cached_property
    def data(self) -> DataCheck:
        """What --train-data contains; on a rank of `superclip run`, what its record says."""
        data = self.options.train_data or ""
        return self._check(data, "--train-data", self.kind, self.config or Config())

    @cached_property
    def val_data(self) -> DataCheck:
        """What --val-data contains."""
        data = self.options.val_data or ""
        return self._check(data, "--val-data", self.val_kind, Config())

    def _check(self, data: str, flag: str, data_kind: str, config: Config) -> DataCheck:
        """Returns what data contain; nothing of URLs, of data that `superclip run` has checked, and
        of shards with other images, several captions or JSON, which OpenCLIP 4 reads."""
        if not data or self.in_run is not None:
            return DataCheck(data, flag, **(self.in_run or {}))
        images = getattr(self.options, "image_key", None)
        is_usual = images in (None, ";".join(IMAGES)) and ";" not in self.caption_member
        is_usual = is_usual and not getattr(self.options, "json_text_key", None)
        return check_data(
            data,
            flag,
            data_kind,
            self.columns,
            config,
            decodes=self.reads_contents,
            caption=self.caption_member,
            most=NUM_LOOKED_FOR,
            reads=is_usual and self.reads_contents,
        )

    @cached_property
    def table_split(self) -> TableSplit | None:
        """The parts of the table of --train-data, not written yet; None without --val-fraction."""
        fraction = self.data_config.val_fraction
        if fraction is None:
            return None
        return split_table(
            self.options.train_data,
            self.columns,
            fraction,
            Path(self.options.logs),
            "--train-data",
            "--logs",
            is_first=local_rank() == 0,
        )

    @cached_property
    def split(self) -> Split:
        """How the run splits its shards."""
        options = self.options
        return Split(
            self.data.num_shards,
            self.world_size,
            options.workers,
            self.data_config.slices or 1,
            options.train_num_samples,
            options.batch_size,
            flag="--train-data",
            slices_flag="--superclip-slices ",
        )

    @property
    def exceeds_slice(self) -> bool:
        """Whether --train-num-samples is more than a slice of the shards, if their number of
        samples is known."""
        total = self.data.total_samples
        return bool(total) and self.split.exceeds(total)

    @cached_property
    def trained_data(self) -> DataCheck:
        """What the part of --train-data contains that is trained on."""
        split = self.table_split
        if split is None:
            return self.data
        return check_table(
            split.train,
            self.columns,
            "--train-data",
            config=self.config or Config(),
            max_decoded=0,
            rows=[split.parts[TRAIN]] if split.parts else None,
        )

    @property
    def has_empty_captions(self) -> bool:
        """Whether the training data is a table in which captions are missing, which OpenCLIP reads
        as the word 'nan'."""
        return self.kind == "table" and self.trained_data.num_empty > 0

    @property
    def num_batches(self) -> int:
        """The batches of a rank in an epoch; 0 if they are unknown."""
        options = self.options
        if self.kind == "table":
            num_rows = self.trained_data.num_trained
            return batches_of_table(num_rows, options.batch_size, self.world_size)
        num_samples = options.train_num_samples or self.data.total_samples or 0
        return batches_of_shards(num_samples, options.batch_size, self.world_size, options.workers)

    @property
    def num_steps(self) -> int:
        """The steps of the run; 0 if they are unknown or have no schedule."""
        options = self.options
        has_steps = self.is_ours and self.kind in ("table", "shards")
        if not has_steps or self.is_naflex or options.skip_scheduler:
            return 0
        return self.num_batches // self.accum_freq * options.epochs

    @property
    def separates_words(self) -> bool:
        """Whether each loss has its own tokens: of another caption, or none for a missing
        caption."""
        return self.config.captions == "dual" or self.has_empty_captions

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

    @cached_property
    def checkpoint(self) -> "Checkpoint | None":
        """The checkpoint to resume from, without values; None if nothing is resumed, or OpenCLIP
        reports that it cannot be."""
        if self.resumed.file is None or (self.resumed.damaged and not self.is_ours):
            return None
        return read_resumed(
            self.resumed.file,
            has_head=self.config is not None,
            reads_values=self.reads_contents,
        )

    @cached_property
    def changes(self) -> Changes | None:
        """What has changed since the start of the run that is resumed; None unless it is in slices
        or was recorded, and if `superclip run` has compared it already."""
        if self.checkpoint is None or self.in_run is not None or not self.options.train_data:
            return None
        folder = self.resumed.run_folder
        if self.data_config.slices is None and not (folder / NAME).exists():
            return None
        return changes(read_record(folder), self.resume_record)

    @property
    def with_ddp(self) -> bool | None:
        """Whether names in OpenCLIP 3's checkpoints begin with `module.`; None for a single
        process, which resumes from both kinds."""
        from open_clip_train.distributed import is_using_distributed

        if getattr(self.options, "horovod", False):
            return False
        return is_using_distributed() or None

    @cached_property
    def model(self):
        """The Architecture of --model."""
        from ..checkpoints.architecture import trained_architecture

        options = self.options
        return trained_architecture(options.model, options.pretrained, "--model", options.cache_dir)

    @cached_property
    def changed_model(self):
        """The same after the changes that the options make."""
        return self.model.with_options(vars(self.options))

    @cached_property
    def plain_model(self):
        """OpenCLIP's model without a class head, on the meta device."""
        from ..checkpoints.starting_weights import plain_model

        return plain_model(self.changed_model, self.options)

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
        return self.changed_model.tokenizer(self.options.cache_dir)

    @cached_property
    def frequencies(self):
        """The Frequencies in the file of --superclip-idf; None without one."""
        if self.config is None or not is_idf_file(self.config.idf):
            return None
        from ..data.frequencies import read_frequencies

        return read_frequencies(self.config.idf)

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

    @cached_property
    def resume_record(self):
        """The ResumeRecord of a run that starts now."""
        from open_clip_train.params import get_default_params

        options = vars(self.options)
        defaults = get_default_params(self.options.model)
        missing = {name: value for name, value in defaults.items() if options[name] is None}
        return record_of(options | missing, self.world_size)


def read(args: Namespace) -> Training:
    """Returns the training that parsed arguments describe, and completes them: with OpenCLIP's name
    of the model and the defaults of the class loss."""
    training = Training(args)
    if training.is_ours:
        args.model = openclip_name(args.model)  # get_tokenizer does not accept ViT-B/16
    if training.config is not None:
        vars(args).update(options_of(training.config))  # OpenCLIP records them in params.txt
        if "muon" in args.opt.lower() and hasattr(args, "opt_fallback_list"):  # of OpenCLIP 4
            # the rows of the head's weight are words, and must not be orthogonalised
            names = args.opt_fallback_list or (args.opt_kwargs or {}).get("fallback_list") or []
            args.opt_fallback_list = [*names, "class_head.*"]
    return training


def local_rank() -> int:
    """Returns this process's rank among those of its machine."""
    from open_clip_train.distributed import world_info_from_env

    if launched()[1] == 1:
        return 0
    return int(os.environ.get("HOROVOD_LOCAL_RANK", world_info_from_env()[0]))


def launched() -> tuple[int, int]:
    """Returns this process's rank and the number of ranks by the variables of horovodrun,
    torchrun, srun or mpirun; InputError if they contradict each other."""
    from open_clip_train.distributed import world_info_from_env

    try:
        _, rank, world_size = world_info_from_env()
        rank = int(os.environ.get("HOROVOD_RANK", rank))
        world_size = int(os.environ.get("HOROVOD_SIZE", world_size))
        if world_size == 1:  # WORLD_SIZE=1 in a step of SLURM: each process trains alone
            return 0, 1
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}; expected 0 to {world_size - 1}")
        return rank, world_size
    except ValueError as error:
        raise InputError(f"the variables of torchrun, srun or mpirun: {error}") from error
