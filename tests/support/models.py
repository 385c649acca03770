"""Small models with all kinds of towers, for --model, and weights where
OpenCLIP finds them."""

import gzip
import shutil
from pathlib import Path

import open_clip
import tokenizers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Whitespace

from openclip_superclip import hooks
from openclip_superclip.demo.data import NUM_TOKENS_WITHOUT_MERGES
from openclip_superclip.files import atomic_write

from . import DATA, GOLDEN, WORDS, read_json, write_json

VOCAB_SIZE = 4096
SPECIAL_TOKENS = [0, VOCAB_SIZE - 2, VOCAB_SIZE - 1]  # padding, start and end
LIST_OF_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", *WORDS]
# their small checkpoint
AUTHORS, AUTHORS_CONFIG = GOLDEN / "reference_tiny.pt", GOLDEN / "reference_tiny.json"


def create_model(args, **kwargs):
    """Returns the model that OpenCLIP's main creates with `args` and the
    plugins' arguments."""
    model = open_clip.create_model(
        args.model,
        precision=args.precision,
        force_patch_dropout=args.force_patch_dropout,
        output_dict=True,
        **(hooks.model_kwargs(args) | kwargs),
    )
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def as_rank_1(args):
    """Returns OpenCLIP's arguments with what its main adds to those of a
    rank, one that does not read losses to log them."""
    vars(args).update(rank=1, local_rank=1, world_size=1, distributed=False, horovod=False)
    vars(args).update(logs="logs", distill=args.distill_model is not None)
    return args


class Batches:
    """The training data of train_one_epoch: batches of images and tokens on
    the CPU."""

    def __init__(self, model, batch_size, num_batches, length):
        shape = batch_size, 3, *open_clip.utils.to_2tuple(model.visual.image_size)
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        tokens = torch.randint(1, 4000, (batch_size, length))
        self.batches = [(images, tokens)] * num_batches
        self.num_batches, self.num_samples = num_batches, batch_size * num_batches
        self.dataloader = self

    def set_epoch(self, epoch):
        pass

    def __iter__(self):
        return iter(self.batches)


def write_vocabulary(folder):
    """Writes CLIP's vocabulary, truncated to VOCAB_SIZE tokens, and returns
    its file."""
    vocabulary = (folder / "bpe.txt.gz").resolve()
    with gzip.open(open_clip.tokenizer.default_bpe()) as file:
        lines = file.read().splitlines()
    with atomic_write(vocabulary) as file:  # the first line is a comment
        file.write(
            gzip.compress(b"\n".join(lines[: 1 + VOCAB_SIZE - NUM_TOKENS_WITHOUT_MERGES]), mtime=0)
        )
    return vocabulary


def write_model(folder, vision=None, text=None, **model_cfg):
    """Writes a small OpenCLIP model configuration and returns the value of
    --model that opens it.

    Its vocabulary is CLIP's, truncated to VOCAB_SIZE tokens, unless `text`
    contains a vocab_size or a tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(text or {})
    if not {"vocab_size", "hf_tokenizer_name"} & text.keys():
        text |= {
            "vocab_size": VOCAB_SIZE,
            "tokenizer_kwargs": {"bpe_path": str(write_vocabulary(folder))},
        }
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 64,
            "head_width": 32,
            "patch_size": 8,
            **(vision or {}),
        },
        "text_cfg": {
            "context_length": 20,
            "vocab_size": 49408,
            "width": 48,
            "heads": 3,
            "layers": 2,
            **text,
        },
        **model_cfg,
    }
    write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {}})
    return f"local-dir:{folder}"


def copy_model(model, folder):
    """Copies a model of `write_model` with its vocabulary, and returns the
    --model of the copy."""
    shutil.copytree(model.removeprefix("local-dir:"), folder)
    file = folder / "open_clip_config.json"
    content = read_json(file)
    content["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = f"{folder}/bpe.txt.gz"
    write_json(file, content)
    return f"local-dir:{folder}"


# arguments of write_model for each kind of tower
MODELS = read_json(DATA / "models.json")


def write_weights(model):
    """Writes random weights next to a model's configuration."""
    torch.manual_seed(1)
    weights = open_clip.create_model(model).state_dict()
    if "text_decoder.text_projection" in weights:  # OpenCLIP 3 leaves it uninitialized
        weights["text_decoder.text_projection"].normal_(std=0.02)
    torch.save(weights, Path(model.removeprefix("local-dir:")) / "pytorch_model.bin")


