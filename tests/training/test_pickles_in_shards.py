"""Training with --superclip decodes no pickle in a shard, which could run
code."""

import pickle

from support import parametrize
from support.data import IMAGE, MakesFolder, write_tar
from support.training_runs import run_train


@parametrize(
    "flags",
    [
        "",
        "--dataset-resampled --workers 1",
        "--superclip-captions long --superclip-long-caption long.txt",
    ],
    ids=["pass", "resampled", "long captions"],
)
@parametrize("member", ["pyd", "meta.pickle"])
def test_a_pickle_in_a_shard_is_not_loaded_in_training_and_validation(
    member, flags, small_model, short_run, tmp_path
):
    code = pickle.dumps(MakesFolder(f"{tmp_path}/ran"))
    texts = {"txt": "a red cat", "long.txt": "a red cat and a dog"}
    write_tar(tmp_path / "0.tar", [{"png": IMAGE, member: code, **texts}] * 4)
    data = (
        f"--train-data {tmp_path}/0.tar --train-num-samples 4 --val-data {tmp_path}/0.tar "
        "--val-num-samples 4 --dataset-type webdataset --batch-size 2 --superclip"
    )
    run_train(short_run, f"--model {small_model}", data, flags, cwd=tmp_path)
    assert (tmp_path / "logs/run/checkpoints/epoch_1.pt").is_file()
    assert not (tmp_path / "ran").exists()
