"""Exports a checkpoint as plain CLIP to a folder with preprocessing, tokenizer and model card."""

import copy
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import open_clip
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ..checkpoints import HEAD_NAME, WEIGHTS_NAMES
from ..environment import versions
from ..errors import InputError
from ..files import check_out, whole_output, write_text
from ..method.head import head_input_of
from ..pages import markdown_table
from .architecture import Architecture, architecture_of, expected_head, fit
from .checkpoint import NUM_CAPTIONS, check_match, check_values, read_checkpoint, save_files, save_weights
from .run_outputs import RunRecord, run_behind

# How SimpleTokenizer splits clean text: words, single digits, and runs of other characters.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
PADDING = "<padding_of_text>"
RECIPE = {  # options of the run, by OpenCLIP's names, with their labels on the model card
    "epochs": "epochs",
    "train_num_samples": "samples an epoch",
    "lr": "learning rate",
    "warmup": "warm-up steps",
    "wd": "weight decay",
    "precision": "precision",
    "seed": "seed",
    "superclip_weight": "weight of the class loss λ",
    "superclip_idf": "IDF",
    "superclip_head_warmup": "samples in which the head learned alone",
}
MADE_WITH = ("openclip-superclip", "open_clip_torch", "torch")
PLAIN = "A CLIP model."
WITH_CLASS_LOSS = "A CLIP model, trained with the class loss of [SuperCLIP](https://arxiv.org/abs/2512.14480). "
HEAD_BESIDE = f"The class head served training only; it is kept beside the model, in `{HEAD_NAME}`."
NO_HEAD = "The class head served training only; this is the model without it."
OPENCLIP_USAGE = """import open_clip
model, preprocess = open_clip.create_model_from_pretrained("{place}")
tokenizer = open_clip.get_tokenizer("{place}")"""
HF_USAGE = """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained("{place}")
processor = CLIPProcessor.from_pretrained("{place}", backend="pil")  # resizes as OpenCLIP does"""


def as_hugging_face(tokenizer: SimpleTokenizer):
    """Returns a transformers tokenizer with the same ids, except for padding, whose id `save_tokenizer` sets to 0."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = (tokenizer.decoder[id] for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    merges = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]  # skips the empty last line of the file
    bpe = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (start, end, PADDING)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, pad_token=PADDING, sep_token=PADDING,
        model_max_length=tokenizer.context_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def save_tokenizer(tokenizer, folder: Path) -> None:
    """Writes a transformers tokenizer. A tokenizer made by `as_hugging_face` pads with 0, like OpenCLIP's.

    0 is also the id of "!" inside words, so the file contains two names for it. A tokenizer loaded from such a file
    saves only one of them, even in the merges.
    """
    save_files(tokenizer, folder)
    if tokenizer.pad_token != PADDING:
        return
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {"!": 0, PADDING: 0}
    content["model"]["merges"] = json.loads(json.dumps(content["model"]["merges"]).replace(PADDING, "!"))
    for token in content["added_tokens"]:
        token["id"] = content["model"]["vocab"][token["content"]]
    write_text(file, json.dumps(content, ensure_ascii=False))


@dataclass(frozen=True)
class Card:
    """The content of an export's model card, which omits unknown facts."""

    name: str
    run: RunRecord  # empty for a checkpoint without a run's folder
    num_captions: int | None  # captions seen with the class loss; None if they were not counted
    head_beside: bool
    license: str  # a license identifier of the Hugging Face hub
    library: str  # open_clip or transformers
    usage: str  # code that opens the model
    model: str  # the architecture's name

    def text(self) -> str:
        """Returns the README.md of a model folder, in Markdown with the Hugging Face hub's front matter."""
        options = self.run.options
        base, tag = str(options.get("model", "")), str(options.get("pretrained", ""))
        is_identifier = re.fullmatch(r"[\w.-]+", self.license)
        front_matter = [
            f"license: {self.license if is_identifier else json.dumps(self.license)}",
            f"library_name: {self.library}",
            "pipeline_tag: zero-shot-image-classification", "tags:", "- clip",
            *["- superclip"] * (self.num_captions is not None),
        ]  # fmt: skip
        if repo := open_clip.get_pretrained_cfg(base, tag).get("hf_hub", ""):
            front_matter.append(f"base_model: {repo.rpartition('/')[0]}")
        what = PLAIN if self.num_captions is None else WITH_CLASS_LOSS + (HEAD_BESIDE if self.head_beside else NO_HEAD)
        facts = {
            "architecture": self.model,
            "base model": f"{base}, {tag}" if tag else None,
            "data": options.get("train_data"),
            "captions seen with the class loss": f"{self.num_captions:,}" if self.num_captions else None,
            "made with": ", ".join(f"{name} {version}" for name, version in versions(*MADE_WITH).items()),
        }
        sections = [
            "\n".join(["---", *front_matter, "---"]),
            f"# {_plain(self.name)}\n\n{what}",
            f"## Model\n\n{_list(facts)}",
            f"## Use\n\n```python\n{self.usage}\n```",
        ]
        sizes = [options.get(name) for name in ("batch_size", "world_size", "accum_freq")]
        recipe = {label: options.get(option) for option, label in RECIPE.items()}
        if all(isinstance(size, int) for size in sizes):
            recipe["global batch"] = f"{math.prod(sizes):,}"
        if recipe := _list(recipe):
            sections.append(f"## Recipe\n\n{recipe}")
        if self.run.measures:
            rows = [[_plain(measure), f"{value:.4f}"] for measure, value in self.run.measures.items()]
            sections.append(f"## Measured by the training run\n\n{markdown_table(['', ''], rows)}")
        return "\n\n".join(sections) + "\n"


