"""An OpenCLIP plugin: a contrastive loss whose negatives are the whole data set's, for small
batches."""

import hashlib
import math

import pluggy
import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss
from torch import Tensor

hookimpl = pluggy.HookimplMarker("open_clip")
# the loss of this process, which is a part of its model: a checkpoint holds its estimates
_made = {}


class GlobalContrastiveLoss(ClipLoss):
    """SogCLR (Yuan et al. 2022, arXiv 2202.12387) with a learned scale, as FastCLIP-v0 (Wei et al.
    2024, 2407.01445).

    The objective is F = mean_i (log(eps + g_i) + log(eps + h_i)) / 2 over a data set. With s the
    logit scale,
        g_i = mean over j != i of exp(s (image_i . text_j - image_i . text_i));
    h_i exchanges image and text.
    Its gradient is mean_i (grad g_i / (eps + g_i) + ...) / 2. A batch estimates grad g_i without
    bias, but not the quotient: small batches are biased. So the denominator takes a running
    estimate per sample,
        u_i = (1 - gamma) u_i + gamma g_i(batch), and g_i(batch) at the sample's first visit.
    The value is F with u_i for g_i, over the batch. If gamma = 1 and eps = 1 / (batch - 1), it is
    ClipLoss minus log(batch - 1). The papers sum the two directions; their mean keeps ClipLoss's
    scale.

    The buffer is log u [size, 2], equal on all ranks, NaN before the first visit, float32 as int32
    bits, which `model.to(bfloat16)` leaves alone. If samples of a batch share a slot, the larger
    estimate stays in it. OpenCLIP asks `accum_freq` times for the loss of a batch. `gather`:
    arguments of ClipLoss.
    """

    def __init__(self, size: int, gamma: float, eps: float, accum_freq: int = 1, **gather):
        super().__init__(**gather)
        self.log_old, self.log_new = (
            torch.tensor([1 - gamma, gamma], dtype=torch.float64).log().tolist()
        )
        self.log_eps, self.accum_freq, self.num_calls = math.log(eps), accum_freq, 0
        self.register_buffer("bits", torch.full((size, 2), torch.nan).view(torch.int32))

    def forward(
        self, image_features, text_features, logit_scale, sample_slots, *, output_dict=False
    ):
        """Returns the loss of features [B, D] of length 1 and of samples whose estimates are at
        `sample_slots` [B]."""
        # exp multiplies the rounding of bfloat16
        with torch.autocast(image_features.device.type, enabled=False):
            # own rows or all
            logits = self.get_logits(image_features.float(), text_features.float(), logit_scale)
        positives = self.get_ground_truth(image_features.device, len(logits[0]))[:, None]
        log_g = torch.stack([self._log_mean(one, positives) for one in logits], dim=1)  # [rows, 2]
        estimates, slots = self.bits.view(torch.float32), self._gather(sample_slots)
        of_all = len(log_g) > len(sample_slots)
        if self.num_calls % self.accum_freq == 0:
            ours = log_g.detach().chunk(self.world_size)[self.rank] if of_all else log_g.detach()
            old = estimates[sample_slots]
            new = torch.where(
                old.isnan(), ours, torch.logaddexp(old + self.log_old, ours + self.log_new)
            )
            estimates.scatter_reduce_(
                0, slots[:, None].expand(-1, 2), self._gather(new), "amax", include_self=False
            )
        self.num_calls += 1
        log_u = estimates[slots if of_all else sample_slots]
        log_u = torch.logaddexp(log_u, torch.full_like(log_u, self.log_eps))
        ratio = (log_g - log_u).exp()  # at most 1 / gamma; its gradient is grad g / (eps + u)
        loss = (log_u + ratio - ratio.detach()).mean()
        return {"contrastive_loss": loss} if output_dict else loss

    def _log_mean(self, logits: Tensor, positives: Tensor) -> Tensor:
        differences = logits - logits.gather(1, positives)
        return differences.scatter(1, positives, -torch.inf).logsumexp(1) - math.log(
            logits.shape[1] - 1
        )

    def _gather(self, ours: Tensor) -> Tensor:
        of_ranks = [torch.empty_like(ours) for _ in range(self.world_size)]
        if self.world_size > 1:
            dist.all_gather(of_ranks, ours.contiguous())
        return torch.cat(of_ranks) if self.world_size > 1 else ours

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # a run may start from weights without estimates
        state_dict.setdefault(f"{prefix}bits", self.bits)
        super()._load_from_state_dict(state_dict, prefix, *args)


