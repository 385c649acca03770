"""Words and their weights: a run, its checkpoint and its export agree, also
on a hub and with --superclip-idf FILE."""

import shutil

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from PIL import Image
from support import read_json, write_json
from support.data import write_images, write_table
from support.models import write_model
from support.training_runs import execute, run_train
from transformers import CLIPTokenizer

import openclip_superclip as superclip
from openclip_superclip.checkpoints.hugging_face import as_hugging_face, save_tokenizer
from openclip_superclip.checkpoints.weights import save_weights
from openclip_superclip.data.captions import tokenizer_identity
from openclip_superclip.data.frequencies import read_frequencies
from openclip_superclip.method.idf import idf
from openclip_superclip.words.lexicon import open_lexicon
from openclip_superclip.words.open_checkpoint import open_with_head

TRAIN = (
    "--csv-separator , --csv-img-key image --csv-caption-key caption --batch-size 32 --epochs 1 "
    "--workers 0 --lr 3e-3 --warmup 1 --device cpu"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A run `logs/run` with --superclip-idf df.safetensors, and its export
    `exported`; not to be changed.

    The file counts other captions than the run is trained on.
    """
    work = tmp_path_factory.mktemp("work")
    model = write_model(work / "model", text={"layers": 1})
    pairs = write_images(work / "images", 64, 0)
    write_table(work / "train.csv", pairs)
    write_table(
        work / "counted.csv",
        [(pairs[0][0], caption) for caption in ["red"] * 90 + ["blue", "low"] * 10],
    )
    execute(f"frequencies {work}/counted.csv --tokenizer-of {model} --out {work}/df.safetensors")
    # relative to the run's working directory
    data = f"--model {model} --train-data train.csv --superclip --superclip-idf df.safetensors"
    run_train(data, TRAIN, "--name run", cwd=work)
    checkpoint = work / "logs/run/checkpoints/epoch_1.pt"
    execute(f"export {checkpoint} --out {work}/exported --with-head --hub someone/words")
    return work


# The weights of --superclip-idf FILE


def expected_weights(work):
    frequencies = read_frequencies(work / "df.safetensors")
    weights = idf(frequencies.document_frequency, frequencies.num_captions)
    weights[[0, -2, -1]] = 0  # padding, start and end
    return weights


def test_words_are_weighted_as_in_training_without_the_file_too(work, tmp_path):
    run, exported = work / "logs/run", work / "exported"
    checkpoint = run / "checkpoints/epoch_1.pt"
    execute(f"average {checkpoint} {checkpoint} --out {tmp_path}/average.pt")
    execute(f"average {exported} {exported} --out {tmp_path}/between.pt")
    execute(f"export {exported} --with-head --out {tmp_path}/again")
    shutil.copy(checkpoint, tmp_path / "lone.pt")
    weights = expected_weights(work)
    (red,), (blue,) = map(
        open_clip.get_tokenizer(f"local-dir:{work}/model").encode, ("red", "blue")
    )
    assert weights[blue] > 5 * weights[red]  # the run itself saw both equally often
    made = [tmp_path / name for name in ("average.pt", "between.pt", "again", "lone.pt")]
    for model in (run, checkpoint, exported, *made):
        architecture = f"local-dir:{work}/model" if model.name == "lone.pt" else None
        assert torch.equal(open_with_head(model, architecture).token_weights, weights), model
    head = (exported / "superclip_head.safetensors").read_bytes()
    assert b"df.safetensors" not in head  # a published file does not name a path


@pytest.fixture
def of_version_0_2(work, tmp_path):
    """A copy of the run as version 0.2 saved it, without the counts of the
    file."""
    for name in ("model", "df.safetensors"):
        (tmp_path / name).symlink_to(work / name)
    shutil.copytree(work / "logs", tmp_path / "logs")
    file = tmp_path / "logs/run/checkpoints/epoch_1.pt"
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {
        name: value for name, value in state.items() if "fixed_idf" not in name
    }
    assert len(checkpoint["state_dict"]) == len(state) - 2
    torch.save(checkpoint, file)
    return tmp_path


def test_the_file_is_read_if_a_checkpoint_lacks_its_counts_and_its_absence_is_an_error(
    of_version_0_2, work, refused
):
    run = of_version_0_2 / "logs/run"
    assert torch.equal(open_with_head(run).token_weights, expected_weights(work))
    execute(f"export {run}/checkpoints/epoch_1.pt --out {of_version_0_2}/out --with-head")
    (of_version_0_2 / "df.safetensors").unlink()
    assert torch.equal(open_with_head(of_version_0_2 / "out").token_weights, expected_weights(work))
    Image.new("RGB", (32, 32)).save(of_version_0_2 / "image.png")
    shutil.copy(work / "train.csv", of_version_0_2)
    for command in (
        "words image.png --model logs/run",
        "export logs/run/checkpoints/epoch_1.pt --with-head --out other",
    ):
        message = refused(of_version_0_2, command)
        assert f"{of_version_0_2}/df.safetensors is not a file of token frequencies" in message


def test_start_and_end_are_words_if_they_were_in_training(work, tmp_path):
    name = f"local-dir:{work}/model"
    model, _, _ = superclip.create_model_and_transforms(name, idf="off", special_tokens=True)
    options = {"model": name, "superclip_idf": "off", "superclip_special_tokens": True}
    save_weights(model.state_dict(), tmp_path / "run.pt", options)
    execute(f"export {tmp_path}/run.pt --out {tmp_path}/out --with-head")
    for file in ("run.pt", "out"):
        assert open_with_head(tmp_path / file).token_weights.eq(1).all()


def test_a_run_continues_with_the_counts_of_its_own_file(work, tmp_path):
    """Not with those in the weights that it starts from."""
    model = f"local-dir:{work}/exported"
    run = f"--model {model} --train-data {work}/train.csv --superclip {TRAIN}"
    pairs = [(work / "images/0.png", caption) for caption in ["blue"] * 9 + ["red"]]
    write_table(tmp_path / "other.csv", pairs)
    df = tmp_path / "df.safetensors"
    execute(f"frequencies {tmp_path}/other.csv --tokenizer-of {model} --out {df}")
    for flags in (f"--name with --superclip-idf {df}", "--name without"):
        output = run_train(run, flags, cwd=tmp_path).output
        assert "the weights contain a class head and the counts of 64 captions" in output
    weights = open_with_head(tmp_path / "logs/with").token_weights
    assert torch.equal(weights, expected_weights(tmp_path))
    opened = open_with_head(tmp_path / "logs/without")
    assert torch.equal(opened.token_weights, opened.model.statistics.idf())


# The words of an export


def test_the_words_of_clip_are_the_same_in_each_kind_of_tokenizer(tmp_path):
    stock = SimpleTokenizer()
    save_tokenizer(as_hugging_face(stock), tmp_path / "exported")
    merges = [merge for merge in stock.bpe_ranks if len(merge) == 2]
    CLIPTokenizer(vocab=stock.encoder, merges=merges).save_pretrained(tmp_path / "transformers")
    words = open_lexicon(stock, 9000).words  # of the most frequent tokens
    assert {"teal", "café"} <= {*open_lexicon(stock, 49408).words}
    options = {"context_length": 77, "clean": "lower"}
    for name in ("exported", "transformers"):
        tokenizer = HFTokenizer(str(tmp_path / name), strip_sep_token=name == "exported", **options)
        assert open_lexicon(tokenizer, 9000).words == words
        assert (tokenizer_identity(tokenizer) == tokenizer_identity(stock)) == (name == "exported")


# The hub


def test_an_export_names_no_folder_of_this_machine(work, tmp_path):
    execute(f"export {work}/exported --out {tmp_path}/out")
    config = read_json(tmp_path / "out/open_clip_config.json")
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "someone/words"
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = f"{work}/exported"
    write_json(tmp_path / "out/open_clip_config.json", config)
    execute(f"export {tmp_path}/out --out {tmp_path}/again")
    assert str(work) not in (tmp_path / "again/open_clip_config.json").read_text()
