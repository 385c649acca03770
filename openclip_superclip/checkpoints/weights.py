"""Reads, checks and writes the weights of checkpoints."""

import json
import pickle
import re
import shlex
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError, listed, reason
from ..method.finite_weights import is_finite
from ..method.head import (
    DOCUMENT_FREQUENCY,
    FIXED_IDF,
    NUM_CAPTIONS,
    head_of,
    is_of_authors,
)
from ..method.idf import FixedIDF
from ..method.parameter_groups import HEAD_GROUP
from . import HEAD_NAME, WEIGHTS_NAMES
from .trainer_files import (
    idf_file,
    is_damaged,
    is_whole,
    options_of_run,
    own_checkpoints,
    usable_options,
)

# more than any run can see; the sum of a thousand such counts still fits in int64
MAX_CAPTIONS = 2**53
# the options of the run in files of this package: JSON metadata or an attribute
OPTIONS = "superclip_options"
Weights = dict[str, Tensor]  # by name
# Prefixes of tensors to ignore: what plugins store only to resume training, and a constant that
# OpenCLIP ignores, too.
IGNORED = ("training_only_", "text.transformer.embeddings.position_ids")


def check_match(weights: Weights, expected: Weights, what: object, model: object) -> None:
    """Raises InputError with the first mismatches of names, shapes and number types, if there
    are any."""
    mismatches = []
    for name in sorted(weights.keys() | expected.keys()):
        actual = list(weights[name].shape) if name in weights else "missing"
        wanted = list(expected[name].shape) if name in expected else "no such name"
        if actual == wanted:
            actual, wanted = (tensors[name].dtype for tensors in (weights, expected))
            if actual.is_floating_point == wanted.is_floating_point:
                continue
        mismatches.append(f"{name} is {actual}, expected {wanted}")
    if mismatches:
        raise InputError(f"{what} does not match {model}: {listed(mismatches, 3, '; ')}")


