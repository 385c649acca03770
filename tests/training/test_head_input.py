"""A head that reads the pooled vector, or both: recorded in checkpoints,
and respected wherever the head is used."""

import pytest
from support import parametrize
from support.training_runs import error_of, execute, failure, load, run_train, superclip_train

READS = ("pooled", "both")


@pytest.fixture(scope="module")
def runs(small_model, short_run, tmp_path_factory):
    """A folder with a run for each input of the head."""
    folder = tmp_path_factory.mktemp("head-input")
    for reads in READS:
        flags = f"--model {small_model} --superclip --superclip-head-input {reads} --name {reads}"
        run_train(short_run, flags, cwd=folder)
    return folder


def checkpoint(runs, reads):
    return runs / f"logs/{reads}/checkpoints/epoch_1.pt"


@parametrize("reads", READS)
def test_a_checkpoint_records_what_the_head_reads_and_refuses_another_input(
    reads, runs, small_model, short_run
):
    assert load(runs / "logs" / reads)["state_dict"]["class_head.input"] == 1 + READS.index(reads)
    again = f"{short_run} --model {small_model} --superclip --name again"
    for flag in ("--resume", "--pretrained"):
        flags = f"{again} {flag} {checkpoint(runs, reads)}"
        assert error_of(superclip_train, flags, cwd=runs) == (
            "error: --superclip-head-input is patches, and the weights' class head reads "
            f"{reads}: give "
            f"--superclip-head-input {reads}, or weights without a head, as superclip export "
            "writes them, for a new one"
        )
        assert not (runs / "logs/again").exists()


def test_a_run_resumes_with_the_same_input(runs, small_model, short_run):
    flags = f"--model {small_model} --superclip --superclip-head-input both --name resumed"
    resume = f"--resume {checkpoint(runs, 'both')} --epochs 2"
    run_train(short_run, flags, resume, cwd=runs)
    assert load(runs / "logs/resumed", epoch=2)["state_dict"]["statistics.num_captions"] == 128


@parametrize("reads", READS)
def test_words_and_export_read_what_the_head_reads(reads, runs, csv_data, tmp_path):
    picture, exported = next(csv_data.parent.glob("*.png")), tmp_path / "exported"
    execute(f"export {checkpoint(runs, reads)} --out {exported} --with-head")
    words = f"words {picture} --words cat,dog,red --model"
    assert execute(f"{words} {checkpoint(runs, reads)}") == execute(f"{words} {exported}")
    heatmap = f"words {picture} --model {exported} --heatmap --out {tmp_path}/words"
    if reads == "pooled":
        assert "--heatmap: the class head of" in failure(heatmap)
        assert not (tmp_path / "words").exists()
    else:
        execute(heatmap)
