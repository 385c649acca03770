"""A head that reads the pooled vector: recorded in checkpoints, and respected
wherever the head is used."""

import pytest
from support.training_runs import error_of, execute, failure, load, run_train, superclip_train


@pytest.fixture(scope="module")
def run(small_model, short_run, tmp_path_factory):
    """The folder of a run whose head reads the pooled vector."""
    folder = tmp_path_factory.mktemp("head-input")
    flags = f"--model {small_model} --superclip --superclip-head-input pooled"
    run_train(short_run, flags, cwd=folder)
    return folder / "logs/run"


def test_a_checkpoint_records_what_the_head_reads_and_refuses_another_input(
    run, small_model, short_run, tmp_path
):
    assert load(run)["state_dict"]["class_head.input"] == 1
    again = f"{short_run} --model {small_model} --superclip"
    for flag in ("--resume", "--pretrained"):
        flags = f"{again} {flag} {run}/checkpoints/epoch_1.pt"
        assert error_of(superclip_train, flags, cwd=tmp_path) == (
            "error: --superclip-head-input is patches, and the weights' class head reads "
            "pooled: give --superclip-head-input pooled, or weights without a head, as superclip "
            "export writes them, for a new one"
        )
        assert not (tmp_path / "logs").exists()


def test_a_run_resumes_with_the_same_input(run, small_model, short_run, tmp_path):
    flags = f"--model {small_model} --superclip --superclip-head-input pooled --epochs 2"
    run_train(short_run, flags, f"--resume {run}/checkpoints/epoch_1.pt", cwd=tmp_path)
    resumed = load(tmp_path / "logs/run", epoch=2)
    assert resumed["state_dict"]["statistics.num_captions"] == 128


def test_words_and_export_read_what_the_head_reads(run, csv_data, tmp_path):
    picture, exported = next(csv_data.parent.glob("*.png")), tmp_path / "exported"
    checkpoint = run / "checkpoints/epoch_1.pt"
    execute(f"export {checkpoint} --out {exported} --with-head")
    command = f"words {picture} --words cat,dog,red --model"
    found = [execute(f"{command} {model}") for model in (checkpoint, exported)]
    assert found[0] == found[1]
    assert "--heatmap: the class head of" in failure(
        f"words {picture} --model {exported} --heatmap --out {tmp_path}/words"
    )
    assert not (tmp_path / "words").exists()