def check_values(weights: Weights, what: object) -> None:
    """Raises InputError for non-finite weights, tensors of other kinds than plain ones, and
    impossible counts."""
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
            raise InputError(
                f"{what}: {name} has no values, or is sparse or quantized; expected a dense tensor "
                "of numbers"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise InputError(
                f"{what}: {name} is {list(tensor.shape)}, but has only "
                f"{tensor.untyped_storage().nbytes():,} bytes of values"
            )
        if not is_finite(tensor):
            raise InputError(
                f"{what}: {name} contains NaN or infinity: the run that wrote it has diverged; use "
                "an earlier checkpoint"
            )
    for document_frequency, num_captions in ((DOCUMENT_FREQUENCY, NUM_CAPTIONS), FIXED_IDF):
        if num_captions in weights and document_frequency in weights:
            _check_counts(num_captions, document_frequency, weights, what)


def _check_counts(total_name: str, counts_name: str, weights: Weights, what: object) -> None:
    num_captions = weights[total_name]
    document_frequency = weights[counts_name]
    if {num_captions.dtype, document_frequency.dtype} != {torch.int64} or num_captions.numel() != 1:
        raise InputError(f"{what}: {total_name} and {counts_name} are not counts; expected int64")
    total = num_captions.item()
    if not 0 <= total <= MAX_CAPTIONS:
        raise InputError(f"{what}: {total_name} is {total:,}; expected 0 to {MAX_CAPTIONS:,}")
    wrong = document_frequency[(document_frequency < 0) | (document_frequency > total)]
    if len(wrong):
        raise InputError(
            f"{what}: {counts_name} contains {wrong[0]:,}; expected 0 to {total:,}, all captions"
        )


def save_weights(weights: Weights, file: Path, options: dict | None = None) -> None:
    """Writes weights with safetensors or torch.save, depending on the suffix.

    `options` of the run, unless None, are stored in the file, from which `read_checkpoint` returns
    them.
    """
    if options is not None:
        options = dict(sorted(options.items()))
    if file.suffix == ".safetensors":
        # A single entry, because safetensors writes several in random order. Only transformers
        # reads "format".
        metadata = {"format": "pt"} if options is None else {OPTIONS: json.dumps(options)}
        save_file(_untied(weights), file, metadata=metadata)
        # safetensors makes it readable for the owner only
        file.chmod(file.parent.stat().st_mode & 0o666)
    else:
        state = OrderedDict(_untied(weights))
        if options is not None:  # an attribute, like the _metadata of torch's state dicts
            setattr(state, OPTIONS, options)
        torch.save(state, file)


def _untied(weights: Weights) -> Weights:
    """Returns copies of tied weights, because safetensors rejects shared memory, and of parts of
    storages, such as a memory-mapped file: torch.save writes whole ones."""
    seen = set()
    untied = {}
    for name, tensor in weights.items():
        is_tied = tensor.data_ptr() in seen and tensor.numel() > 0
        is_part = tensor.untyped_storage().nbytes() > tensor.nbytes
        if is_tied or is_part:
            untied[name] = tensor.clone(memory_format=torch.contiguous_format)
        else:
            untied[name] = tensor.contiguous()
        seen.add(tensor.data_ptr())
    return untied


@dataclass(frozen=True)
class Checkpoint:
    """Weights under OpenCLIP's names, and facts about the file."""

    path: Path
    weights: Weights
    epoch: int | None = None  # completed epochs; None if the file is not one of the trainer
    of_ddp: bool = False  # its names begin with `module.`: the run used torch.distributed
    # written by OpenCLIP 4, with other parameter groups of the optimizer than OpenCLIP 3
    of_tasks: bool = False
    # unless it has the trainer's entries, but an epoch or optimizer that training cannot continue
    can_resume: bool = True
    # `lr_scale` of the optimizer's groups of the class head, if it has such groups
    head_lr_scale: float | None = None
    # options of the run by attribute name of the parsed command line, from the file itself or else
    # from the run's folder; {} if they are unknown
    options: dict = field(default_factory=dict)

    def without_head(self) -> Weights:
        """Returns the weights of the OpenCLIP model."""
        head = self.head()
        return {name: tensor for name, tensor in self.weights.items() if name not in head}

    @property
    def has_head(self) -> bool:
        return bool(self.head())

    def head(self) -> Weights:
        """Returns the class head and the token statistics; empty for a plain model."""
        return head_of(self.weights)


def read_checkpoint(
    path: str | Path, *, of_authors: bool = False, checksums: bool = True
) -> Checkpoint:
    """Reads a checkpoint. Raises InputError if the file is not one.

    Supports the same files as OpenCLIP: torch files (of the trainer, with or without `module.`, or
    weights only), safetensors, and folders that contain one of these, but no TorchScript archives.
    Includes the class head that an export saves in a separate file. Files are memory-mapped. Never
    runs code from a pickle.

    `of_authors` accepts a checkpoint of the SuperCLIP authors' code, for `superclip export`.
    Without `checksums`, the content of torch's files is not verified, which reads them completely.
    """
    file = file_of_weights(Path(path))
    content, options = _load(file, checksums=checksums)
    state = _plain(content.get("state_dict", content)) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise InputError(f"{file} is not a model checkpoint: expected tensors by name")
    weights = {}
    for stored_name, tensor in state.items():
        name = stored_name.replace("_orig_mod.", "").removeprefix("module.")
        if not name.startswith(IGNORED):
            weights[name] = tensor
    for name in [name for name in weights if name.endswith(".running_var")]:
        # --lock-image-freeze-bn-stats leaves it out; torch sets it to 0
        weights.setdefault(name.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    for name in {"logit_scale", "logit_bias"} & weights.keys():  # OpenCLIP reads [1] as well as []
        weights[name] = weights[name].squeeze()
    if not of_authors and is_of_authors(weights):
        raise InputError(
            f"{path} is a checkpoint of SuperCLIP's authors: convert it with "
            f"superclip export {shlex.quote(str(path))} --model MODEL --with-head --out FOLDER"
        )
    beside = file.with_name(HEAD_NAME)
    exported = Path(path).is_dir() or file.name in WEIGHTS_NAMES
    if exported and beside.is_file() and not head_of(weights):
        head, options = read_head(beside)
        weights |= head
    return Checkpoint(
        Path(path),
        weights,
        epoch=content.get("epoch"),
        of_ddp=all(name.startswith("module.") for name in state),
        of_tasks="global_step" in content,
        can_resume="state_dict" not in content or _can_resume(content),
        head_lr_scale=_head_lr_scale(content),
        options=options or options_of_run(Path(path)),
    )


def _can_resume(content: dict) -> bool:
    """Returns whether training can continue with the entries of the trainer's checkpoint."""
    epoch = content.get("epoch")
    optimizer = content.get("optimizer")
    has_groups = isinstance(optimizer, dict) and isinstance(optimizer.get("param_groups"), list)
    return isinstance(epoch, int) and epoch >= 0 and has_groups


def _head_lr_scale(content: dict) -> float | None:
    if _can_resume(content):
        for group in content["optimizer"]["param_groups"]:
            if isinstance(group, dict) and group.get("group_name") == HEAD_GROUP:
                return group.get("lr_scale")
    return None


def fixed_idf(checkpoint: Checkpoint, tokenizer) -> Weights:
    """Returns the counts of --superclip-idf FILE that a class head was trained with, by name; {}
    without such a file.

    Checkpoints of version 0.2 do not contain the counts, which are then read from the file. Raises
    InputError if it is gone, or counts the tokens of another tokenizer.
    """
    counts = checkpoint.head()
    file = idf_file(checkpoint)
    if counts and file is not None and FIXED_IDF[0] not in counts:
        from ..data.frequencies import read_frequencies

        frequencies = read_frequencies(file)
        frequencies.check(tokenizer, f"--superclip-idf: {file}")
        is_counted = torch.ones_like(counts[DOCUMENT_FREQUENCY])
        of_file = frequencies.document_frequency, frequencies.num_captions
        counts = FixedIDF(*of_file, is_counted).state_dict(prefix="fixed_idf.")
    return {name: counts[name] for name in FIXED_IDF if name in counts}


def read_head(file: Path) -> tuple[Weights, dict]:
    """Returns the class head and token statistics in the separate file of an export, and the
    options in it."""
    head, options = _load(file)
    return head_of(head), options


def file_of_weights(path: Path) -> Path:
    """Returns the file that contains the weights: in a folder, the one that OpenCLIP selects."""
    if path.is_dir():
        from open_clip.constants import HF_CONFIG_NAME
        from open_clip.factory import _find_checkpoint_in_dir

        if (path / "config.json").is_file() and not (path / HF_CONFIG_NAME).is_file():
            raise InputError(f"{path} is for transformers; export without --format hf")
        found = _find_checkpoint_in_dir(path)
        if found is None:
            raise InputError(
                f"{path} contains no weights: expected open_clip_model.safetensors or the like, or "
                "a checkpoint of a run instead of its folder"
            )
        path = Path(found)
        if not path.is_file():
            raise InputError(f"{path} is not a regular file; expected weights")
        return path
    if not path.is_file():
        raise InputError(
            f"there is no file or folder {path}; expected a run, a checkpoint or an exported folder"
        )
    return path


def checkpoint_of(path: Path) -> Path:
    """Returns the newest complete checkpoint that the run of a folder has trained, and another path
    unchanged; epoch_latest.pt may be an older one."""
    if not (path / "checkpoints").is_dir():
        return path
    latest, *others = own_checkpoints(path / "checkpoints")
    newest = next((file for file in others if not is_damaged(file)), None)
    if not is_damaged(latest) and (newest is None or _epoch(latest) >= _epoch(newest)):
        return latest
    if newest is None:
        raise InputError(f"{path} is a run without a complete checkpoints/epoch_N.pt")
    return newest


def _epoch(file: Path) -> int:
    return read_checkpoint(file, checksums=False).epoch or 0


def _load(file: Path, *, checksums: bool = True) -> tuple[object, dict]:
    """Returns the content of a file, and the options of the run stored in it."""
    check_is_no_program(file)
    options = {}
    try:
        is_zip = zipfile.is_zipfile(file)
        if is_zip and _is_compressed(file):
            raise ValueError("its content is compressed, as torch never saves it")
        if checksums and is_zip and not is_whole(file):
            raise ValueError("its checksums are wrong")
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                options = json.loads((opened.metadata() or {}).get(OPTIONS, "{}"))
            content = load_file(file)
        else:  # the format before torch 1.6, no zip file, does not support mmap
            loaded = torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)
            options = getattr(loaded, OPTIONS, {})
            content = _plain(loaded)
    except Exception as error:  # corrupt files can raise anything
        raise InputError(f"{file} cannot be read: {_problem(error)}") from error
    return content, usable_options(options)


def _plain(content: object) -> object:
    """Returns a mapping as a dict: the attributes of torch's may hide its methods."""
    return dict(dict.items(content)) if isinstance(content, dict) else content


def _is_compressed(file: Path) -> bool:
    """Returns whether a zip file may unpack to much more than its size."""
    with zipfile.ZipFile(file) as archive:
        return any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist())


