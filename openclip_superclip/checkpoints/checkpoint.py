"""Checkpoints: the weights in a file or folder, memory-mapped, their checks, and how they are written."""

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError, reason
from ..files import NotWritten
from . import HEAD_NAME, RECORD_BESIDE, SHARDED, WEIGHTS_NAMES, is_sharded
from .run_outputs import latest_checkpoints

NUM_SHOWN = 3  # mismatches: enough to see what kind they are
NUM_CAPTIONS, DOCUMENT_FREQUENCY = "statistics.num_captions", "statistics.document_frequency"
MAX_CAPTIONS = 2**53  # more than any run can have seen; the sum of a thousand such counts is still an int64
HEAD_PREFIXES = ("class_head.", "statistics.")
OF_THE_AUTHORS = ("cap_fq", "text_decoder.ln_mlp.weight")
OPTIONS = "superclip_options"  # in a file of ours: the record of the run, as JSON or as an attribute
TRAINING_ONLY = "training_only_"  # prefix of what other plugins keep for a resume


def check_match(weights: dict[str, Tensor], expected: dict[str, Tensor], what: str, model: str) -> None:
    """Raises InputError, with the first mismatches, unless names, shapes and kinds of numbers are those of `model`."""
    mismatches = []
    for name in sorted(weights.keys() | expected.keys()):
        tensor, other = weights.get(name), expected.get(name)
        if tensor is None:
            mismatches.append(f"{name} is missing, expected {list(other.shape)}")
        elif other is None:
            mismatches.append(f"{name} is {list(tensor.shape)}, expected no such name")
        elif tensor.shape != other.shape:
            mismatches.append(f"{name} is {list(tensor.shape)}, expected {list(other.shape)}")
        elif tensor.is_floating_point() != other.is_floating_point():
            mismatches.append(f"{name} is {tensor.dtype}, expected {other.dtype}")
    if mismatches:
        more = [f"and {len(mismatches) - NUM_SHOWN:,} more"] * (len(mismatches) > NUM_SHOWN)
        raise InputError(f"{what} does not match {model}: {'; '.join([*mismatches[:NUM_SHOWN], *more])}")


def _check_kinds(weights: dict[str, Tensor], what: str) -> None:
    """Raises InputError, with the name, for a tensor of other than plain numbers: sparse, quantized, complex."""
    for name, tensor in weights.items():
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}".replace("torch.", "")
            raise InputError(f"{what}: {name} is {kind}; expected a dense tensor of real numbers")


def check_values(weights: dict[str, Tensor], what: str) -> None:
    """Raises InputError, with the name, for weights that are NaN or infinite and for counts that cannot be."""
    for name, tensor in weights.items():
        if not is_finite(tensor):
            wrong = int((~tensor.isfinite()).sum())
            raise InputError(
                f"{what}: {name} holds NaN or infinity ({wrong:,} of {tensor.numel():,} values): the run that wrote it "
                "has diverged; take an earlier checkpoint"
            )
    if NUM_CAPTIONS in weights and DOCUMENT_FREQUENCY in weights:
        _check_counts(weights[NUM_CAPTIONS], weights[DOCUMENT_FREQUENCY], what)


def is_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor contains neither NaN nor infinity, without copying it."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.element_size() == 1:  # torch has no minimum of float8
        tensor = tensor.float()
    return all(bound.isfinite() for bound in tensor.aminmax())  # one NaN makes the minimum NaN


def _check_counts(num_captions: Tensor, document_frequency: Tensor, what: str) -> None:
    if {num_captions.dtype, document_frequency.dtype} != {torch.int64} or num_captions.numel() != 1:
        raise InputError(
            f"{what}: {NUM_CAPTIONS} is {num_captions.dtype} {list(num_captions.shape)} and {DOCUMENT_FREQUENCY} "
            f"{document_frequency.dtype}; expected int64, the former one number"
        )
    total = num_captions.item()
    if not 0 <= total <= MAX_CAPTIONS:
        raise InputError(f"{what}: {NUM_CAPTIONS} is {total:,}; expected 0 to {MAX_CAPTIONS:,}")
    wrong = document_frequency[(document_frequency < 0) | (document_frequency > total)]
    if len(wrong):
        raise InputError(f"{what}: {DOCUMENT_FREQUENCY} contains {wrong[0]:,}; expected 0 to {total:,}, all captions")


