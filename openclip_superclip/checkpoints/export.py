"""The model card of an export: what is known of the model, and nothing else."""

import copy
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
from ..files import check_folder_out, whole_output
from ..pages import markdown_table
from .architecture import Architecture, architecture_of, check_head, fit, vocabulary_warnings
from .checkpoint import NUM_CAPTIONS, check_match, check_values, read_checkpoint, save_files, save_weights
from .run_outputs import HEAD_OPTIONS, RunRecord, run_behind

# As SimpleTokenizer splits a text that is cleaned: words, digits one by one, and whatever else stands together.
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


PADDING = "<padding_of_text>"


def as_hugging_face(tokenizer: SimpleTokenizer):
    """Returns transformers' tokenizer with the same ids, but for padding: OpenCLIP is told to put 0 there.

    That is `strip_sep_token`, which makes zeros of the token after a text: here, of the padding.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = (tokenizer.decoder[id] for id in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    merges = [merge for merge in tokenizer.bpe_ranks if len(merge) == 2]  # not the empty line at a file's end
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


RECIPE = {  # options of the run, under OpenCLIP's names, and how the card calls them
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


WITH_CLASS_LOSS = (
    "A CLIP model, trained with the class loss of [SuperCLIP](https://arxiv.org/abs/2512.14480). The class head served "
    "training only; this is the model without it."
)


def model_card(
    name: str, run: RunRecord, num_captions: int | None, license: str, library: str, usage: str, model: str
) -> str:
    """Returns the README.md of a model folder, in Markdown with the Hugging Face hub's front matter.

    Args:
        name: the model's own.
        run: what trained it; a card of a checkpoint that stands alone says nothing of a recipe.
        num_captions: seen with the class loss; None where nothing counted them.
        license: an identifier of the hub's.
        library: `open_clip` or `transformers`.
        usage: code that opens the model.
        model: the architecture's name.
    """
    sections = [
        _front_matter(run, license, library),
        f"# {name}\n\n{PLAIN if num_captions is None else WITH_CLASS_LOSS}",
        "## Model\n\n" + _list(_facts(run, num_captions, model)),
        f"## Use\n\n```python\n{usage}\n```",
    ]
    recipe = _list({label: run.options.get(option) for option, label in RECIPE.items()} | _global_batch(run))
    if recipe:
        sections.append(f"## Recipe\n\n{recipe}")
    if run.measures:
        rows = [[measure, f"{value:.4f}"] for measure, value in run.measures.items()]
        sections.append(f"## Measured by the training run\n\n{markdown_table(['', ''], rows)}")
    return "\n\n".join(sections) + "\n"


def _front_matter(run: RunRecord, license: str, library: str) -> str:
    lines = [f"license: {license}", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification"]
    lines += ["tags:", "- clip", "- superclip"]
    repo = open_clip.get_pretrained_cfg(*_model_and_tag(run)).get("hf_hub", "")
    if repo:
        lines.append(f"base_model: {repo.rpartition('/')[0]}")
    return "\n".join(["---", *lines, "---"])


def _facts(run: RunRecord, num_captions: int | None, model: str) -> dict:
    base, tag = _model_and_tag(run)
    return {
        "architecture": model,
        "base model": f"{base}, {tag}" if tag else None,
        "data": run.options.get("train_data"),
        "captions seen with the class loss": f"{num_captions:,}" if num_captions else None,
        "made with": ", ".join(f"{name} {version}" for name, version in versions(*MADE_WITH).items()),
    }


def _model_and_tag(run: RunRecord) -> tuple[str, str]:
    return str(run.options.get("model", "")), str(run.options.get("pretrained", ""))


def _global_batch(run: RunRecord) -> dict:
    sizes = [run.options.get(name) for name in ("batch_size", "world_size", "accum_freq")]
    return {"global batch": f"{sizes[0] * sizes[1] * sizes[2]:,}"} if all(isinstance(n, int) for n in sizes) else {}


def _list(facts: dict) -> str:
    return "\n".join(f"- {label}: {value}" for label, value in facts.items() if value not in (None, ""))


def write_model(
    folder: Path,
    architecture: Architecture,
    model: nn.Module,
    weights: dict[str, Tensor],
    weights_name: str = HF_SAFE_WEIGHTS_NAME,
    repo: str | None = None,
) -> None:
    """Writes configuration, weights and tokenizer so that OpenCLIP opens `folder` as local-dir, wherever it is moved.

    Args:
        model: `architecture.on_meta()`; it knows the preprocessing.
        weights_name: OpenCLIP's name of the weights' file; its suffix tells the format.
        repo: of the hub, where the folder will be; OpenCLIP looks there for the tokenizer.
    """
    model_cfg = copy.deepcopy(architecture.model_cfg)
    text_cfg = model_cfg["text_cfg"]
    tower = text_cfg.get("hf_model_name")
    if repo and tower and Path(tower).exists():
        raise InputError(
            f"--push: {architecture.name} has its text tower's configuration in {tower}, which is on this machine "
            "alone: text_cfg must name a model of the hub as hf_model_name"
        )
    if text_cfg.get("hf_tokenizer_name"):
        save_files(architecture.tokenizer().tokenizer, folder)
        text_cfg["hf_tokenizer_name"] = repo or text_cfg["hf_tokenizer_name"]
    elif text_cfg.get("tokenizer_kwargs", {}).get("bpe_path"):
        _write_vocabulary(folder, architecture, text_cfg, repo)
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_cfg)
    save_weights(weights, folder / weights_name)


def _write_vocabulary(folder: Path, architecture: Architecture, text_cfg: dict, repo: str | None) -> None:
    """Writes the tokenizer of a vocabulary of one's own, and has the configuration open it from the folder."""
    kwargs = dict(text_cfg["tokenizer_kwargs"])
    del kwargs["bpe_path"]
    clean = kwargs.pop("clean", "lower")
    if kwargs:
        raise InputError(
            f"--model: {architecture.name} has a vocabulary of its own, with {', '.join(kwargs)} in tokenizer_kwargs, "
            "which no folder can carry: bpe_path and clean alone can be exported"
        )
    save_files(as_hugging_face(architecture.tokenizer()), folder)
    text_cfg["hf_tokenizer_name"] = repo or "in-this-folder"
    text_cfg["tokenizer_kwargs"] = {"clean": clean, "strip_sep_token": True}


