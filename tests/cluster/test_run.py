"""`superclip run`: the folder that it leaves, and what it survives on one
machine."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from datetime import datetime
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from support import DATA, read_json, write_json
from support.plugins import write_disturbed_loss
from support.slurm_cluster import may_unshare, wait_until
from support.tiny_run import SLICES, assert_equal_weights, outcome, state, write_recipe
from support.training_runs import execute, failure, fork, run_superclip

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.trainer_files import checkpoints, is_whole
from openclip_superclip.plans.cost import estimate_cost
from openclip_superclip.plans.run import Run
from openclip_superclip.runs.folder import current_state

pytestmark = pytest.mark.usefixtures("forks")

SUPERCLIP = str(Path(sys.executable).with_name("superclip"))
TWO_PROCESSES = "--device cpu --nproc 2 --set wd=0.1"


def start(recipe, run):
    """Starts `superclip run` beside the recipe, its output in a file beside
    the folder: in a fork, but for the first start."""
    command = ["run", str(recipe), "--out", str(run), *TWO_PROCESSES.split()]

    def run_it():
        if not run.exists():
            os.execv(SUPERCLIP, [SUPERCLIP, *command])
        return main(command)

    return fork(run_it, run.with_suffix(".output"), recipe.parent, {})


def end(recipe, run, flags=TWO_PROCESSES, plugin=None, code=0):
    """Runs it to its end, which has an exit code, and returns its output."""
    variables = {"PYTHONPATH": str(plugin)} if plugin else {}
    command, output = ["run", recipe, "--out", run, *flags.split()], run.with_suffix(".output")
    ended = run_superclip(command, output, recipe.parent, **variables)
    printed = output.read_text()
    assert ended == code, printed
    return printed


def start_in_slice(recipe, run, number):
    """Starts `superclip run`, and returns it once it is in its `number`-th
    slice, with its ranks stopped there."""
    before = num_begun(run)
    process = start(recipe, run)
    stop_in_slice(process, run, before + number)
    return process


def num_begun(run):
    """The slices that were begun, whatever became of them."""
    log = run / "out.log"
    return log.read_text().count("Start epoch ") if log.exists() else 0


def stop_in_slice(process, run, number):
    """Stops the ranks of `superclip run` once the folder's `number`-th
    slice is begun."""

    def both_train():  # a process is not found while it is being started
        assert process.is_alive(), run.with_suffix(".output").read_text()
        return num_begun(run) >= number and len(ranks(run)) >= 2

    wait_until(both_train, 300, f"slice {number}", each=0.02)
    signal_ranks(run, signal.SIGSTOP)


def signal_ranks(run, number):
    for process in ranks(run):
        os.kill(process, number)


def ranks(run):
    """The processes that train into a folder, in the order of their
    ranks."""
    # by the files to which they print, of which workers that load data write one, too
    logs = {os.stat(log)[1:3]: log.name for log in run.glob("ranks/*/rank_*.log")}
    alive = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            name, pid = logs.get(os.stat(process / "fd/1")[1:3]), int(process.name)
            if name and os.getsid(pid) == pid:
                alive[name] = pid
    return [alive[name] for name in sorted(alive)]


def assert_no_rank_is_left(run):
    wait_until(lambda: not ranks(run), 300, "the ranks to end")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    # many steps: time to kill a rank in the midst of them
    return write_recipe(tmp_path_factory.mktemp("run"), batch=4)


@pytest.fixture(scope="module")
def undisturbed(recipe):
    run = recipe.parent / "undisturbed"
    end(recipe, run)
    return run


def test_a_run_leaves_all_that_records_what_ran(undisturbed, recipe):
    found = state(undisturbed)
    assert found.pop("samples_per_second") > 0
    assert datetime.fromisoformat(found.pop("since")) <= datetime.fromisoformat(
        found.pop("heartbeat")
    )
    assert found == read_json(DATA / "finished_run.json")
    as_run = YAML(typ="safe").load(undisturbed / "recipe.yaml")
    assert as_run == {**YAML(typ="safe").load(recipe), "wd": 0.1, "chosen": as_run["chosen"]}
    described = Run.open(undisturbed)
    assert described.recipe.wd == 0.1
    assert (described.gpus_per_node, described.recipe.chosen["wd"]) == (2, "given with --set")
    record = read_json(undisturbed / "run.json")
    assert record["data_check"]["num_found"] == 12
    assert record["versions"]["open_clip_torch"]
    assert [(one["state"], one["epoch_after"]) for one in record["attempts"]] == [
        ("finished", 2 * SLICES)
    ]
    assert "wd: 0.1" in (undisturbed / "params.txt").read_text()
    assert len(list(undisturbed.glob("ranks/*/rank_[01].log"))) == 2
    # the newest slices, every second one, and the ends of passes
    kept = {path.name: path.stat().st_size for path in (undisturbed / "checkpoints").iterdir()}
    epochs = (2, SLICES, 4, 2 * SLICES - 1, 2 * SLICES)
    assert kept.keys() == {f"epoch_{epoch}.pt" for epoch in epochs}
    planned = estimate_cost(described)["checkpoint_bytes"]
    assert kept["epoch_2.pt"] == pytest.approx(planned, rel=0.02)


def test_a_finished_run_is_left_alone_and_its_folder_replaces_the_recipe(undisturbed, recipe):
    before = (undisturbed / "run.json").read_bytes()
    printed = execute(f"run {undisturbed}")
    assert printed.endswith("is finished: nothing is left to train\n")
    assert (undisturbed / "run.json").read_bytes() == before
    error = failure(f"run {undisturbed} --set lr=1")
    assert f"--set: the options of the run {undisturbed} are in its run.json" in error
    other = f"run {recipe} --out {undisturbed} --set wd=0.3 --device cpu --accept-changes"
    assert "wd is 0.1 there and 0.3 here; give --out another folder" in failure(other)


@pytest.fixture(scope="module")
def troubled(recipe):
    """One run that is stopped, killed and damaged in every slice, and what
    was seen of it each time."""
    run = recipe.parent / "troubled"
    seen = {"run": run}
    process = start_in_slice(recipe, run, 3)
    signal_ranks(run, signal.SIGCONT)
    os.kill(process.pid, signal.SIGINT)
    process.join(300)
    seen["after Ctrl-C"] = (process.exitcode, *outcome(run))
    assert_no_rank_is_left(run)
    record = read_json(run / "run.json")  # as an earlier version has left it
    for file, field in (("description.json", "run"), ("began_with.json", "began_with")):
        write_json(run / file, record.pop(field))
    write_json(run / "run.json", record)

    process = start_in_slice(recipe, run, 1)
    process.kill()
    assert_no_rank_is_left(run)
    process.join()
    left = current_state(run)
    seen["after kill -9"] = (process.exitcode, left["state"], left.get("error"))

    process = start_in_slice(recipe, run, 2)
    before, logs = num_begun(run), len(list(run.glob("ranks/*/rank_0.log")))
    os.kill(ranks(run)[1], signal.SIGKILL)
    signal_ranks(run, signal.SIGCONT)
    wait_until(lambda: len(list(run.glob("ranks/*/rank_0.log"))) > logs, 300, "another start")
    stop_in_slice(process, run, before + 1)
    seen["after a rank was killed"] = run.with_suffix(".output").read_text()
    os.kill(process.pid, signal.SIGINT)
    signal_ranks(run, signal.SIGCONT)
    process.join(300)
    assert_no_rank_is_left(run)

    newest = max((run / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size // 2)
    seen["cut"] = newest.name
    end(recipe, run)
    seen["last"] = (state(run)["state"], state(run)["restarts"])
    return seen


def test_after_all_that_the_weights_are_those_of_an_undisturbed_run(troubled, undisturbed):
    run, host = troubled["run"], os.uname().nodename
    assert troubled["after Ctrl-C"] == (128 + signal.SIGINT, "preempted", "stopped by SIGINT")
    code, lost, error = troubled["after kill -9"]
    assert (code, lost) == (-signal.SIGKILL, "lost")
    assert re.match(
        r"process \d+ on \S+ is gone: stopped without an error message; last heartbeat at 20", error
    )
    output = troubled["after a rank was killed"]
    assert f"rank 1 on {host} failed first:\nended by signal 9 (Killed)\n" in output
    assert "superclip run: the next start resumes from the last checkpoint\n" in output
    starts = read_json(run / "run.json")["attempts"]
    assert [one["state"] for one in starts] == [
        "preempted",
        "lost",
        "preempted",
        "preempted",
        "finished",
    ]
    assert troubled["last"] == ("finished", 4)
    for file in ("description.json", "began_with.json"):  # of an earlier version
        assert not (run / file).exists()
    cut, log = troubled["cut"], (run / "out.log").read_text()
    assert (run / "checkpoints" / f"{cut}.damaged").exists()
    epoch = int(re.search(r"\d+", cut)[0])
    assert f"checkpoints/epoch_{epoch - 1}.pt' (epoch {epoch - 1})" in log
    assert_equal_weights(run, undisturbed)


def test_a_run_without_progress_starts_again(recipe):
    run, once = recipe.parent / "standing still", recipe.parent / "it stood still"
    sleeps = (
        f"value if os.path.exists({str(once)!r}) else (open({str(once)!r}, 'w'), time.sleep(1000))"
    )
    plugin = write_disturbed_loss(recipe.parent / "sleeping", 5, sleeps)
    end(recipe, run, "--device cpu --stall-minutes 0.15", plugin)
    starts = read_json(run / "run.json")["attempts"]
    # on a busy machine it may stand still once more
    found = [(one["state"], one["error"]) for one in starts]
    assert len(found) > 1
    stacks = (run / "ranks/local-0/rank_0.log").read_text()
    assert "Timeout (0:00:09" in stacks and "in disturbed" in stacks
    error = f"rank 0 on {os.uname().nodename}: no step for 0.15 minutes"
    assert (set(found[:-1]), found[-1]) == (
        {("preempted", error)},
        ("finished", None),
    )


def test_a_run_whose_loss_is_no_number_keeps_its_checkpoints_and_goes_on_as_it_began(recipe):
    ruined = recipe.parent / "no number"
    # the last step of a slice
    plugin = write_disturbed_loss(recipe.parent / "nan", 64, "value * float('nan')")
    output = end(recipe, ruined, "--device cpu", plugin, code=1)
    nan = f"rank 0 on {os.uname().nodename}: loss is nan since step 64"
    assert outcome(ruined) == ("failed", nan)
    assert "failed first:\nloss is nan since step 64\n" in output
    assert list(checkpoints(ruined / "checkpoints"))[-2:] == [2, 3]
    half = f"{recipe.parent}/shards/{{000000..000005}}.tar"
    output = end(recipe, ruined, f"--device cpu --data {half}", code=1)
    assert re.search(r"--train-data was 12 shards \(\w+\) and is 6 shards \(\w+\); ", output)
    as_run = ruined / "recipe.yaml"
    as_run.write_text(as_run.read_text().replace("lr: 0.001", "lr: 0.002"))
    output = end(as_run, ruined, "--device cpu", code=1)
    assert "was started with other settings: --lr was 0.001 and is 0.002; use the same" in output
    assert state(ruined)["error"] == nan  # nothing was written

    shard = recipe.parent / "shards/000003.tar"
    size = shard.stat().st_size
    dies = f"(open({str(shard)!r}, 'ab').write(b'x'), os.kill(os.getpid(), 9))"
    plugin = write_disturbed_loss(recipe.parent / "dies", 1, dies)
    output = end(as_run, ruined, "--device cpu --accept-changes", plugin, code=1)
    os.truncate(shard, size)
    changed = f"--train-data: 000003.tar had {size:,} bytes and has {size + 1:,}; use the same"
    assert changed in output and "Traceback" not in output

    end(as_run, ruined, "--device cpu")  # the learning rate was accepted
    record = read_json(ruined / "run.json")
    assert record["began_with"]["versions"]["cracked"] == "1.0"  # the plugin
    (noted,) = record["changes"]
    assert (noted["start"], noted["changed"]) == (1, ["--lr was 0.001 and is 0.002"])
    assert [one["state"] for one in record["attempts"]] == ["failed", "preempted", "finished"]


def test_too_many_unreadable_shards_fail_the_run_which_says_how_many(tmp_path):
    recipe = write_recipe(tmp_path, batch=4, passes=1, workers=1)
    shards = [tmp_path / f"shards/{number:06}.tar" for number in range(12)]
    os.truncate(shards[3], shards[3].stat().st_size // 2)
    shards[4].write_bytes(b"no tar file" * 1000)
    spoil(shards[7], member=4, header=True)  # which tarfile takes for the end of the file
    spoil(shards[9], member=2, header=False)
    run = tmp_path / "run"
    output = end(recipe, run, "--device cpu", code=1)
    status, error = outcome(run)
    assert status == "failed"
    assert re.match(
        r"\d of the 4 shards of slice \d cannot be read, more than --unreadable-max 0.01 allows: ",
        error,
    )
    assert output.endswith(f"error: {error}\n")

    end(recipe, run, "--device cpu --unreadable-max 1")
    found = state(run)
    assert (found["state"], found["unreadable"]["shards"]) == ("finished", 3)
    assert found["unreadable"]["samples"] >= 1
    listed = "".join(file.read_text() for file in run.glob("ranks/*/unreadable_0.jsonl"))
    for shard in (shards[3], shards[4], shards[7]):
        assert str(shard) in listed


def spoil(shard, member, header):
    """Overwrites the header of a member of a tar file, or the picture that
    it holds."""
    with tarfile.open(shard) as tar:
        at = tar.getmembers()[member]
    with open(shard, "r+b") as file:
        file.seek(at.offset if header else at.offset_data)
        file.write(b"spoiled" * 10)


@pytest.mark.skipif(
    not may_unshare(),
    reason="a disk that becomes full is mounted, which needs root (CAP_SYS_ADMIN)",
)
def test_a_small_disk_is_refused_and_one_that_fills_up_leaves_the_last_checkpoint_intact(
    recipe, tmp_path
):
    # The disk is seen through a process that ends with this one, and its
    # mount with that.
    mount = 'mount -t tmpfs -o size=1g tmpfs "$0" && echo && exec cat'
    command = ["unshare", "--mount", "sh", "-c", mount, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        disk = Path(f"/proc/{holder.pid}/root{tmp_path}")
        run = disk / "run"
        leave_free(disk, 5_000_000)
        output = end(recipe, run, code=1)
        assert re.search(
            r"--out: the disk of .*/run has \S+ MB free, and 6 more checkpoints of ", output
        )
        assert state(run)["state"] == "failed"

        (disk / "filler").unlink()
        process = start_in_slice(recipe, run, 2)
        leave_free(disk, (run / "checkpoints/epoch_1.pt").stat().st_size // 2)
        signal_ranks(run, signal.SIGCONT)
        process.join(300)
        assert process.exitcode == 1
        assert state(run)["state"] == "failed"
        assert state(run)["error"].endswith(f"(the disk of {run} is full)")
        assert state(run)["epoch"] == 1
        assert is_whole(run / "checkpoints/epoch_1.pt")
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch_1.pt"]

        (disk / "filler").unlink()
        process = start_in_slice(recipe, run, 1)
        with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while True:  # others fill it: there is no incomplete checkpoint to remove
                file.write(bytes(4096))
        signal_ranks(run, signal.SIGCONT)
        process.join(300)
        assert process.exitcode == 1
        assert state(run)["state"] == current_state(run)["state"] == "failed"
        assert state(run)["error"].endswith(f"(the disk of {run} is full)")
        assert is_whole(run / "checkpoints/epoch_1.pt")


def leave_free(disk, num_bytes):
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - num_bytes)
