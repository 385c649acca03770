"""`superclip audit` on a model that was trained: what it finds, and that stopped, parted and shared calls equal one."""

import csv
import io
import json
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.models import write_model
from support.training_runs import run_ranks, superclip_train
from webdataset import TarWriter

from openclip_superclip.__main__ import main
from openclip_superclip.data.inspection import inspect_shard

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 170, 60), "yellow": (240, 220, 40)}
CORNERS = [(0, 0), (0, 16), (16, 0), (16, 16)]
NUM, SWAPPED = 96, 12
BAD = {20: "no such file", 30: "no readable image", 40: "no caption"}


def audit(*argv) -> int:
    return main(["audit", *map(str, argv)])


def scores(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def assert_equal_scores(out: Path, other: Path) -> None:
    """Fails where two audits differ by more than the size of a batch changes in a sum."""
    ours, theirs = scores(out), scores(other)
    numbers = ("class_loss", "support", "clip_score")
    for one, two in zip(ours, theirs, strict=True):
        for name in numbers:
            assert one.pop(name, None) == pytest.approx(two.pop(name, None), abs=1e-4)
        (ours_words, theirs_words) = ([w["word"] for w in record.pop("words", [])] for record in (one, two))
        assert ours_words == theirs_words
        one.pop("offered", None), two.pop("offered", None)
        assert one == two


def write_pictures(folder: Path, number: int, seed: int) -> list[tuple[Path, str]]:
    """Pictures of one or two coloured squares, and captions that name them."""
    rng, found = random.Random(seed), []
    folder.mkdir(parents=True)
    for index in range(number):
        names = rng.sample(list(COLOURS), rng.choice([1, 2]))
        image = Image.new("RGB", (32, 32), (235, 235, 235))
        for name, (left, top) in zip(names, rng.sample(CORNERS, len(names)), strict=True):
            image.paste(COLOURS[name], (left + 2, top + 2, left + 14, top + 14))
        image.save(folder / f"{index}.png")
        found.append((folder / f"{index}.png", " ".join(names)))
    return found


def write_table(file: Path, pairs: list[tuple[Path, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["image", "caption"], *pairs])
    file.write_text(text.getvalue())


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A run that has learned the names of colours; a table, a folder and shards of new pictures with errors."""
    work = tmp_path_factory.mktemp("audit")
    write_table(work / "train.csv", write_pictures(work / "trained", 256, 0))
    (run,) = run_ranks(
        superclip_train, "--model", write_model(work / "model", text={"layers": 1}), "--superclip", "--train-data",
        work / "train.csv", "--csv-separator", ",", "--csv-img-key", "image", "--csv-caption-key", "caption",
        "--batch-size", 32, "--epochs", 6, "--workers", 0, "--lr", 3e-3, "--warmup", 5, "--device", "cpu",
        "--precision", "fp32", "--name", "run", "--save-frequency", 6, cwd=work,
    )  # fmt: skip
    assert run.returncode == 0, run.output[-3000:]
    shown = write_pictures(work / "pictures", NUM, 1)
    wrong = [" ".join(sorted(set(COLOURS) - set(caption.split()))[: len(caption.split())]) for _, caption in shown]
    pairs = [(path, wrong[row] if row < SWAPPED else caption) for row, (path, caption) in enumerate(shown)]
    with TarWriter(str(work / "0.tar")) as first, TarWriter(str(work / "1.tar")) as second:
        for row, (path, caption) in enumerate(pairs):
            members = {"png": path.read_bytes(), "txt": caption, "json": {"uid": f"{row:032x}"}}
            (first if row < 40 else second).write({"__key__": f"{row:03}", **members})
    for path, caption in pairs:
        path.with_suffix(".txt").write_text(caption)
    pairs[20] = (work / "nix.png", pairs[20][1])
    pairs[30] = (work / "cut.png", pairs[30][1])
    (work / "cut.png").write_bytes(pairs[0][0].read_bytes()[:60])
    pairs[40] = (pairs[40][0], "")
    write_table(work / "pairs.csv", pairs)
    return work


@pytest.fixture
def run(work) -> list:
    return ["--model", work / "logs" / "run", "--batch-size", 16, "--unreadable-max", 0.05]


@pytest.fixture(scope="module")
def audited(work, tmp_path_factory) -> tuple[Path, str]:
    """The audit of the table and what it printed."""
    out = tmp_path_factory.mktemp("audited") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed := io.StringIO())
        flags = ["--batch-size", 16, "--unreadable-max", 0.05, "--keep", 0.8]
        assert audit(work / "pairs.csv", "--model", work / "logs" / "run", "--out", out, *flags) == 0
    return out, printed.getvalue()


def test_wrong_captions_are_the_worst_their_words_are_marked_and_the_right_ones_offered(work, audited):
    out, printed = audited
    records = scores(out)
    assert [record["where"] for record in records] == [f"row {row + 1}" for row in range(NUM)]
    problems = {row: record["problem"].partition(" (")[0] for row, record in enumerate(records) if "problem" in record}
    assert problems == BAD
    good = [record for record in records if "problem" not in record]
    for name, sign in (("class_loss", -1), ("support", 1), ("clip_score", 1)):
        worst = sorted(good, key=lambda record: sign * record[name])[:SWAPPED]
        assert len([record for record in worst if record["place"][1] < SWAPPED]) >= SWAPPED - 2, name
    doubts = [[word["support"] < 0 for record in some for word in record["words"]] for some in (good[:12], good[12:])]
    assert np.mean(doubts[0]) > 0.8 and np.mean(doubts[1]) < 0.4  # six passes over 256 pictures
    assert all(record["offered"][0]["word"] in COLOURS for record in records[:SWAPPED])
    assert "93 pairs scored; left out: " in printed and "1 × no such file" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == dict.fromkeys(BAD.values(), 1)
    assert summary["kept"] == {"by": "both", "share": 0.8, "pairs": 74}


def test_the_page_shows_the_worst_pairs_and_asks_for_nothing_else(audited):
    page = (audited[0] / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 60
    assert page.count("<img") == 60 and "<script" not in page and "://" not in page
    first = page.split("<div class=pair>")[1]
    assert re.search(r"<mark title=\"probability [\d.]+%, expected \d+%\">(red|blue|green|yellow)</mark>", first)
    assert all(f"<td>{reason}" in page for reason in BAD.values())
    assert "The worst pairs by support and CLIP score" in page


def test_the_kept_rows_are_the_tables_own_and_hold_no_wrong_caption(work, audited):
    kept, rows = (path.read_text().splitlines() for path in (audited[0] / "kept.csv", work / "pairs.csv"))
    assert kept[0] == rows[0] and len(kept) == 75
    assert [row for row in rows if row in kept] == kept
    assert not set(kept) & set(rows[1 : SWAPPED - 1])
    assert (audited[0] / "kept.txt").read_text().splitlines() == [row.split(",")[0] for row in kept[1:]]


def test_a_call_that_was_killed_goes_on_without_losing_or_repeating_a_pair(work, audited, run, tmp_path, capsys):
    out, flags = tmp_path / "out", [work / "pairs.csv", *run, "--out", tmp_path / "out"]
    whole = (audited[0] / "scores.jsonl").read_bytes()
    assert audit(*flags) == 0
    assert (out / "scores.jsonl").read_bytes() == whole
    (out / "scores.jsonl").unlink()
    (out / "scores.jsonl.part").write_bytes(whole[: len(whole) // 2])  # in the midst of a line
    assert audit(*flags) == 0
    (number,) = re.findall(r"([\d,]+) pairs were scored before", capsys.readouterr().err)
    assert 0 < int(number) < NUM and int(number) % 16 == 0
    assert (out / "scores.jsonl").read_bytes() == whole


def test_parts_joined_equal_the_whole_and_are_asked_for(work, audited, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "2/3") == 0
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "1/3") == 0
    assert audit(work / "pairs.csv", *run, "--out", out, "--keep", 0.5) == 1
    assert "is an audit in 3 parts; not finished: --part 3/3\n" in capsys.readouterr().err
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "3/4") == 1
    assert "holds an audit with other parts: 3, and this is 4: give another" in capsys.readouterr().err
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "3/3") == 0
    assert audit(work / "pairs.csv", *run, "--out", out, "--keep", 0.5) == 0
    assert_equal_scores(out, audited[0])
    assert not [path for path in out.iterdir() if "-of-" in path.name or path.suffix in (".part", ".lock")]


def test_two_ranks_equal_one(work, audited, run, tmp_path):
    runs = run_ranks(audit, work / "pairs.csv", *run, "--out", tmp_path / "out", world_size=2, cwd=tmp_path)
    assert [one.returncode for one in runs] == [0, 0], runs[0].output
    assert_equal_scores(tmp_path / "out", audited[0])
    assert (tmp_path / "out" / "report.html").exists()


def test_kept_samples_of_shards_are_their_very_bytes(work, run, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--keep", 0.7, "--by", "support", "--write-shards"]
    assert audit(f"{work}/{{0..1}}.tar", *run, "--out", out, *flags) == 0
    assert f"{out}/kept/{{0..1}}.tar" in capsys.readouterr().out

    def members(folder: Path) -> dict[str, bytes]:
        found = {}
        for shard in ("0.tar", "1.tar"):
            with tarfile.open(folder / shard) as tar:
                found |= {member.name: tar.extractfile(member).read() for member in tar}
        return found

    kept, given = members(out / "kept"), members(work)
    assert kept.items() <= given.items()
    keys = (out / "kept.txt").read_text().splitlines()
    assert sorted(kept) == sorted(f"{key}.{suffix}" for key in keys for suffix in ("png", "txt", "json"))
    assert len(keys) == 67 and not set(keys) & {f"{row:03}" for row in range(SWAPPED - 1)}
    sizes = json.loads((out / "kept/sizes.json").read_text())
    assert {shard: inspect_shard(str(out / "kept" / shard)).num_samples for shard in sizes} == sizes
    uids = np.load(out / "kept.npy")
    assert uids.dtype == np.dtype("u8,u8") and uids["f1"].tolist() == list(map(int, keys))
    assert audit(f"{work}/{{0..1}}.tar", *run, "--out", out) == 0  # what was kept is there still, and told
    assert json.loads((out / "summary.json").read_text())["kept"]["pairs"] == 67 and (out / "kept").is_dir()
    assert audit(f"{work}/{{0..1}}.tar", *run, "--out", out, "--keep", 0.9, "--by", "class-loss") == 0
    assert len((out / "kept.txt").read_text().splitlines()) == 86  # from the scores that are there
    assert not (out / "kept").exists()  # those of the earlier call


def test_a_folder_and_a_model_without_a_head_give_clip_scores_alone(work, run, tmp_path, capsys):
    plain = tmp_path / "plain"
    assert main(["export", str(work / "logs/run/checkpoints/epoch_6.pt"), "--out", str(plain)]) == 0
    capsys.readouterr()
    refused = [work / "pictures", "--model", plain, "--out", tmp_path / "out", "--by", "class-loss"]
    assert audit(*refused) == 1
    assert "--by class-loss needs a class head, and" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert audit(*refused[:-2], "--keep", 0.5) == 0
    assert "no class head: CLIP score alone" in capsys.readouterr().out
    found = scores(tmp_path / "out")
    assert len(found) == NUM and not any({"class_loss", "words", "offered"} & record.keys() for record in found)
    assert (tmp_path / "out/kept.csv").read_text().startswith("image,caption\n")
    assert "CLIP score (cosine)" in (tmp_path / "out/report.html").read_text()


@pytest.fixture(scope="module")
def wrong(work) -> Path:
    """Data and folders that an audit cannot take."""
    (work / "semicolons.csv").write_text("image;caption\n0.png;red\n")
    (work / "elsewhere.csv").write_text("image,caption\nnix/0.png,red\nnix/1.png,blue\n")
    (work / "empty").mkdir()
    (work / "of-shards").mkdir()
    for name in ("0.tar", "1.tar"):
        (work / "of-shards" / name).symlink_to(work / name)
    first = work / "pictures" / "0.png"
    (work / "letters.csv").write_text(f"image\tcaption\n{first}\tred\n")
    (work / "full").mkdir()
    (work / "full" / "letter.txt").write_text("dear reader")
    (work / "run-without-checkpoint" / "checkpoints").mkdir(parents=True)
    (work / "text.tar").write_text("no tar")
    torch.save({"state_dict": {}}, work / "nothing.pt")
    return work


@pytest.mark.parametrize(("argv", "reason"), [
    (["semicolons.csv"], "none of the first 1 images of semicolons.csv exists, such as 0.png: paths are relative"),
    (["pairs.csv", "--csv-img-key", "file"], "--csv-img-key: pairs.csv has no column 'file'; its columns are image, "),
    (["nix.csv"], "DATA: there is no file nix.csv"),
    (["elsewhere.csv"], "none of the first 2 images of elsewhere.csv exists, such as nix/0.png: paths are rel"),
    (["empty"], "DATA: empty holds no pair: expected images with a .txt"),
    (["{0..1}.zip"], "DATA is {0..1}.zip: there is no such file or folder; expected a table"),
    (["{5..6}.tar"], "DATA: there is no file 5.tar"),
    (["pairs.csv", "--out", "full"], "--out: full is not empty and holds no audit: give another name"),
    (["pairs.csv", "--out", "text.tar"], "--out: text.tar cannot be written"),
    (["pairs.csv", "--model", "run-without-checkpoint"], "run-without-checkpoint is a run without a checkpoint"),
    (["pairs.csv", "--model", "nothing.pt"], "nothing.pt is no checkpoint of a model"),
    (["pairs.csv", "--part", "1/200"], "pairs.csv holds 96 pairs; expected no more parts (--part, processes of"),
    (["{0..1}.tar", "--part", "1/3"], "{0..1}.tar: a part is some of the shards, and there are 2; expected no more"),
    (["of-shards"], "DATA: of-shards is a folder of shards; expected 'of-shards/{0..1}.tar', in quotes"),
    (["letters.csv", "--csv-separator", "\\t", "--keep", "0.5"], "--csv-separator is '\\\\t'; --keep copies rows"),
    (["pairs.csv", "--keep", "0.5", "--write-shards"], "--write-shards is for shards, and DATA is pairs.csv"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_before_anything_is_written(argv, reason, wrong, capsys, monkeypatch):
    monkeypatch.chdir(wrong)
    given = [] if "--model" in argv else ["--model", "logs/run"]
    given += [] if "--out" in argv else ["--out", "nowhere"]
    assert audit(*argv, *given) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # after the columns of the table
    assert error.startswith("error: ") and reason in error
    assert not Path("nowhere").exists()


def test_a_folder_of_another_audit_and_data_that_is_mostly_unreadable_are_refused(work, audited, tmp_path, capsys):
    out, model = audited[0], work / "logs" / "run"
    before = (out / "scores.jsonl").read_bytes()
    assert audit(work / "train.csv", "--model", model, "--out", out) == 1
    assert (
        f"holds an audit with other data: {work}/pairs.csv, and this is {work}/train.csv: give another"
        in capsys.readouterr().err
    )
    assert main(["export", str(model / "checkpoints/epoch_6.pt"), "--out", str(tmp_path / "m"), "--with-head"]) == 0
    capsys.readouterr()
    assert audit(work / "pairs.csv", "--model", tmp_path / "m", "--out", out) == 1
    assert "holds an audit with other model: " in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == before
    assert audit(work / "pairs.csv", "--model", model, "--out", out) == 1  # 2 of 96 are more than 1 %
    told = capsys.readouterr().err
    assert "2 of 96 pairs have an image that cannot be read, more than --unreadable-max 0.01 allows" in told
    assert (out / "left_out.csv").read_text().count("\n") == 4


def test_what_has_changed_since_is_told_and_never_taken_for_what_was_scored(work, run, tmp_path, capsys):
    shard, out = tmp_path / "0.tar", tmp_path / "out"
    shard.write_bytes((work / "0.tar").read_bytes())
    assert audit(shard, *run, "--out", out) == 0
    before = (out / "scores.jsonl").read_bytes()
    shard.write_bytes(shard.read_bytes().replace(b"red", b"Red"))  # as long as before
    assert audit(shard, *run, "--out", out) == 1
    assert f"holds an audit with other data: {shard} has changed since: give another" in capsys.readouterr().err
    table, picture = tmp_path / "pairs.csv", tmp_path / "cut.png"
    picture.write_bytes(b"no picture")
    write_table(table, [(picture, "red"), ("", "blue"), *((work / "pictures" / f"{n}.png", "red") for n in range(40))])
    flags = ["--csv-separator", ",", "--csv-img-key", "image", "--csv-caption-key", "caption"]
    assert audit(table, *run, *flags, "--out", tmp_path / "two") == 0  # an empty cell is no picture, and no shard
    found = [record["problem"].partition(" (")[0] for record in scores(tmp_path / "two")[:2]]
    assert found == ["no readable image", "no image"]
    picture.write_bytes((work / "pictures" / "0.png").read_bytes())
    assert audit(table, *run, *flags, "--out", tmp_path / "two") == 1
    assert f"holds an audit with other data: {table} has changed since" in capsys.readouterr().err
    (out / "audit.json").write_text("{")
    assert audit(work / "0.tar", *run, "--out", out) == 1
    assert "audit.json is damaged: give another --out, or remove" in capsys.readouterr().err
    (out / "audit.json").unlink()
    assert audit(work / "0.tar", *run, "--out", out) == 1
    assert "is not empty and holds no audit: give another name" in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == before


def test_a_call_that_fails_leaves_its_folder_to_the_corrected_one(work, tmp_path, capsys):
    weights, out = tmp_path / "alone.pt", tmp_path / "out"
    weights.write_bytes((work / "logs/run/checkpoints/epoch_6.pt").read_bytes())
    assert audit(work / "0.tar", "--model", weights, "--out", out) == 1
    assert "--architecture" in capsys.readouterr().err
    assert audit(work / "0.tar", "--model", weights, "--out", out, "--architecture", f"local-dir:{work}/model") == 0
    config = json.loads((work / "model" / "open_clip_config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "open_clip_config.json").write_text(json.dumps(config | {"quick_gelu": True}))
    assert audit(work / "0.tar", "--model", weights, "--out", out, "--architecture", f"local-dir:{other}") == 1
    assert "holds an audit with other model: " in capsys.readouterr().err


def test_captions_without_a_known_word_are_kept_by_their_clip_score(work, run, tmp_path, capsys):
    with TarWriter(str(tmp_path / "0.tar")) as tar:
        for number, caption in enumerate(["...", "red", "!!!", "blue"]):
            Image.new("RGB", (32, 32), list(COLOURS.values())[number]).save(file := io.BytesIO(), "PNG")
            picture = file.getvalue()
            tar.write({"__key__": "same" if number < 3 else "other", "png": picture, "txt": caption})
        tar.write({"__key__": "broken", "png": b"no picture", "txt": "red"})
    out, flags = tmp_path / "out", [tmp_path / "0.tar", *run, "--out", tmp_path / "out", "--unreadable-max", 0.5]
    assert audit(*flags, "--keep", 0.9) == 0
    assert scores(out)[-1]["problem"] == "no readable image (cannot identify image file)"  # and no address
    assert "kept: the best 4 by both" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert len(set(re.findall(r'<img src="(data:[^"]+)"', page))) == 4  # three samples of one key, each its own picture
    assert audit(*flags, "--keep", 0.9, "--by", "support") == 0
    assert "2 without a support are neither shown nor kept" in capsys.readouterr().out
    with TarWriter(str(tmp_path / "1.tar")) as tar:
        tar.write({"__key__": "0", "png": picture, "txt": "..."})
    assert audit(tmp_path / "1.tar", *run, "--out", tmp_path / "one", "--by", "support", "--keep", 0.5) == 1
    assert "--by support: no caption holds a word that the head has learned: give --by" in capsys.readouterr().err
    assert audit(tmp_path / "1.tar", *run, "--out", tmp_path / "one", "--keep", 0.1) == 0
    assert "kept: the best 1 by both" in capsys.readouterr().out