def write_random_model(folder, **cfg):
    """Writes a file of random weights, and returns it with the flag that
    names its model."""
    name = write_model(folder / "model", **cfg)
    torch.save(random_weights(name), folder / "weights.pt")
    return [f"{folder}/weights.pt", "--model", name]


def random_weights(model_name):
    """Returns small normally distributed weights for a model, different for
    each tensor."""
    with torch.device("meta"):
        model = open_clip.create_model(
            model_name, load_weights=False, device="meta", pretrained_text=False
        )
    pool = torch.randn(2**20 + 997, generator=torch.Generator().manual_seed(len(model_name))) * 0.03
    return {
        name: _drawn_from(pool, tensor, index, name)
        for index, (name, tensor) in enumerate(model.state_dict().items())
    }


def _drawn_from(pool, tensor, index, name):
    if not tensor.is_floating_point():
        return torch.arange(tensor.numel()).view(tensor.shape).to(tensor.dtype)
    rolled = pool[index % 997 :]
    values = rolled.repeat(-(-tensor.numel() // len(rolled)))[: tensor.numel()].view(tensor.shape)
    if name.endswith("running_var"):
        return values.abs() + 0.5
    return values + 1 if tensor.ndim == 1 and name.endswith("weight") else values.clone()


def rounding(num_terms):
    """The largest error of a float32 sum of `num_terms` products, relative
    to the sum of the products' magnitudes.

    Every order of summation rounds each product and each partial sum, by at
    most u = 2^-24. The errors are bounded by n u in the worst case; if
    their signs are independent, by λ √n u with probability 1 - 2 exp(-λ²/2)
    (Higham and Mary, SIAM J. Sci. Comput. 41, 2019): λ = 6.

    Errors that follow each other, such as those of a network's layers, add
    up likewise: `num_terms` is then the number of all summed products.
    """
    return 6 * num_terms**0.5 * torch.finfo(torch.float32).eps / 2


def assert_equal(ours, theirs):
    """Fails, and names the tensor, unless two mappings or sequences of
    tensors have equal bits, or both NaN."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def without_head(weights):
    """Those of a model's weights that are OpenCLIP's."""
    ours = ("class_head.", "statistics.")
    return {name: value for name, value in weights.items() if not name.startswith(ours)}


def plain_model(model_name, weights):
    """Returns stock OpenCLIP's model with `weights`, in evaluation mode."""
    model = open_clip.create_model(model_name, load_weights=False, pretrained_text=False)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def add_to_cache(cache, repo, *files, commit="0" * 40):
    """Moves files into the cache of huggingface_hub, as after a download,
    and marks missing files as absent."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    absent = folder / ".no_exist" / commit
    absent.mkdir(parents=True, exist_ok=True)
    (absent / "config.json").touch()
    for file in files:
        shutil.move(file, snapshot / file.name)


def write_tokenizer(folder, list_of_words=LIST_OF_WORDS, mark=""):
    """Writes a Hugging Face tokenizer of a few words, special ones among
    them, and returns its files.

    With a `mark`, Ġ or ▁, a word after a space begins with it, and one at
    the start of a caption does not.
    """
    splits = {
        "": Whitespace(),
        "Ġ": ByteLevel(add_prefix_space=False),
        "▁": Metaspace(prepend_scheme="never"),
    }
    words = {word: index for index, word in enumerate(list_of_words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splits[mark]
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Metaspace() if mark == "▁" else decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(
        *((end, words[end]) for end in ("[SEP]", "[CLS]"))
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return list(folder.iterdir())


def write_bert(folder):
    """Writes a BERT of random weights with its tokenizer, as transformers
    saves them, and returns its folder."""
    write_tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=len(LIST_OF_WORDS),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=20,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def write_hf_text_model(folder, **cfg):
    """Writes the configuration of a model with a BERT of random weights as
    its text tower, and returns its --model."""
    write_tokenizer(folder)
    tower = write_bert(folder / "tower")
    text = {
        "hf_model_name": str(tower),
        "hf_tokenizer_name": str(folder),
        "hf_pooler_type": "cls_pooler",
    }
    return write_model(folder, text=text, **cfg)


def altered_authors(folder, **changes):
    """Writes the authors' checkpoint with some tensors replaced, or removed
    if None, and returns its file."""
    checkpoint = torch.load(AUTHORS, weights_only=True)
    state = checkpoint["state_dict"] | {f"module.{name}": value for name, value in changes.items()}
    checkpoint["state_dict"] = {name: value for name, value in state.items() if value is not None}
    torch.save(checkpoint, folder / "altered.pt")
    return folder / "altered.pt"