def save_weights(weights: dict[str, Tensor], file: Path, options: dict | None = None) -> None:
    """Writes tensors to a file of safetensors or, by its suffix, of torch; OSError if the disk does not take them.

    Args:
        weights: by name.
        file: what is written.
        options: what is known of the run, under the names of its command line; `read_checkpoint` returns them.
    """
    options = dict(sorted((options or {}).items()))
    try:
        if file.suffix == ".safetensors":
            # One entry alone: safetensors writes several in random order. Only transformers looks for the format.
            metadata = {OPTIONS: json.dumps(options)} if options else {"format": "pt"}
            save_file(_apart(weights), file, metadata=metadata)
            file.chmod(file.parent.stat().st_mode & 0o666)  # safetensors makes it the owner's alone
        else:
            state = OrderedDict((name, _alone(tensor)) for name, tensor in _apart(weights).items())
            if options:  # an attribute, like torch's own metadata of a state dict
                setattr(state, OPTIONS, options)
            torch.save(state, file)
    except (SafetensorError, RuntimeError) as error:  # torch's for a full disk
        raise NotWritten(str(error)) from error


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tied weights as separate copies: safetensors allows one name for one memory."""
    seen, apart = set(), {}
    for name, tensor in weights.items():
        tied = tensor.data_ptr() in seen and tensor.numel() > 0
        apart[name] = tensor.clone() if tied else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return apart


def _alone(tensor: Tensor) -> Tensor:
    """Returns a tensor with memory of its own: torch writes all of what is behind one, which may be a mapped file."""
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


class Checkpoint(NamedTuple):
    """Weights under OpenCLIP's names and, in a checkpoint of the trainer, the epochs behind them."""

    path: Path
    weights: dict[str, Tensor]
    epoch: int | None = None
    of_ddp: bool = False  # its names begin with `module.`: the run's ranks were torch.distributed's
    of_tasks: bool = False  # OpenCLIP 4 wrote it, whose optimizer has other groups of parameters than OpenCLIP 3's
    head_beside: bool = False  # the class head comes from a file of its own, as an export keeps it
    options: dict = {}  # of the run, from the file itself  # noqa: RUF012

    def without_head(self) -> dict[str, Tensor]:
        """The weights that are OpenCLIP's."""
        return {name: tensor for name, tensor in self.weights.items() if not name.startswith(HEAD_PREFIXES)}

    def head(self) -> dict[str, Tensor]:
        """The class head and the token statistics; empty for a plain model."""
        return {name: tensor for name, tensor in self.weights.items() if name.startswith(HEAD_PREFIXES)}


def read_checkpoint(path: str | Path, of_authors: bool = False) -> Checkpoint:
    """Returns the content of a checkpoint; InputError, in one line, for a file that is not one.

    Takes what OpenCLIP takes: files of torch (the trainer's, with or without `module.`, or weights alone), safetensors,
    TorchScript archives, folders with one of them, and OpenCLIP 4's sharded checkpoints. The class head that an export
    keeps beside its weights is included. Files are memory-mapped, except shards. No pickle runs code.

    Args:
        path: a file or folder.
        of_authors: whether to accept a file of SuperCLIP's authors, as only `superclip import` does.
    """
    file = file_of_weights(Path(path))
    content, options = (_load_sharded(file.parent), {}) if is_sharded(Path(path)) else _load(file)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{file} is no checkpoint of a model: expected tensors under their names")
    weights = {}
    for name, tensor in state.items():
        plain = name.replace("_orig_mod.", "").removeprefix("module.")
        if plain in weights:
            raise InputError(f"{file} contains {plain} twice, with and without a prefix: expected it once")
        if not plain.startswith(TRAINING_ONLY):
            weights[plain] = tensor
    _check_kinds(weights, str(file))
    if not of_authors and any(name in weights for name in OF_THE_AUTHORS):
        raise InputError(
            f"{path} is a checkpoint of SuperCLIP's authors: superclip import {path} --model MODEL --out FOLDER makes "
            "it a folder to use instead"
        )
    beside = file.with_name(HEAD_NAME)
    exported = Path(path).is_dir() or file.name in WEIGHTS_NAMES.values()
    head_beside = exported and beside.is_file() and not holds_head(weights)
    if head_beside:
        head, options = read_head(beside)
        weights |= head
    of_ddp = all(name.startswith("module.") for name in state)
    of_trainer = content is not state
    epoch = content.get("epoch") if of_trainer else None
    of_tasks = of_trainer and "global_step" in content
    return Checkpoint(Path(path), weights, epoch, of_ddp, of_tasks, head_beside, options)


def holds_numbers(path: Path) -> bool:
    """Returns whether a checkpoint can be read and no weight in it is NaN or infinite."""
    try:
        return all(map(is_finite, read_checkpoint(path).weights.values()))
    except InputError:
        return False


def holds_head(names: Iterable[str]) -> bool:
    """Returns whether weights of these names include a class head."""
    return any(name.startswith(HEAD_PREFIXES) for name in names)


