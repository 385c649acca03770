"""`superclip audit` with a trained model. Interrupted, partitioned and distributed audits equal a single one."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.browser import needs_browser, num_pixels_outside
from support.coloured_squares import COLOURS, write_images, write_table
from support.training_runs import run_ranks
from webdataset import TarWriter

from openclip_superclip.__main__ import main
from openclip_superclip.data.inspection import inspect_shard

NUM, SWAPPED = 96, 12
BAD = {20: "no such file", 30: "no readable image", 40: "no caption"}


def audit(*argv) -> int:
    return main(["audit", *map(str, argv)])


def scores(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


def assert_equal_scores(out: Path, other: Path) -> None:
    """Fails if two audits differ by more than the rounding errors that depend on the batch size."""
    for one, two in zip(scores(out), scores(other), strict=True):
        for name in ("class_loss", "support", "clip_score"):
            assert one.pop(name, None) == pytest.approx(two.pop(name, None), abs=1e-4)
        ours, theirs = ([word["word"] for word in record.pop("words", [])] for record in (one, two))
        assert ours == theirs
        one.pop("offered", None), two.pop("offered", None)
        assert one == two


@pytest.fixture(scope="module")
def work(squares_run, tmp_path_factory) -> Path:
    """A table, a folder and shards of unseen images with caption errors, and the run `run`."""
    work = tmp_path_factory.mktemp("audit")
    (work / "run").symlink_to(squares_run)
    shown = write_images(work / "images", NUM, 1)
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
    return ["--model", work / "run", "--batch-size", 16, "--unreadable-max", 0.05]


@pytest.fixture(scope="module")
def audited(work, tmp_path_factory) -> tuple[Path, str]:
    """The audit of the table and its output."""
    out = tmp_path_factory.mktemp("audited") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed := io.StringIO())
        flags = ["--batch-size", 16, "--unreadable-max", 0.05, "--keep", 0.8]
        assert audit(work / "pairs.csv", "--model", work / "run", "--out", out, *flags) == 0
    return out, printed.getvalue()


def test_wrong_captions_are_the_worst_with_wrong_words_marked_and_correct_words_suggested(work, audited):
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
    assert np.mean(doubts[0]) > 0.8 and np.mean(doubts[1]) < 0.4  # six passes over 256 images
    assert all(record["offered"][0]["word"] in COLOURS for record in records[:SWAPPED])
    assert "93 pairs scored; left out: " in printed and "1 × no such file" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert summary["left_out"] == dict.fromkeys(BAD.values(), 1)
    assert summary["kept"] == {"by": "both", "share": 0.8, "pairs": 74}
    left_out = (out / "left_out.csv").read_text().splitlines()
    assert left_out[1:] == sorted(left_out[1:]) and len(left_out) == 4
    kept, rows = (path.read_text().splitlines() for path in (out / "kept.csv", work / "pairs.csv"))
    assert kept[0] == rows[0] and len(kept) == 75
    assert [row for row in rows if row in kept] == kept
    assert not set(kept) & set(rows[1 : SWAPPED - 1])
    assert (out / "kept.txt").read_text().splitlines() == [row.split(",")[0] for row in kept[1:]]


def test_the_page_shows_the_worst_pairs_and_loads_nothing_else(audited):
    page = (audited[0] / "report.html").read_text()
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == 60
    assert page.count("<img") == 60 and "<script" not in page and "://" not in page
    first = page.split("<div class=pair>")[1]
    assert re.search(r"<mark title=\"probability [\d.]+%, expected \d+%\">(red|blue|green|yellow)</mark>", first)
    assert all(f"<td>{reason}" in page for reason in BAD.values())
    assert "The worst pairs by support and CLIP score" in page
    assert re.search(r"<code>--keep 0\.\d\d</code> is a starting point", page)


@needs_browser
def test_the_page_fits_on_a_phone_with_any_captions(work, run, tmp_path):
    captions = ["red " + "x" * 10_000, "\u202eblue\u202c أحمر أزرق", "a red square on the left of a blue square"]
    pairs = [(work / "images" / f"{number}.png", caption) for number, caption in enumerate(captions)]
    write_table(tmp_path / "pairs.csv", pairs)
    assert audit(tmp_path / "pairs.csv", *run, "--out", tmp_path / "out") == 0
    assert num_pixels_outside(tmp_path / "out/report.html", 390, tmp_path / "browser") == 0


def test_a_killed_call_resumes_without_losing_or_repeating_a_pair(work, audited, run, tmp_path, capsys):
    out, whole = tmp_path / "out", (audited[0] / "scores.jsonl").read_bytes()
    out.mkdir()
    (out / "audit.json").write_bytes((audited[0] / "audit.json").read_bytes())
    (out / "scores.jsonl.part").write_bytes(whole[: len(whole) // 2])  # in the middle of a line
    assert audit(work / "pairs.csv", *run, "--out", out) == 0
    (number,) = re.findall(r"([\d,]+) pairs were scored before", capsys.readouterr().err)
    assert 0 < int(number) < NUM and int(number) % 16 == 0
    assert (out / "scores.jsonl").read_bytes() == whole


def test_parts_joined_and_two_ranks_equal_one(work, audited, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "2/2") == 0
    assert audit(work / "pairs.csv", *run, "--out", out, "--keep", 0.5) == 1
    assert "is an audit in 2 parts; not finished: --part 1/2\n" in capsys.readouterr().err
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "3/4") == 1
    assert "holds an audit with other parts (2" in capsys.readouterr().err
    assert audit(work / "pairs.csv", *run, "--out", out, "--part", "1/2") == 0
    assert audit(work / "pairs.csv", *run, "--out", out, "--keep", 0.5) == 0
    assert_equal_scores(out, audited[0])
    assert not [path for path in out.iterdir() if "-of-" in path.name or path.suffix == ".part"]
    runs = run_ranks(audit, work / "pairs.csv", *run, "--out", tmp_path / "two", world_size=2, cwd=tmp_path)
    assert [one.returncode for one in runs] == [0, 0], runs[0].output
    assert_equal_scores(tmp_path / "two", audited[0])
    assert (tmp_path / "two" / "report.html").exists()


def test_kept_samples_of_shards_are_copied_unchanged(work, run, tmp_path, capsys):
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
    assert audit(f"{work}/{{0..1}}.tar", *run, "--out", out) == 0  # kept files and their summary remain
    assert json.loads((out / "summary.json").read_text())["kept"]["pairs"] == 67 and (out / "kept").is_dir()
    assert audit(f"{work}/{{0..1}}.tar", *run, "--out", out, "--keep", 0.9, "--by", "class-loss") == 0
    assert len((out / "kept.txt").read_text().splitlines()) == 86  # from the existing scores
    assert not (out / "kept").exists()  # kept shards of the earlier call


def test_a_model_without_a_head_gives_only_clip_scores_of_a_folder(work, run, tmp_path, capsys):
    plain = tmp_path / "plain"
    assert main(["export", f"{work}/run/checkpoints/epoch_6.pt", "--out", str(plain)]) == 0
    capsys.readouterr()
    refused = [work / "images", "--model", plain, "--out", tmp_path / "out", "--by", "class-loss"]
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
    """Invalid data and output folders for an audit."""
    (work / "elsewhere.csv").write_text("image;caption\nnix/0.png;red\n")
    (work / "empty").mkdir()
    (work / "full").mkdir()
    (work / "full" / "letter.txt").write_text("dear reader")
    (work / "run-without-checkpoint" / "checkpoints").mkdir(parents=True)
    (work / "text.tar").write_text("no tar")
    return work


@pytest.mark.parametrize(("argv", "reason"), [
    ("elsewhere.csv", "none of the 1 images of elsewhere.csv exists, such as nix/0.png: paths are relative"),
    ("pairs.csv --csv-img-key file", "pairs.csv has no column 'file'; its columns are image, "),
    ("nix.csv", "DATA: there is no file nix.csv"),
    ("empty", "DATA: empty holds no pair: expected rows, or images with a .txt"),
    ("{0..1}.zip", "DATA is {0..1}.zip: there is no such file or folder; expected a table"),
    ("{5..6}.tar", "DATA: there is no file 5.tar"),
    ("pairs.csv --out full", "--out: full is not empty and holds no audit: give another name"),
    ("pairs.csv --out text.tar", "--out: text.tar cannot be written"),
    ("pairs.csv --model run-without-checkpoint", "run-without-checkpoint is a run without a checkpoint"),
    ("pairs.csv --model nowhere", "--model: there is no file or folder nowhere"),
    ("pairs.csv --part 1/200", "pairs.csv holds 96 pairs; expected at most as many parts"),
    ("{0..1}.tar --part 1/3", "{0..1}.tar holds 2 shards; expected at most as many parts"),
    ("pairs.csv --keep 0.5 --write-shards", "--write-shards is for shards, and DATA is pairs.csv"),
    ("pairs.csv --part 0/4", "--part is 0/4; expected such as 3/16"),
    ("pairs.csv --part half", "--part is half; expected such as 3/16"),
    ("pairs.csv --keep nan", "--keep is nan; expected a fraction above 0 and below 1"),
    ("pairs.csv --keep 0.5 --part 1/2", "--keep needs all parts"),
    ("pairs.csv --write-shards", "expected --keep, too"),
    ("pairs.csv --batch-size 0", "--batch-size is 0; expected 1 or more"),
    ("pairs.csv --unreadable-max 2", "--unreadable-max is 2.0; expected a fraction from 0 to 1"),
    ("pairs.csv --device gpu", "--device is gpu, which torch cannot use here"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line_before_anything_is_written(argv, reason, wrong, capsys, monkeypatch):
    monkeypatch.chdir(wrong)
    given = [] if "--model" in argv else ["--model", "run"]
    given += [] if "--out" in argv else ["--out", "nowhere"]
    assert audit(*argv.split(), *given) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # the line before reports the columns
    assert error.startswith("error: ") and reason in error
    assert not Path("nowhere").exists()


def test_a_folder_of_another_audit_and_data_that_is_mostly_unreadable_are_refused(work, audited, run, tmp_path, capsys):
    out, model = audited[0], work / "run"
    before = (out / "scores.jsonl").read_bytes()
    write_table(tmp_path / "other.csv", [(work / "images/0.png", "red")])
    assert audit(tmp_path / "other.csv", "--model", model, "--out", out) == 1
    assert f"holds an audit with other data ({work}/pairs.csv" in capsys.readouterr().err
    weights = torch.load(model / "checkpoints/epoch_6.pt")
    weights["state_dict"]["class_head.weight"][0] += 1
    torch.save(weights, tmp_path / "other.pt")
    configured = ["--architecture", f"local-dir:{model.resolve().parents[1]}/model"]
    assert audit(work / "pairs.csv", "--model", tmp_path / "other.pt", *configured, "--out", out) == 1
    assert f"holds an audit with other model ({model}" in capsys.readouterr().err
    assert (out / "scores.jsonl").read_bytes() == before
    assert audit(work / "pairs.csv", "--model", model, "--out", out) == 1  # 2 of 96 are more than 1 %
    error = capsys.readouterr().err
    assert "2 of 96 pairs have an image that cannot be read, more than --unreadable-max 0.01 allows" in error
    again = tmp_path / "again"
    assert audit(work / "0.tar", "--model", tmp_path / "other.pt", "--out", again) == 1
    assert "--architecture" in capsys.readouterr().err
    assert audit(work / "0.tar", "--model", tmp_path / "other.pt", "--out", again, *configured) == 0


def test_captions_without_known_words_are_ranked_by_clip_score(work, run, tmp_path, capsys):
    with TarWriter(str(tmp_path / "0.tar")) as tar:
        for number, caption in enumerate(["...", "red", "!!!", "blue"]):
            Image.new("RGB", (32, 32), list(COLOURS.values())[number]).save(file := io.BytesIO(), "PNG")
            image = file.getvalue()
            tar.write({"__key__": "same" if number < 3 else "other", "png": image, "txt": caption})
        tar.write({"__key__": "broken", "png": b"no image", "txt": "red"})
    out, flags = tmp_path / "out", [tmp_path / "0.tar", *run, "--out", tmp_path / "out", "--unreadable-max", 0.5]
    assert audit(*flags, "--keep", 0.9) == 0
    assert scores(out)[-1]["problem"] == "no readable image (cannot identify image file)"  # without a memory address
    assert "kept: the best 4 by both" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    assert len(set(re.findall(r'<img src="(data:[^"]+)"', page))) == 4  # three samples of one key, each its own image
    assert audit(*flags, "--keep", 0.9, "--by", "support") == 0
    assert "2 without a support are neither shown nor kept" in capsys.readouterr().out
    shard = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(shard.replace(b"red", b"Red"))  # the same length
    assert audit(*flags) == 1
    assert "holds an audit with other data" in capsys.readouterr().err
    (out / "audit.json").write_text("{")
    assert audit(*flags) == 1
    assert "audit.json cannot be read" in capsys.readouterr().err
    with TarWriter(str(tmp_path / "1.tar")) as tar:
        tar.write({"__key__": "0", "png": image, "txt": "..."})
    assert audit(tmp_path / "1.tar", *run, "--out", tmp_path / "one", "--by", "support", "--keep", 0.5) == 1
    assert "--by support: no caption holds a word that the head has learned: give --by" in capsys.readouterr().err
