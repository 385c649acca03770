"""When a run learned its words: records, summaries, files and errors."""

import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import read_json, read_rows, table
from support.training_runs import execute, run_train

from openclip_superclip.checkpoints.epoch_words import CourseFiles, find_course
from openclip_superclip.method.idf import EpochWords
from openclip_superclip.words.word_course import word_course


@pytest.fixture(scope="module")
def run(short_run, tmp_path_factory):
    """The folder of a run of three epochs in bfloat16, and one of a run
    without records."""
    folder = tmp_path_factory.mktemp("course")
    flags = f"{short_run} --epochs 3 --precision amp_bf16 --save-frequency 0 --superclip"
    with_words = run_train(flags, cwd=folder)
    without = run_train(flags, "--superclip-word-course off --name without", cwd=folder)
    assert with_words.losses() == without.losses()
    assert not (folder / "logs/without/words").exists()
    return folder / "logs/run"


def test_a_run_records_its_words_and_the_command_shows_them(run, tmp_path):
    files = [*(f"epoch_{epoch}.safetensors" for epoch in (1, 2, 3)), "tokens.json"]
    assert sorted(path.name for path in (run / "words").iterdir()) == files
    course = find_course(run)
    words = course.read(3)
    held = {course.texts[token] for token in words.captions.nonzero().flatten().tolist()}
    assert {"cat", "blue"} <= held
    assert words.share_where_label[words.captions == 0].isnan().all()
    printed = execute(f"words --course {run} {run.parent}/run --out {tmp_path}/out")
    assert "run: 192 captions in 3 epochs" in printed
    rows = read_rows(tmp_path / "out/word_course.csv")
    assert {row["word"] for row in rows} == held
    assert {row["state"] for row in rows} <= {
        "learned",
        "not yet learned",
        "forgotten",
        "too rare to judge",
    }
    (first, _) = read_json(tmp_path / "out/word_course.json")["runs"]
    assert first["captions"] == [64, 128, 192]
    assert (tmp_path / "out/word_course.png").read_bytes().startswith(b"\x89PNG")


def test_a_broken_file_is_named(run, tmp_path, refused):
    shutil.copytree(run, tmp_path / "run")
    words, command = tmp_path / "run/words", "words --course run --out out"
    (words / "epoch_2.safetensors").write_bytes(b"cut")
    assert "epoch_2.safetensors is not a file of words" in refused(tmp_path, command)
    with safe_open(run / "words/epoch_2.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(
            tensors | {"captions": torch.ones(7).long()},
            words / "epoch_2.safetensors",
            file.metadata(),
        )
    assert "epoch_2.safetensors belongs to another tokenizer" in refused(tmp_path, command)


def test_a_missing_epoch_counts_as_the_next_one_and_runs_of_the_same_name_are_distinguished(
    run, tmp_path
):
    with_all, with_gap = tmp_path / "all/run", tmp_path / "gap/run"
    for copy in (with_all, with_gap):
        shutil.copytree(run, copy)
    (with_gap / "words/epoch_2.safetensors").rename(tmp_path / "moved")
    execute(f"words --course {with_all} {with_gap} --out {tmp_path}/out")
    whole, gap = read_json(tmp_path / "out/word_course.json")["runs"]
    assert (whole["run"], whole["epochs"], whole["captions"]) == (
        "all/run",
        [1, 2, 3],
        [64, 128, 192],
    )
    assert (gap["run"], gap["epochs"], gap["captions"]) == ("gap/run", [1, 3], [64, 192])


WORDS = table("runs: word states")


def test_a_word_is_learned_not_yet_learned_forgotten_or_too_rare_to_tell(monkeypatch):
    lifts, captions = (torch.tensor(column) for column in zip(*WORDS.values(), strict=True))

    def read(_, epoch):
        where_not = torch.full((4,), 0.01)
        return EpochWords(captions, where_not * lifts[:, epoch - 1], where_not, 1000, 1000)

    monkeypatch.setattr(CourseFiles, "read", read)
    course = word_course("run", CourseFiles(None, "", list(WORDS), [1, 2, 3, 4]))
    assert [course.state(token) for token in range(4)] == list(WORDS)
    assert course.learned_after(0) == 2000
    assert course.band.tolist() == [0, 1, 1, -1]
    assert course.known[1].tolist() == [0, 0.5, 0.5, 0]