def read_head(file: Path) -> tuple[dict[str, Tensor], dict]:
    """Returns the class head and counts that an export keeps in a file of their own, and the run's options there."""
    head, options = _load(file)
    if not all(name.startswith(HEAD_PREFIXES) for name in head):
        raise InputError(f"{file} holds more than a class head; export the checkpoint again, with --with-head")
    _check_kinds(head, str(file))
    return head, options


def _load_sharded(folder: Path) -> dict:
    """Returns the weights in a sharded checkpoint and its run's record, as `torch.load` returns both from a file."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

    try:
        with (folder / SHARDED).open("rb") as file:
            metadata = _SafeMetadata(file).load()
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        content = torch.load(folder / RECORD_BESIDE, weights_only=True)
        tensors = {
            name: torch.empty(tensor.size, dtype=tensor.properties.dtype)
            for name, tensor in metadata.state_dict_metadata.items()
            if name.startswith("model.") and isinstance(tensor, TensorStorageMetadata)
        }
        reader = dcp.FileSystemReader(folder)
        reader.read_metadata = lambda *_, **__: metadata
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it loads in one process
            dcp.load(tensors, storage_reader=reader)
    except Exception as error:  # what is corrupt raises anything
        raise InputError(f"{folder} cannot be read as a sharded checkpoint: {_problem(error)}") from error
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    for name in ("logit_scale", "logit_bias"):  # FSDP makes a vector of a number; elsewhere it is a number
        if name in weights and weights[name].shape == (1,):
            weights[name] = weights[name].squeeze(0)
    return {**content, "state_dict": weights}


class _SafeMetadata(pickle.Unpickler):
    """Unpickles a sharded checkpoint's description of its tensors, and nothing else."""

    NAMES = (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo", "_StoragePrefix",
    )  # fmt: skip

    def find_class(self, module, name):
        known = module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
        allowed = (known and name in self.NAMES) or (module, name) in (
            ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"),
            ("pathlib._local", "PosixPath"),
        )  # fmt: skip
        if allowed or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def is_torchscript(path: str | Path) -> bool:
    """Returns whether a file is a TorchScript archive, as OpenAI's released models are."""
    if not zipfile.is_zipfile(path):
        return False
    try:  # the test of torch.load: Python never unpickles such an archive
        return "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        return False


def file_of_weights(path: Path) -> Path:
    """Returns the file of the weights, in a folder the one that OpenCLIP chooses; InputError if there is none.

    For a sharded checkpoint it is the description of its tensors.
    """
    if is_sharded(path):
        return path / SHARDED
    if path.is_dir():
        from open_clip.factory import _find_checkpoint_in_dir  # OpenCLIP's own choice among the files of a folder

        found = _find_checkpoint_in_dir(path)
        if found is None:
            last = next(iter(latest_checkpoints(path / "checkpoints")), None)
            expected = f"a run's checkpoint, {last}" if last else "open_clip_model.safetensors or the like"
            raise InputError(f"{path} holds no weights: expected {expected}")
        return Path(found)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return path


def _load(file: Path) -> tuple[object, dict]:
    """Returns the content of a file, and the run's options that it records."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                options = json.loads((opened.metadata() or {}).get(OPTIONS, "{}"))
            content = load_file(file)
        elif is_torchscript(file):
            state = torch.jit.load(file, map_location="cpu").state_dict()
            numbers = ("input_resolution", "context_length", "vocab_size")
            content, options = {name: tensor for name, tensor in state.items() if name not in numbers}, {}
        else:
            mapped = zipfile.is_zipfile(file)  # torch's format of before 1.6 cannot be
            content = torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
            options = getattr(content, OPTIONS, {})
    except Exception as error:  # a corrupt pickle raises anything
        raise InputError(f"{file} cannot be read: {_problem(error)}") from error
    if not isinstance(options, dict):
        raise InputError(f"{file} cannot be read: it is corrupt (its {OPTIONS} are no options)")
    return content, options


def _problem(error: Exception) -> str:
    unsafe = re.search(r"GLOBAL (\S+)", reason(error))
    if isinstance(error, pickle.UnpicklingError):
        what = f"is a pickle that asks for {unsafe[1]}" if unsafe else "holds no weights as torch saves them"
        return f"it {what}, and nothing but weights is ever loaded"
    return f"it is truncated, corrupt, or no checkpoint ({reason(error)[:100]})"


def save_files(tokenizer, folder: Path) -> None:
    """Writes a tokenizer or processor of transformers'; OSError if the disk does not take it."""
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise NotWritten(str(error)) from error  # the tokenizers' library says no more than this
