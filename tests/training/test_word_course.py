"""When a run learned its words: records, summaries, files and errors."""

import csv
import json
import shutil

import open_clip
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.training_runs import completed, superclip_train

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.epoch_words import CourseFiles, find_course, write_epoch_words
from openclip_superclip.lab.words.learning import word_course
from openclip_superclip.method.idf import EpochWords


@pytest.fixture(scope="module")
def run(train_flags, tmp_path_factory):
    """The folder of a run of three epochs in bfloat16, and one of a run without records."""
    folder = tmp_path_factory.mktemp("course")
    argv = [
        *train_flags,
        "--epochs",
        "3",
        "--precision",
        "amp_bf16",
        "--save-frequency",
        "0",
        "--superclip",
    ]
    (with_words,) = completed(superclip_train, *argv, cwd=folder)
    (without,) = completed(
        superclip_train, *argv, "--superclip-word-course", "off", "--name", "without", cwd=folder
    )
    assert with_words.losses() == without.losses()
    assert not (folder / "logs/without/words").exists()
    return folder / "logs/run"


def test_a_run_records_its_words_and_the_command_shows_them(run, tmp_path, capsys):
    files = [*(f"epoch_{epoch}.safetensors" for epoch in (1, 2, 3)), "tokens.json"]
    assert sorted(path.name for path in (run / "words").iterdir()) == files
    course = find_course(run)
    words = course.read(3)
    held = {course.texts[token] for token in words.captions.nonzero().flatten().tolist()}
    assert {"cat", "blue"} <= held
    assert words.share_where_label[words.captions == 0].isnan().all()
    assert (
        main(
            ["words", "--course", str(run), str(run.parent / "run"), "--out", str(tmp_path / "out")]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "run: 192 captions in 3 epochs" in printed
    rows = list(csv.DictReader((tmp_path / "out/word_course.csv").read_text().splitlines()))
    assert {row["word"] for row in rows} == held
    assert {row["state"] for row in rows} <= {
        "learned",
        "not yet learned",
        "forgotten",
        "too rare to tell",
    }
    (first, _) = json.loads((tmp_path / "out/word_course.json").read_text())["runs"]
    assert first["captions"] == [64, 128, 192]
    assert (tmp_path / "out/word_course.png").read_bytes().startswith(b"\x89PNG")


def test_a_broken_file_is_named(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    words, command = tmp_path / "run/words", ["words", "--course", "run", "--out", "out"]
    (words / "epoch_2.safetensors").write_bytes(b"cut")
    assert "epoch_2.safetensors is not a file of words" in refused(tmp_path, *command)
    with safe_open(run / "words/epoch_2.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(
            tensors | {"captions": torch.ones(7).long()},
            words / "epoch_2.safetensors",
            file.metadata(),
        )
    assert "epoch_2.safetensors belongs to another tokenizer" in refused(tmp_path, *command)


def test_a_missing_epoch_counts_as_the_next_one_and_runs_of_the_same_name_are_distinguished(
    run, tmp_path
):
    with_all, with_gap = tmp_path / "all/run", tmp_path / "gap/run"
    for copy in (with_all, with_gap):
        shutil.copytree(run, copy)
    (with_gap / "words/epoch_2.safetensors").rename(tmp_path / "moved")
    assert (
        main(["words", "--course", str(with_all), str(with_gap), "--out", str(tmp_path / "out")])
        == 0
    )
    whole, gap = json.loads((tmp_path / "out/word_course.json").read_text())["runs"]
    assert (whole["run"], whole["epochs"], whole["captions"]) == (
        "all/run",
        [1, 2, 3],
        [64, 128, 192],
    )
    assert (gap["run"], gap["epochs"], gap["captions"]) == ("gap/run", [1, 3], [64, 192])


def test_equal_epochs_give_equal_bytes(run, tmp_path):
    words, tokenizer = find_course(run).read(2), open_clip.get_tokenizer("ViT-B-32")
    for copy in "abcd":
        write_epoch_words(tmp_path / copy, 2, words, tokenizer)
    assert (
        len({(tmp_path / copy / "words/epoch_2.safetensors").read_bytes() for copy in "abcd"}) == 1
    )
    torch.testing.assert_close(
        find_course(tmp_path / "a").read(2), words, rtol=0, atol=0, equal_nan=True
    )


def test_a_word_is_learned_not_yet_learned_forgotten_or_too_rare_to_tell(monkeypatch):
    lifts = {
        "learned": [1, 8, 8, 9],
        "not yet": [1, 2, 3, 3],
        "forgotten": [1, 9, 5, 1.5],
        "rare": [9, 9, 9, 9],
    }
    lifts[","] = [9, 9, 9, 9]
    # of 1,000 per epoch; the third is evaluated every other epoch
    captions = torch.tensor([200, 30, 10, 1, 900])

    def read(_, epoch: int) -> EpochWords:
        where_not = torch.full((5,), 0.01)
        return EpochWords(
            captions,
            where_not * torch.tensor([lift[epoch - 1] for lift in lifts.values()]),
            where_not,
            1000,
            1000,
        )

    monkeypatch.setattr(CourseFiles, "read", read)
    course = word_course("run", CourseFiles(None, "", list(lifts), [1, 2, 3, 4]))
    states = ["learned", "not yet learned", "learned", "too rare to tell"]
    assert [course.state(token) for token in range(4)] == states
    assert course.learned_after(0) == 2000
    assert course.learned_after(2) == 2000
    assert course.lift[2] == pytest.approx((5 + 1.5) / 2)
    assert course.band.tolist() == [0, 1, 1, -1, -1]
    assert course.captions[4] == 0  # a comma is not a word
    lifts["forgotten"] = [9, 9, 1, 1]
    forgotten = word_course("run", CourseFiles(None, "", list(lifts), [1, 2, 3, 4]))
    assert forgotten.state(2) == "forgotten"
    assert forgotten.known[1].tolist() == [0, 0.5, 0.5, 0]
