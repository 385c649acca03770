"""Models without weights, to count FLOPs and the memory of a training step."""

import weakref
from types import MappingProxyType

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.utils import to_2tuple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from .model import with_class_head

ATTENTION = ("bmm", "baddbmm", "_scaled_dot_product")  # products of activations with activations


def model_without_weights(
    model_name: str,
    patch_dropout: float = 0.0,
    device: str = "meta",
    superclip: dict | None = MappingProxyType({}),
    image_size: int | tuple[int, int] | None = None,
    context_length: int | None = None,
    **model_kwargs,
):
    """Returns an OpenCLIP model without weights, configured as by --force-patch-dropout and the like.

    `superclip` holds the options of the class head; None for no head.
    """
    model_cfg = open_clip.get_model_config(model_name)
    if patch_dropout:
        model_cfg["vision_cfg"]["patch_dropout"] = patch_dropout
    if image_size:
        model_cfg["vision_cfg"]["image_size"] = image_size
    if context_length:
        model_cfg["text_cfg"]["context_length"] = context_length
    custom_text = model_cfg.pop("custom_text", False)
    kind = CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP if custom_text else CLIP
    if superclip is not None:
        kind, model_kwargs = with_class_head(kind), model_kwargs | {"superclip": dict(superclip)}
    with torch.device(device):
        return kind(**{**model_cfg, **model_kwargs})


def count_gmacs(model_name: str, with_attention: bool = True, patch_dropout: float = 0.0) -> dict[str, float]:
    """Returns GMACs of one pair through `vision`, `text` and `head` of an OpenCLIP model, forward.

    `with_attention=False` excludes attention's own matrix products, as the paper does.
    """
    model = model_without_weights(model_name, patch_dropout)
    image = torch.empty(1, 3, *to_2tuple(model.visual.image_size), device="meta")
    text = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    head_input = torch.empty(1, model.class_head.weight.shape[1], device="meta")
    parts = {
        "vision": lambda: model.encode_image(image),
        "text": lambda: model.encode_text(text),
        "head": lambda: model.class_head.logits(head_input),
    }
    gmacs = {}
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter:
            part()
        gmacs[name] = sum(
            count / 2e9
            for operator, count in counter.get_flop_counts()["Global"].items()
            if with_attention or not str(operator).removeprefix("aten.").startswith(ATTENTION)
        )
    return gmacs


def head_share(gmacs: dict[str, float]) -> float:
    """Returns the ratio of the head's GMACs to those of both towers."""
    return gmacs["head"] / (gmacs["vision"] + gmacs["text"])


class MemoryTrace:
    """A context in which tensors have no data; `bytes` is the size of live tensors, `peak` its maximum so far.

    Allocator overhead, kernel workspaces and libraries are not included. Reading a value from a tensor returns 1.
    Storages are tracked through torch's dispatch, as in torch's private tracker (torch.distributed._tools).
    """

    def __init__(self):
        self.bytes = self.peak = 0
        self._fake, self._followed = FakeTensorMode(), _Storages(self)

    def __enter__(self) -> "MemoryTrace":
        self._fake.__enter__()
        self._followed.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._followed.__exit__(*error)
        self._fake.__exit__(*error)


class _Storages(TorchDispatchMode):
    """Tracks the storages of all operators' results."""

    def __init__(self, trace: MemoryTrace):
        super().__init__()
        self.trace, self.sizes = trace, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 1
        results = function(*args, **(kwargs or {}))
        for result in tree_iter(results):
            if isinstance(result, torch.Tensor):
                self._follow(result.untyped_storage())
        return results

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.trace.bytes += storage.nbytes()
        self.trace.peak = max(self.trace.peak, self.trace.bytes)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, storage: int) -> None:
        self.trace.bytes -= self.sizes.pop(storage)