# OpenCLIP leaves out the entries of an archive that are not weights.
CONVERSION = (
    "import open_clip.factory, sys, torch; "
    "torch.save(open_clip.factory.load_state_dict(sys.argv[1], weights_only=False), sys.argv[2])"
)


def check_is_no_program(file: str | Path) -> None:
    """Raises InputError for a TorchScript archive, whose code torch runs when it opens it."""
    try:
        # the same test as in torch.load
        is_torchscript = "constants.pkl" in torch._C.PyTorchFileReader(str(file)).get_all_records()
    except (OSError, RuntimeError):  # of which the caller's loader gives the reason
        return
    if is_torchscript:
        raise InputError(
            f"{file} is a TorchScript archive, which is a program: if you trust it, run "
            f'python -c "{CONVERSION}" {shlex.quote(str(file))} weights.pt, and give weights.pt'
        )


def _problem(error: Exception) -> str:
    if not isinstance(error, pickle.UnpicklingError):
        return f"it is truncated, corrupt, or no checkpoint ({reason(error)[:100]})"
    problem = "contains no weights as torch saves them"
    if unsafe := re.search(r"GLOBAL (\S+)", reason(error)):
        problem = f"is a pickle that runs {unsafe[1]}"
    return f"it {problem}; only weights are ever loaded"