OPENCLIP_USAGE = """import open_clip
model, preprocess = open_clip.create_model_from_pretrained("{place}")
tokenizer = open_clip.get_tokenizer("{place}")"""


HF_USAGE = """from transformers import CLIPModel, CLIPProcessor
model = CLIPModel.from_pretrained("{folder}")
processor = CLIPProcessor.from_pretrained("{folder}")"""


class Export(NamedTuple):
    """What was written."""

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
    """Writes the folder `out`, whole or not at all, and returns what it holds.

    Args:
        file: a checkpoint of a run, a file of weights, or a folder.
        out: the folder; with `overwrite` it is exchanged whole.
        model: OpenCLIP's name or a JSON file, where nothing beside the checkpoint tells it.
        format: of WEIGHTS_NAMES, or "hf" for transformers.
        with_head: whether the class head and the counts are kept beside the model.
        license: for the model card.
        repo: of the hub, where the folder will be.
    """
    check_folder_out(out, overwrite, [file])
    checkpoint = read_checkpoint(file)
    run, head = run_behind(checkpoint), checkpoint.head()
    if with_head and not head:
        raise InputError(f"--with-head: {file} holds no class head")
    found = architecture_of(file, run.options, model)
    architecture, weights = fit(found, checkpoint.without_head())
    plain = architecture.on_meta()
    check_match(weights, plain.state_dict(), str(file), found.name)
    if with_head:
        check_head(head, plain, str(file), found.name)
    check_values(checkpoint.weights, str(file))
    warnings = vocabulary_warnings(architecture, plain)
    num_captions = head[NUM_CAPTIONS].item() if NUM_CAPTIONS in head else None
    with whole_output(out, overwrite) as folder:
        folder.mkdir()
        if format == "hf":
            from .hugging_face import write_clip_model

            write_clip_model(folder, architecture, plain, weights)
            library, usage = "transformers", HF_USAGE.format(folder=repo or out)
        else:
            write_model(folder, architecture, plain, weights, WEIGHTS_NAMES[format], repo)
            place = f"hf-hub:{repo}" if repo else f"local-dir:{out}"
            library, usage = "open_clip", OPENCLIP_USAGE.format(place=place)
        if with_head:
            save_weights(
                head, folder / HEAD_NAME, {name: run.options[name] for name in HEAD_OPTIONS & run.options.keys()}
            )
        card = model_card(out.resolve().name, run, num_captions, license, library, usage, found.name)
        (folder / "README.md").write_text(card)
    return Export(found.name, usage, warnings)
