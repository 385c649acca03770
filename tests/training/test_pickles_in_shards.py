"""Training with --superclip decodes no pickle in a shard, which could run code."""

import io
import os
import pickle

import pytest
import webdataset
from PIL import Image
from support.models import write_model
from support.training_runs import call


class Code:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.makedirs, (self.folder, 0o777, True)


LONG = ["--superclip-captions", "long", "--superclip-long-caption", "long.txt"]


@pytest.mark.parametrize(
    "more", [[], ["--dataset-resampled"], LONG], ids=["pass", "resampled", "long captions"]
)
@pytest.mark.parametrize("member", ["pyd", "meta.pickle"])
def test_a_pickle_in_a_shard_is_not_loaded_in_training_and_validation(member, more, tmp_path):
    image = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(image, "PNG")
    with webdataset.TarWriter(f"{tmp_path}/0.tar") as shard:
        for number in range(4):
            texts = {"txt": "a red cat", "long.txt": "a red cat and a dog"}
            code = pickle.dumps(Code(f"{tmp_path}/ran"))
            shard.write({"__key__": str(number), "png": image.getvalue(), member: code, **texts})
    argv = [
        "train",
        "--superclip",
        "--train-data",
        f"{tmp_path}/0.tar",
        "--train-num-samples",
        "4",
        "--batch-size",
        "2",
        "--val-data",
        f"{tmp_path}/0.tar",
        "--val-num-samples",
        "4",
        "--dataset-type",
        "webdataset",
        "--epochs",
        "1",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--warmup",
        "1",
        "--logs",
        f"{tmp_path}/logs",
        "--name",
        "run",
        "--model",
        write_model(
            tmp_path / "model", {"layers": 1, "width": 32}, {"layers": 1, "width": 32, "heads": 2}
        ),
    ]
    if "--dataset-resampled" in more:
        argv[argv.index("--workers") + 1] = "1"
    call(*argv, *more)
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
    assert not (tmp_path / "ran").exists()
