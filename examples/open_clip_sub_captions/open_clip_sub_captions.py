"""An OpenCLIP plugin: a contrastive loss on parts of the captions, sampled again in every epoch."""

import random
import re

import pluggy
import torch
from torch import Tensor, nn

hookimpl = pluggy.HookimplMarker("open_clip")


def sub_captions(caption: str) -> list[str]:
    """Returns the caption's sentences and clauses, split at punctuation marks; if there are
    none, the caption."""
    return [part.strip() for part in re.split(r"[.!?;:,](?:\s|$)", caption) if part.strip()] or [
        caption
    ]


class SubCaptionLoss(nn.Module):
    """Adds weight * mean_k C(image, t_k) to `whole`'s losses: K sub-captions t_k per image, C the
    contrastive loss.

    After the multi-positive loss of DreamLIP (Zheng et al. 2024, arXiv 2403.17007), without its
    grouping of patches.
    """

    def __init__(self, whole, contrastive, weight: float):
        super().__init__()
        self.whole, self.contrastive, self.weight = whole, contrastive, weight

    def forward(
        self, *, sub_text_features: Tensor | None = None, output_dict: bool = False, **outputs
    ):
        """Returns the losses; sub_text_features are [B, K, D], from the model in training."""
        losses = self.whole(**outputs, output_dict=True)
        if sub_text_features is not None:
            shared = {
                name: outputs[name]
                for name in ("image_features", "logit_scale", "logit_bias")
                if name in outputs
            }
            of_each = [
                self.contrastive(**shared, text_features=one, output_dict=True)["contrastive_loss"]
                for one in sub_text_features.unbind(1)
            ]
            losses["sub_caption_loss"] = self.weight * torch.stack(of_each).mean()
        return losses if output_dict else tuple(losses.values())


class WithSubCaptions:
    """A model that encodes the sub-captions, which `TokensWithSubCaptions` appends to the tokens
    of each caption."""

    def __init__(self, *args, num_sub_captions: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_sub_captions = num_sub_captions

    def forward(self, image=None, text=None):
        if not self.training or image is None or text is None:
            return super().forward(image, text)
        length = self.num_sub_captions * self.context_length
        whole, subs = text[:, :-length], text[:, -length:]
        features = self.encode_text(subs.reshape(-1, self.context_length), normalize=True)
        return {
            **super().forward(image, whole),
            "sub_text_features": features.unflatten(0, (len(text), -1)),
        }


class TokensWithSubCaptions:
    """Appends the tokens of K sub-captions, a function of seed, epoch and caption; fewer than K
    parts are repeated."""

    def __init__(self, tokens, tokenizer, args, shared_epoch):
        self.tokens, self.tokenizer, self.args, self.shared_epoch = (
            tokens,
            tokenizer,
            args,
            shared_epoch,
        )
        vars(self).update(
            {name: getattr(tokens, name) for name in ("keeps", "end_pass") if hasattr(tokens, name)}
        )

    def __call__(self, sample: dict) -> Tensor | None:
        caption = sample["txt"] if "__key__" in sample else str(sample[self.args.csv_caption_key])
        tokens = self.tokens(sample) if self.tokens else self.tokenizer([caption])[0]
        if tokens is None:
            return None
        source, number = self.source(sample, caption), self.args.sub_captions
        parts = sub_captions(source)
        rng = random.Random(f"{self.args.seed} {self.shared_epoch.get_value()} {source}")
        drawn = rng.sample(parts, number) if len(parts) >= number else rng.choices(parts, k=number)
        return torch.cat([tokens, self.tokenizer(drawn).flatten()])

    def source(self, sample: dict, caption: str) -> str:
        """Returns the text of --sub-captions-key; the caption without the flag, and for a sample
        that has no such text."""
        key = self.args.sub_captions_key
        if key and key not in sample and "__key__" not in sample:
            raise ValueError(f"--sub-captions-key: the table has no column '{key}'")
        text = sample.get(key)
        if isinstance(text, bytes):  # OpenCLIP 4 decodes only the caption
            text = text.decode()
        return text if isinstance(text, str) else caption


@hookimpl
def open_clip_add_options(parser):
    add = parser.add_argument_group("sub-captions").add_argument
    add("--sub-captions", type=int, default=0, help="Sub-captions per image and epoch; 0: none.")
    add("--sub-captions-weight", type=float, default=1.0, help="Weight of their loss.")
    add(
        "--sub-captions-key",
        default=None,
        help="Member or column of the text they are part of; default: the caption.",
    )


@hookimpl
def open_clip_check_options(args):
    if args.sub_captions < 0:
        raise SystemExit(f"error: --sub-captions is {args.sub_captions}, expected 0 or more")
    if args.sub_captions and (
        args.distill_model or "coca" in args.model.lower() or args.dataset_type == "synthetic"
    ):
        raise SystemExit(
            "error: --sub-captions: expected pairs in files, a model other than CoCa and no "
            "--distill"
        )


@hookimpl
def open_clip_model_kwargs(args):
    return {"num_sub_captions": args.sub_captions} if args.sub_captions else None


@hookimpl(wrapper=True)
def open_clip_select_model_class(model_class, model_cfg):
    chosen = yield
    if "num_sub_captions" not in model_cfg:
        return chosen
    return type("SubCaptionCLIP", (WithSubCaptions, chosen or model_class), {})


@hookimpl(wrapper=True)
def open_clip_caption_tokens(args, tokenizer, shared_epoch):
    tokens = yield
    return (
        TokensWithSubCaptions(tokens, tokenizer, args, shared_epoch)
        if args.sub_captions
        else tokens
    )


@hookimpl(wrapper=True)
def open_clip_create_loss(args):
    loss = yield
    if not args.sub_captions:
        return loss
    from open_clip import create_loss  # here, because open_clip may be importing the plugins

    return SubCaptionLoss(loss or create_loss(args), create_loss(args), args.sub_captions_weight)
