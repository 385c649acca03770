"""The demo's model: small enough for a laptop, made of OpenCLIP's own parts."""

import gzip
import json
from pathlib import Path

from ..atomic_files import whole_file, write_text
from .scenes import IMAGE_SIZE

# CLIP's vocabulary of 49,408 would make the head twenty times the rest of so small a model; on the paper's models it is
# a fraction of a percent. 4,096 brings the head's share of a step's time below a tenth.
VOCAB_SIZE = 4096
NUM_TOKENS_WITHOUT_MERGES = 2 * 256 + 2  # bytes, bytes that end a word, start and end


def write_vocabulary(folder: Path) -> Path:
    """Writes CLIP's vocabulary, cut after the first merges to VOCAB_SIZE tokens, and returns its file."""
    from open_clip.tokenizer import default_bpe

    vocabulary = (folder / "bpe.txt.gz").resolve()
    with gzip.open(default_bpe()) as file:
        lines = file.read().splitlines()
    with whole_file(vocabulary) as file:  # the first line is a comment
        file.write(gzip.compress(b"\n".join(lines[: 1 + VOCAB_SIZE - NUM_TOKENS_WITHOUT_MERGES]), mtime=0))
    return vocabulary


def write_model(folder: Path) -> str:
    """Writes the model's configuration and vocabulary and returns the --model that opens it.

    A ModifiedResNet of one block a stage beside a text tower of two layers. The vocabulary is CLIP's own, cut after the
    first merges.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text_cfg = {"context_length": 32, "vocab_size": VOCAB_SIZE, "width": 128, "heads": 2}
    return write_small_resnet(folder, write_vocabulary(folder), width=32, text_cfg=text_cfg)


def write_small_resnet(folder: Path, vocabulary: Path, width: int, text_cfg: dict) -> str:
    """Writes the configuration of a ModifiedResNet of one block a stage, and returns the --model that opens it.

    Args:
        folder: it is there.
        vocabulary: the file of the merges.
        width: of the vision tower.
        text_cfg: what of the text tower, of two layers, is not the vocabulary's file.
    """
    model_cfg = {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 1, 1, 1], "width": width, "head_width": 32},
        "text_cfg": {**text_cfg, "tokenizer_kwargs": {"bpe_path": str(vocabulary)}, "layers": 2},
    }
    write_text(folder / "open_clip_config.json", json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}, indent=2))
    return f"local-dir:{folder}"


def load(weights: Path, model: str):
    """Returns (model, preprocess, tokenizer) of a trained run, CLIP or SuperCLIP, for evaluation."""
    import open_clip

    from .. import create_model_and_transforms

    loaded, _, preprocess = create_model_and_transforms(model)
    open_clip.load_checkpoint(loaded, str(weights))
    return loaded.eval(), preprocess, open_clip.get_tokenizer(model)
