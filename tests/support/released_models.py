"""Random weights of any model, in the locations where OpenCLIP finds weights and tokenizers."""

import shutil
from pathlib import Path

import open_clip
import tokenizers
import torch
import transformers

from .models import write_model

LIST_OF_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "cat", "dog", "house"]


def write_random_model(folder: Path) -> list[str]:
    """Writes a file of random weights, and returns it with the flag that names its model."""
    name = write_model(folder / "model")
    torch.save(random_weights(name), folder / "weights.pt")
    return [f"{folder}/weights.pt", "--model", name]


def random_weights(model_name: str, **options) -> dict[str, torch.Tensor]:
    """Returns small normally distributed weights for a model, different for each tensor."""
    with torch.device("meta"):
        model = open_clip.create_model(model_name, load_weights=False, device="meta", pretrained_text=False, **options)
    pool = torch.randn(2**20 + 997, generator=torch.Generator().manual_seed(len(model_name))) * 0.03
    return {
        name: _drawn_from(pool, tensor, index, name) for index, (name, tensor) in enumerate(model.state_dict().items())
    }


def _drawn_from(pool, tensor, index, name):
    if not tensor.is_floating_point():
        return torch.arange(tensor.numel()).view(tensor.shape).to(tensor.dtype)
    rolled = pool[index % 997 :]
    values = rolled.repeat(-(-tensor.numel() // len(rolled)))[: tensor.numel()].view(tensor.shape)
    if name.endswith("running_var"):
        return values.abs() + 0.5
    return values + 1 if tensor.ndim == 1 and name.endswith("weight") else values.clone()


def plain_model(model_name: str, weights: dict[str, torch.Tensor], **options) -> torch.nn.Module:
    """Returns stock OpenCLIP's model with `weights`, in evaluation mode."""
    model = open_clip.create_model(model_name, load_weights=False, pretrained_text=False, **options)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def add_to_cache(cache: Path, repo: str, *files: Path) -> None:
    """Moves files into the cache of huggingface_hub, as after a download, and marks missing files as absent."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    absent = folder / ".no_exist" / ("0" * 40)
    absent.mkdir(parents=True, exist_ok=True)
    (absent / "config.json").touch()
    for file in files:
        shutil.move(file, snapshot / file.name)


def write_tokenizer(folder: Path, list_of_words: list[str] = LIST_OF_WORDS) -> list[Path]:
    """Writes a Hugging Face tokenizer of a few words, the special ones first, and returns its files."""
    words = {word: index for index, word in enumerate(list_of_words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return list(folder.iterdir())


def write_hf_text_model(folder: Path) -> str:
    """Writes the configuration of a model with a BERT as its text tower, and returns its --model."""
    write_tokenizer(folder)
    transformers.BertConfig(
        vocab_size=len(LIST_OF_WORDS), hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, max_position_embeddings=20,
    ).save_pretrained(folder / "tower")  # fmt: skip
    text = {"hf_model_name": str(folder / "tower"), "hf_tokenizer_name": str(folder), "hf_pooler_type": "cls_pooler"}
    return write_model(folder, text=text)