class WithSampleSlots:
    """A model that saves the loss's estimates and hands it the slots that `TokensWithSlot`
    appends to the tokens."""

    def __init__(self, *args, global_contrastive: GlobalContrastiveLoss, **kwargs):
        super().__init__(*args, **kwargs)
        self.training_only_global_contrastive = global_contrastive
        # DDP would send all estimates in every step
        ignored = getattr(self, "_ddp_params_and_buffers_to_ignore", [])
        self._ddp_params_and_buffers_to_ignore = [*ignored, "training_only_global_contrastive.bits"]

    def forward(self, image=None, text=None):
        if not self.training or image is None or text is None:
            return super().forward(image, text)
        return {**super().forward(image, text[:, :-1]), "sample_slots": text[:, -1]}


class TokensWithSlot:
    """Appends the sample's slot to its tokens: a hash of shard and key, or of a table's image
    and caption."""

    def __init__(self, tokens, tokenizer, args):
        self.tokens, self.tokenizer, self.args = tokens, tokenizer, args
        vars(self).update(
            {name: getattr(tokens, name) for name in ("keeps", "end_pass") if hasattr(tokens, name)}
        )

    def __call__(self, sample: dict) -> Tensor | None:
        of_shard, args = "__key__" in sample, self.args
        caption = sample["txt"] if of_shard else str(sample[args.csv_caption_key])
        tokens = self.tokens(sample) if self.tokens else self.tokenizer([caption])[0]
        if tokens is None:
            return None
        file, key = (
            (sample["__url__"], sample["__key__"])
            if of_shard
            else (sample[args.csv_img_key], caption)
        )
        digest = hashlib.blake2b(
            f"{file.rpartition('/')[2]}\n{key}".encode(), digest_size=8
        ).digest()
        return torch.cat(
            [
                tokens,
                tokens.new_tensor([int.from_bytes(digest, "big") % args.global_contrastive_size]),
            ]
        )


@hookimpl
def open_clip_add_options(parser):
    add = parser.add_argument_group("global contrastive loss").add_argument
    add(
        "--global-contrastive-size",
        type=int,
        default=0,
        help="Slots for the samples' estimates; 0: stock loss.",
    )
    add(
        "--global-contrastive-gamma",
        type=float,
        default=0.9,
        help="Weight of the batch in a sample's estimate.",
    )
    add("--global-contrastive-eps", type=float, default=1e-14, help="Added to a sample's estimate.")


@hookimpl
def open_clip_check_options(args):
    size, gamma, eps = (
        getattr(args, f"global_contrastive_{name}") for name in ("size", "gamma", "eps")
    )
    if size < 0 or not 0 < gamma <= 1 or eps <= 0 or (size and args.batch_size < 2):
        raise SystemExit(
            "error: --global-contrastive-*: expected size >= 0, 0 < gamma <= 1, eps > 0, "
            "--batch-size > 1"
        )
    others = (
        args.siglip
        or args.distill_model
        or "coca" in args.model.lower()
        or getattr(args, "horovod", False)
    )
    if size and (others or args.dataset_type == "synthetic"):
        raise SystemExit(
            "error: --global-contrastive-size: no --siglip, CoCa, --distill, --horovod, "
            "synthetic data"
        )


@hookimpl
def open_clip_model_kwargs(args):
    if not args.global_contrastive_size:
        return None
    gather = {
        name: getattr(args, name)
        for name in ("local_loss", "gather_with_grad", "rank", "world_size")
    }
    options = (
        args.global_contrastive_size,
        args.global_contrastive_gamma,
        args.global_contrastive_eps,
    )
    _made["loss"] = GlobalContrastiveLoss(*options, args.accum_freq, **gather)
    return {"global_contrastive": _made["loss"]}


@hookimpl(wrapper=True)
def open_clip_select_model_class(model_class, model_cfg):
    chosen = yield
    if "global_contrastive" not in model_cfg:
        return chosen
    return type("GlobalCLIP", (WithSampleSlots, chosen or model_class), {})


@hookimpl(wrapper=True)
def open_clip_caption_tokens(args, tokenizer):
    tokens = yield
    return TokensWithSlot(tokens, tokenizer, args) if args.global_contrastive_size else tokens


@hookimpl
def open_clip_create_loss(args):
    return _made["loss"] if args.global_contrastive_size else None
