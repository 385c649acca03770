"""Training with --superclip executes no code from data: pickles in shards,
and PostScript, for which Pillow starts Ghostscript."""

import pickle
import subprocess
import sys

import pytest
from PIL import EpsImagePlugin, Image
from support import parametrize, write_program
from support.data import EPS, IMAGE, MakesFolder, write_colours, write_table, write_tar
from support.models import write_model, write_weights
from support.training_runs import completed, failure, run_train, train_on_five_classes
from webdataset import autodecode

OURS = [
    "",
    "--dataset-resampled --workers 1",
    "--superclip-captions long --superclip-long-caption long.txt",
]


@pytest.fixture
def train_on(small_model, short_run, tmp_path):
    """Trains on a shard with these samples and validates on it; returns
    whether code ran."""

    def train_on(flags, *members):
        texts = {"txt": "a red cat", "long.txt": "a red cat and a dog"}
        samples = [{**texts, **one} for one in ({"png": IMAGE}, *members)] * 4
        write_tar(tmp_path / "0.tar", samples)
        data = (
            f"--train-data {tmp_path}/0.tar --train-num-samples {len(samples)} --val-data "
            f"{tmp_path}/0.tar --val-num-samples 4 --dataset-type webdataset --batch-size 4"
        )
        run_train(short_run, f"--model {small_model}", data, flags, cwd=tmp_path)
        assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
        return (tmp_path / "ran").exists()

    return train_on


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` that leaves a file, and a Pillow that would start it, as in a
    new process."""
    write_program(tmp_path / "bin/gs", f"touch {tmp_path}/ran")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    Image.init()
    reader = EpsImagePlugin.EpsImageFile, EpsImagePlugin._accept
    monkeypatch.setattr(Image, "OPEN", Image.OPEN | {"EPS": reader})
    monkeypatch.setattr(Image, "ID", list(dict.fromkeys([*Image.ID, "EPS"])))
    monkeypatch.setattr(autodecode, "default_pre_handlers", [autodecode.gzfilter])


@pytest.fixture
def members(tmp_path):
    """Members of a sample that run code where they are decoded, by their
    kind."""
    code = pickle.dumps(MakesFolder(f"{tmp_path}/ran"))
    return {
        "pyd": {"png": IMAGE, "pyd": code},
        "pickle": {"png": IMAGE, "meta.pickle": code},
        "jpg": {"jpg": EPS},
        "eps": {"png": IMAGE, "eps": EPS},
    }


@parametrize("flags", OURS, ids=["pass", "resampled", "long captions"])
def test_code_in_a_shard_does_not_run_in_training_and_validation(
    flags, members, train_on, ghostscript
):
    assert not train_on(f"{flags} --superclip", *members.values())


@parametrize("kind", ["pyd", "pickle", "jpg", "eps"])
def test_stock_training_runs_it(kind, members, train_on, ghostscript):
    assert train_on("", members[kind])


def test_postscript_in_a_table_and_in_imagenet_starts_nothing(short_run, ghostscript, tmp_path):
    pairs = []
    for number in range(40):
        pairs.append((tmp_path / f"val/{'ab'[number % 2]}/{number}.jpg", "a red cat"))
        pairs[-1][0].parent.mkdir(parents=True, exist_ok=True)
        pairs[-1][0].write_bytes(EPS if number == 20 else IMAGE)
    write_table(tmp_path / "pairs.csv", pairs)
    flags = f"--train-data {tmp_path}/pairs.csv --csv-separator , --superclip --workers 1"
    with pytest.raises(AssertionError, match="cannot identify image file"):
        run_train(short_run, flags, cwd=tmp_path)
    flags = f"--imagenet-val {tmp_path}/val --superclip --workers 1"
    with pytest.raises(AssertionError, match="cannot identify image file"):
        completed(train_on_five_classes, short_run, flags, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()


@parametrize("workers", [0, 1])
@parametrize("in_shards", [True, False])
def test_code_in_a_data_set_does_not_run_in_an_evaluation(
    in_shards, workers, members, ghostscript, tmp_path
):
    name = "colours" if in_shards else "imagenet_sketch"
    if in_shards:
        colours = write_colours(tmp_path / "data/colours")
        samples = [{"cls": 1, **members[kind]} for kind in ("pyd", "pickle", "jpg")]
        write_tar(colours / "test/1.tar", samples)
        (colours / "test/nshards.txt").write_text("2\n")
    else:
        (tmp_path / "data/imagenet_sketch/n01443537").mkdir(parents=True)
        (tmp_path / "data/imagenet_sketch/n01443537/0.jpg").write_bytes(EPS)
    write_weights(write_model(tmp_path / "model"))
    flags = f"--data {tmp_path}/data --datasets {name} --workers {workers} --device cpu"
    error = failure(f"evaluate {tmp_path}/model {flags} --out {tmp_path}/out")
    assert "cannot identify image file" in error
    assert not (tmp_path / "ran").exists()


def test_a_worker_that_is_not_forked_opens_no_postscript(ghostscript, tmp_path):
    (tmp_path / "image.jpg").write_bytes(EPS)
    code = (
        "from PIL import Image; from openclip_superclip.data.images import before_decoding; "
        "before_decoding('.txt', b''); Image.open('image.jpg').load()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert "UnidentifiedImageError" in done.stderr
    assert not (tmp_path / "ran").exists()