def _list(facts: dict) -> str:
    return "\n".join(f"- {label}: {_plain(value)}" for label, value in facts.items() if value not in (None, ""))


def _plain(value) -> str:
    """Returns a value as one line of escaped Markdown. Absolute paths are reduced to their last component."""
    text = re.sub(r"(^|[\s,'\"(:])(?:local-dir:)?/(?:[^\s/,:]+/)+", r"\1", " ".join(str(value).split()))
    return re.sub(r"([\\`*\[\]<>#])", r"\\\1", text)


def write_model(
    folder: Path,
    architecture: Architecture,
    model: nn.Module,
    weights: dict[str, Tensor],
    weights_name: str = HF_SAFE_WEIGHTS_NAME,
    repo: str | None = None,
    out: Path | None = None,
) -> None:
    """Writes configuration, weights and tokenizer to `folder`, for OpenCLIP's local-dir:.

    Args:
        model: `architecture.on_meta()`, which provides the preprocessing.
        weights_name: file name of the weights, one that OpenCLIP looks for; its suffix determines the format.
        repo: Hugging Face repository to which the folder will be uploaded; OpenCLIP loads the tokenizer from it.
        out: final name of the folder, if it will be renamed.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    text_cfg = model_cfg["text_cfg"]
    tokenizer = architecture.tokenizer()
    tower = text_cfg.get("hf_model_name")
    if tower and Path(tower).exists():
        from transformers import AutoConfig

        AutoConfig.from_pretrained(tower).save_pretrained(folder)
        text_cfg["hf_model_name"] = repo or str((out or folder).resolve())  # OpenCLIP looks nowhere else
    if text_cfg.get("hf_tokenizer_name"):
        save_tokenizer(tokenizer.tokenizer, folder)
        text_cfg["hf_tokenizer_name"] = repo or text_cfg["hf_tokenizer_name"]
    elif text_cfg.get("tokenizer_kwargs", {}).get("bpe_path"):
        kwargs = text_cfg["tokenizer_kwargs"]
        if others := kwargs.keys() - {"bpe_path", "clean"}:
            raise InputError(
                f"--model: {architecture.name} has a vocabulary of its own, with {', '.join(sorted(others))} in "
                "tokenizer_kwargs: only bpe_path and clean can be exported"
            )
        save_tokenizer(as_hugging_face(tokenizer), folder)
        text_cfg["hf_tokenizer_name"] = repo or "in-this-folder"
        text_cfg["tokenizer_kwargs"] = {"clean": kwargs.get("clean", "lower"), "strip_sep_token": True}
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_cfg)
    save_weights(weights, folder / weights_name)


class Export(NamedTuple):
    """The result of an export."""

    model: str
    usage: str  # code that opens it
    warnings: list[str]


def export(
    file: Path,
    out: Path,
    model: str | None = None,
    format: str = "openclip",
    with_head: bool = False,
    license: str = "unknown",
    repo: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes the folder `out`, which is never left incomplete.

    Args:
        file: a checkpoint of a run, a file of weights, or a folder.
        out: the folder to write.
        model: name of an OpenCLIP model or a JSON file, if it is not recorded with the checkpoint.
        format: a key of WEIGHTS_NAMES, or "hf" for transformers.
        with_head: whether to save the class head and the token statistics next to the model.
        license: license for the model card.
        repo: Hugging Face repository to which the folder will be uploaded.
        overwrite: whether to replace an existing folder.
    """
    check_out(out, overwrite, [file], is_folder=True)
    checkpoint = read_checkpoint(file)
    run, head = run_behind(checkpoint), checkpoint.head()
    if with_head and not head:
        raise InputError(f"--with-head: {file} contains no class head")
    found = architecture_of(file, run.options, model)
    architecture, weights = fit(found, checkpoint.without_head())
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict(), str(file), found.name)
    if with_head:
        check_match(head, expected_head(plain, head_input_of(head)), f"{file}: the class head", found.name)
    check_values(checkpoint.weights, str(file))
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        if format == "hf":
            from .hugging_face import write_clip_model

            write_clip_model(folder, architecture, plain, weights)
            library, usage, place = "transformers", HF_USAGE, "{place}"
        else:
            write_model(folder, architecture, plain, weights, WEIGHTS_NAMES[format], repo, out)
            library, usage, place = "open_clip", OPENCLIP_USAGE, "hf-hub:{place}" if repo else "local-dir:{place}"
        usage = usage.replace("{place}", place)
        if with_head:
            kept = {name: run.options[name] for name in ("superclip_idf",) if name in run.options}
            save_weights(head, folder / HEAD_NAME, kept)  # the option that the class head needs
        num_captions = head[NUM_CAPTIONS].item() if NUM_CAPTIONS in head else None
        name = out.resolve().name
        card = Card(name, run, num_captions, with_head, license, library, usage.format(place=repo or name), found.name)
        (folder / "README.md").write_text(card.text())
    tower, warnings = architecture.model_cfg["text_cfg"].get("hf_model_name"), []
    if tower and Path(tower).exists() and not repo:
        warnings.append(
            f"OpenCLIP reads the text tower's config.json by its absolute path: if {out} is moved, correct "
            f"hf_model_name in its {HF_CONFIG_NAME}; --push REPO names the repository there instead"
        )
    return Export(found.name, usage.format(place=repo or out), warnings)
