"""A head that reads the pooled vector, or both: recorded in checkpoints, and respected wherever
the head is used."""

import json

import pytest
from support.training_runs import completed, error_of, load, superclip_train

from openclip_superclip.__main__ import main

READS = ("pooled", "both")


@pytest.fixture(scope="module")
def runs(small_model, train_flags, tmp_path_factory):
    """A folder with a run for each input of the head."""
    folder = tmp_path_factory.mktemp("head-input")
    for reads in READS:
        argv = [
            *train_flags,
            "--model",
            small_model,
            "--superclip",
            "--superclip-head-input",
            reads,
            "--name",
            reads,
        ]
        completed(superclip_train, *argv, cwd=folder)
    return folder


def checkpoint(runs, reads):
    return runs / f"logs/{reads}/checkpoints/epoch_1.pt"


@pytest.mark.parametrize("reads", READS)
def test_a_checkpoint_records_what_the_head_reads_and_refuses_another_input(
    reads, runs, small_model, train_flags
):
    assert load(runs / "logs" / reads)["state_dict"]["class_head.input"] == 1 + READS.index(reads)
    argv = [*train_flags, "--model", small_model, "--superclip", "--name", "again"]
    for flags in (["--resume", checkpoint(runs, reads)], ["--pretrained", checkpoint(runs, reads)]):
        assert error_of(superclip_train, *argv, *flags, cwd=runs) == (
            "error: --superclip-head-input is patches, and the weights' class head reads "
            f"{reads}: give "
            f"--superclip-head-input {reads}, or weights without a head, as superclip export "
            "writes them, for a new one"
        )
        assert not (runs / "logs/again").exists()


def test_a_run_resumes_with_the_same_input(runs, small_model, train_flags):
    argv = [*train_flags, "--model", small_model, "--superclip", "--superclip-head-input", "both"]
    argv += ["--resume", checkpoint(runs, "both"), "--name", "resumed", "--epochs", "2"]
    completed(superclip_train, *argv, cwd=runs)
    assert load(runs / "logs/resumed", epoch=2)["state_dict"]["statistics.num_captions"] == 128


@pytest.mark.parametrize("reads", READS)
def test_words_export_and_audit_read_what_the_head_reads(reads, runs, csv_data, tmp_path, capsys):
    picture = next(csv_data.parent.glob("*.png"))
    exported = tmp_path / "exported"
    assert (
        main(["export", str(checkpoint(runs, reads)), "--out", str(exported), "--with-head"]) == 0
    )
    capsys.readouterr()
    found = []
    for model in (checkpoint(runs, reads), exported):
        assert (
            main(["words", str(picture), "--model", str(model), "--words", "cat,dog,red", "--json"])
            == 0
        )
        found.append(json.loads(capsys.readouterr().out)["words"])
    assert found[0] == found[1]
    heatmap = [
        "words",
        str(picture),
        "--model",
        str(exported),
        "--heatmap",
        "--out",
        str(tmp_path / "words"),
    ]
    if reads == "pooled":
        assert main(heatmap) == 1
        assert "--heatmap: the class head of" in capsys.readouterr().err
        assert not (tmp_path / "words").exists()
    else:
        assert main(heatmap) == 0
    audit = ["audit", str(csv_data), "--model", str(exported), "--out", str(tmp_path / "audit")]
    assert main([*audit, "--csv-separator", "\t"]) == 0
