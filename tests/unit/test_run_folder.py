"""What a run's folder holds and refuses, and how its nodes know one another, without training."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
import torch
from support.tiny_run import write_recipe
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from openclip_superclip.checkpoints import run_outputs
from openclip_superclip.checkpoints.resume import read_beginning
from openclip_superclip.errors import InputError
from openclip_superclip.runs import launcher, process
from openclip_superclip.runs.folder import PREEMPTED, RUNNING, RunFolder, prune, recorded_environment, told_state
from openclip_superclip.runs.lock import lock
from openclip_superclip.runs.machines import Placement, find_placement
from openclip_superclip.runs.node import Progress
from openclip_superclip.runs.plan import Plan, make_plan
from openclip_superclip.runs.process import HARDWARE, Failure, StoppedRanks, first_failure, kind_of, pid_file
from openclip_superclip.runs.rank import ASKED
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.runs.rehearsal import Rehearsal, _resumed

IN_A_STEP = {
    "SLURM_JOB_ID": "17", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "20017",
}  # fmt: skip


@pytest.mark.parametrize(("added", "name"), [
    ({}, "17.0-0"),
    ({"SLURM_RESTART_COUNT": "2"}, "17.0-2"),
    ({"SLURM_STEP_ID": "3"}, "17.3-0"),
])  # fmt: skip
def test_every_start_of_a_job_has_a_name_that_its_nodes_agree_on(added, name):
    placement = find_placement(IN_A_STEP | added)
    assert placement.name_of_start(5) == name
    assert (placement.num_nodes, placement.node, placement.gpus, placement.master_port) == (2, 1, 4, 20017)


def test_a_node_alone_counts_its_starts_for_a_shell_makes_several_within_a_step():
    placement = find_placement(IN_A_STEP | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"})
    assert (placement.name_of_start(0), placement.name_of_start(1)) == ("local-0", "local-1")


def test_a_port_that_is_taken_is_noticed():
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert find_placement(IN_A_STEP | {"MASTER_PORT": port}).port_is_taken()
        assert not find_placement({}).port_is_taken()
    assert not find_placement(IN_A_STEP | {"MASTER_PORT": port}).port_is_taken()


def test_a_process_outside_slurm_is_alone():
    alone = find_placement({})
    assert (alone.num_nodes, alone.job, alone.name_of_start(5)) == (1, None, "local-5")


@pytest.mark.parametrize(("environment", "said"), [
    (IN_A_STEP | {"SLURM_STEP_NUM_TASKS": "8"}, "srun starts 8 processes on 2 nodes; expected one a node"),
    ({"SLURM_JOB_ID": "17", "SLURM_JOB_NUM_NODES": "4"}, "job 17 has 4 nodes, and this process would use one"),
    ({k: v for k, v in IN_A_STEP.items() if k != "MASTER_ADDR"}, "MASTER_ADDR is not set"),
])  # fmt: skip
def test_a_start_that_would_not_use_the_job_is_refused(environment, said):
    with pytest.raises(InputError, match=said):
        find_placement(environment)


def write_owner(path: Path, **owner) -> None:
    path.write_text(json.dumps({"job": None, "restarts": 0, "host": "elsewhere", "pid": 1, "since": "noon", **owner}))


@pytest.fixture
def slurm_that_knows(tmp_path, monkeypatch):
    """Makes squeue answer as SLURM's does for a job that it has in its queue, and for one that it has not."""

    def install(job: str) -> None:
        squeue = tmp_path / "bin" / "squeue"
        squeue.parent.mkdir()
        squeue.write_text(
            "#!/bin/bash\n"
            f'[ "${{@: -1}}" = {job} ] && echo RUNNING && exit\n'
            "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n"
        )
        squeue.chmod(0o755)
        monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)

    return install


def test_a_job_that_was_put_back_into_the_queue_takes_its_lock_over(tmp_path):
    write_owner(tmp_path / "lock", job="17")
    with lock(tmp_path / "lock", Placement(job="17", restarts=1)):
        assert json.loads((tmp_path / "lock").read_text())["restarts"] == 1
    assert not (tmp_path / "lock").exists()


def test_another_step_of_the_same_job_is_refused(tmp_path):
    write_owner(tmp_path / "lock", job="17", restarts=1)
    with (
        pytest.raises(InputError, match="job 17, process 1 on elsewhere"),
        lock(tmp_path / "lock", Placement(job="17", restarts=1)),
    ):
        pass


def test_a_second_job_is_refused_while_the_first_is_in_the_queue(tmp_path, slurm_that_knows):
    slurm_that_knows("17")
    write_owner(tmp_path / "lock", job="17")
    with (
        pytest.raises(InputError, match="belongs to another run: job 17, "),
        lock(tmp_path / "lock", Placement(job="18")),
    ):
        pass
    assert json.loads((tmp_path / "lock").read_text())["job"] == "17"


def test_the_lock_of_a_job_that_has_ended_is_taken_over(tmp_path, slurm_that_knows):
    slurm_that_knows("16")
    write_owner(tmp_path / "lock", job="17")
    with lock(tmp_path / "lock", Placement(job="18")):
        assert json.loads((tmp_path / "lock").read_text())["job"] == "18"


def test_where_nothing_can_be_asked_a_lock_is_respected(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    write_owner(tmp_path / "lock", job="17")
    with pytest.raises(InputError, match="if it is surely gone, remove"), lock(tmp_path / "lock", Placement(job="18")):
        pass


def test_the_lock_of_a_process_that_has_died_here_is_taken_over(tmp_path):
    write_owner(tmp_path / "lock", host=socket.gethostname(), pid=os.getpid())  # the number is in use again
    with lock(tmp_path / "lock", Placement()):
        pass


def test_a_lock_that_a_process_here_holds_is_refused(tmp_path):
    program = (
        "import sys; from pathlib import Path; from openclip_superclip.runs.lock import lock\n"
        "from openclip_superclip.runs.machines import Placement\n"
        "with lock(Path(sys.argv[1]), Placement()): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {holder.pid} on "), lock(tmp_path / "lock", Placement(job="1")):
            pass
        holder.stdin.close()
    with lock(tmp_path / "lock", Placement(job="1")):
        pass


def test_a_lock_that_was_lost_after_all_is_noticed(tmp_path):
    with lock(tmp_path / "lock", Placement(job="17")) as check:
        check()
        write_owner(tmp_path / "lock", job="18")
        with pytest.raises(InputError, match=r"job 18, .* \(which started in the same second\)"):
            check()
    assert json.loads((tmp_path / "lock").read_text())["job"] == "18"


def write_checkpoints(folder: Path, *epochs: int) -> Path:
    folder.mkdir()
    for epoch in epochs:
        weight = torch.frombuffer(bytearray(b"some weights" * 300), dtype=torch.uint8)
        torch.save({"epoch": epoch, "state_dict": {"weight": weight}}, folder / f"epoch_{epoch}.pt")
    return folder


@pytest.mark.parametrize("bit", [1, 128])
@pytest.mark.parametrize("place", [b"some weights", b"PK\x01\x02", b"epoch_10/data.pkl"])
def test_a_checkpoint_with_one_wrong_byte_is_set_aside(tmp_path, place, bit):
    folder = write_checkpoints(tmp_path / "checkpoints", 8, 9, 10)
    content = bytearray((folder / "epoch_10.pt").read_bytes())
    content[content.rindex(place)] ^= bit
    (folder / "epoch_10.pt").write_bytes(content)
    assert run_outputs.newest(folder) >= 9
    assert run_outputs.set_damaged_aside(folder) == [folder / "epoch_10.pt.damaged"]
    assert list(run_outputs.checkpoints(folder)) == [8, 9]


@pytest.mark.parametrize("size", [0, 1, 3000, -1])
def test_a_checkpoint_that_ends_early_is_not_complete(tmp_path, size):
    folder = write_checkpoints(tmp_path / "checkpoints", 1, 2)
    path = folder / "epoch_2.pt"
    os.truncate(path, size % path.stat().st_size)
    assert run_outputs.newest(folder) == 1
    assert run_outputs.remove_cut(folder) == [path]
    assert list(run_outputs.checkpoints(folder)) == [1]


def test_pruning_never_counts_on_a_checkpoint_that_is_being_written(tmp_path):
    folder = write_checkpoints(tmp_path / "checkpoints", *range(1, 10))
    os.truncate(folder / "epoch_9.pt", 1000)
    prune(folder, plan_of(tmp_path, samples=192 * 5 // 2, slices=4))
    assert list(run_outputs.checkpoints(folder)) == [2, 4, 6, 7, 8, 9]


def plan_of(folder: Path, **values) -> Plan:
    return make_plan(read_recipe(str(write_recipe(folder, **values))), device="cpu")


def test_a_run_that_ends_no_pass_keeps_some_of_its_checkpoints():
    plan = make_plan(read_recipe("datacomp1b/superclip_vit-b-16_512m_bs16k"), nodes=4, gpus_per_node=8)
    assert (plan.num_slices, plan.slices_per_pass) == (25, 50)
    assert [epoch for epoch in range(1, 26) if plan.keeps(epoch)] == [5, 10, 15, 20, 25]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_checkpoints_whose_weights_are_no_numbers_are_set_aside(tmp_path, number):
    folder = write_checkpoints(tmp_path / "checkpoints", 1, 2, 3, 4)
    for epoch, value in {1: number, 2: 1.0, 3: number, 4: number}.items():
        torch.save({"epoch": epoch, "state_dict": {"w": torch.tensor([0.0, value])}}, folder / f"epoch_{epoch}.pt")
    assert run_outputs.set_ruined_aside(folder) == [folder / f"epoch_{epoch}.pt.ruined" for epoch in (4, 3)]
    assert list(run_outputs.checkpoints(folder)) == [1, 2]


def test_a_job_that_never_gets_through_a_slice_is_not_started_for_ever(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()

    def start(job):
        folder.start({}, {"job": job})
        folder.check_progress(job, starts=3)
        folder.end(PREEMPTED)

    for _ in range(3):
        start("17")
    with pytest.raises(InputError, match="job 17 was started 3 times and stopped before a slice was trained"):
        start("17")
    start("18")
    for _ in range(2):
        start("19")
    write_checkpoints(folder.checkpoints, 1)
    for _ in range(3):
        start("19")


def test_a_folder_that_openclip_would_not_look_into_is_refused():
    with pytest.raises(InputError, match=r"--out is runs/a\[1\]; expected a path without"):
        RunFolder(Path("runs/a[1]"))


def test_the_reason_of_a_recipe_may_change_and_its_values_not(tmp_path):
    folder, path = RunFolder(tmp_path / "run"), str(write_recipe(tmp_path))
    folder.write_recipe(read_recipe(path))
    folder.check_recipe(read_recipe(path, {"lr": "1.0e-3"}))
    folder.check_recipe(read_recipe(path, {"lr": "2.0e-3"}))  # nothing has been trained, and no job is to
    folder.checkpoints.mkdir()
    with pytest.raises(InputError, match=r"lr is 0\.001 there and 0\.002 here; give --out another folder"):
        folder.check_recipe(read_recipe(path, {"lr": "2e-3"}))


def test_no_secret_is_recorded():
    kept = {"NCCL_DEBUG": "INFO", "SLURM_JOB_ID": "1", "OMP_NUM_THREADS": "1", "MASTER_PORT": "1"}
    left_out = {"SLURM_JWT": "x", "HF_TOKEN": "x", "TORCH_API_KEY": "x", "HOME": "/root", "WANDB_API_KEY": "x"}
    assert recorded_environment(kept | left_out) == dict(sorted(kept.items()))


def test_the_first_error_is_that_of_a_killed_rank_or_else_the_earliest(tmp_path):
    Failure("rank 0", "Connection closed by peer", timestamp=2.0).write(tmp_path / "rank_0.error.json")
    Failure("rank 3", "ZeroDivisionError", timestamp=1.0).write(tmp_path / "rank_3.error.json")
    assert first_failure(tmp_path).who == "rank 3"
    Failure("rank 5", "Signal 9", timestamp=3.0, is_cause=True).write(tmp_path / "node_1.error.json")
    assert first_failure(tmp_path).who == "rank 5"


@pytest.mark.parametrize(("exit_codes", "said"), [
    ({0: -signal.SIGTERM, 1: -signal.SIGKILL}, "rank 1 on {host}: it was ended from outside: Signal 9 (SIGKILL)"),
    ({0: 3}, "rank 0 on {host}: it ended with exit code 3"),
    ({2: -signal.SIGABRT, 3: -signal.SIGTERM}, "rank 2 on {host}: it was ended by Signal 6 (SIGABRT)"),
])  # fmt: skip
def test_the_launcher_names_the_rank_that_ended_first_where_none_could_tell(exit_codes, said):
    seen = {rank: ProcessFailure(rank, 1, code, error_file="none") for rank, code in exit_codes.items()}
    first = launcher.first_failure(seen)
    assert f"{first.who}: {first.message}" == said.format(host=socket.gethostname())


def test_the_launcher_takes_the_words_of_a_rank_that_has_left_any(tmp_path):
    told = Failure("rank 1 on node1", "ZeroDivisionError: division by zero", "Traceback …", timestamp=1.5)
    told.write(tmp_path / "rank_1.error.json")
    seen = {0: ProcessFailure(0, 1, 1, "none"), 1: ProcessFailure(1, 2, 1, str(tmp_path / "rank_1.error.json"))}
    assert seen[1].message == told.message  # torch reads the file too
    assert launcher.first_failure(seen) == told


def test_a_node_goes_on_where_it_cannot_tell_that_it_lives(tmp_path):
    process.Heartbeat(tmp_path / "on a full disk", 1, 2).beat()


def test_a_node_of_which_nothing_is_heard_is_lost_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 5)
    monkeypatch.setattr(process, "PERIOD", 0.1)
    nodes = [process.Heartbeat(tmp_path, node, 4) for node in range(4)]
    for node in nodes:
        node.beat()
    nodes[3].end()
    listening = threading.Thread(target=nodes[1].lost_nodes)  # beats while it listens
    listening.start()
    assert nodes[0].lost_nodes() == [2]
    listening.join()


@pytest.mark.parametrize("name", ["state.json", "run.json"])
def test_a_broken_file_of_a_run_is_named_with_what_to_do(name, tmp_path):
    (tmp_path / name).write_text('{"state": "runn')
    with pytest.raises(InputError, match=rf"{name} cannot be read .*the same command resumes from the newest"):
        RunFolder(tmp_path)._read(name)


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match=r"--out: .*run cannot be written \(File exists\)"):
        RunFolder(tmp_path / "run").write_recipe(read_recipe(str(write_recipe(tmp_path))))


def test_a_run_that_was_killed_is_not_told_as_running_for_ever(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.start({}, {"job": None})
    write_owner(folder.path / "lock", host=socket.gethostname(), pid=os.getpid())
    assert told_state(folder.path)["state"] == RUNNING
    gone = subprocess.Popen(["true"])
    gone.wait()
    write_owner(folder.path / "lock", host=socket.gethostname(), pid=gone.pid)
    told = told_state(folder.path)
    assert told["state"] == "lost"
    assert told["error"].startswith(f"process {gone.pid} on {socket.gethostname()} is gone, and could not say why: ")
    write_owner(folder.path / "lock", host="elsewhere")
    assert told_state(folder.path)["state"] == RUNNING
    folder.beat(heartbeat="2026-01-01T00:00:00+00:00")
    assert told_state(folder.path)["error"].startswith("there is no heartbeat, and could not say why: its last word is")
    folder.start({}, {"job": None})
    assert [one.get("state") for one in folder.record()["attempts"]] == ["lost", None]


@pytest.mark.parametrize(("message", "kind"), [
    ("DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:268, unhandled system error", HARDWARE),
    ("AcceleratorError: CUDA error: uncorrectable ECC error encountered", HARDWARE),
    ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Bus error.", HARDWARE),
    ("RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [192.0.2.2]:4242", HARDWARE),
    ("DistNetworkError: The server socket has failed to listen on any local network address. EADDRINUSE", HARDWARE),
    ("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB", ""),
    ("ZeroDivisionError: division by zero", ""),
    ("FileNotFoundError: [Errno 2] No such file or directory: 'words.safetensors'", ""),
])  # fmt: skip
def test_a_failure_is_of_the_machines_or_the_users(message, kind):
    assert kind_of(message) == kind


def test_failures_in_a_row_are_counted_until_a_slice_is_trained(tmp_path):
    folder, counted = RunFolder(tmp_path / "run"), []
    folder.path.mkdir()
    for again in (True, True, False, True, True):
        folder.start({}, {"job": None})
        counted.append(folder.failures_without_a_slice())
        folder.end(PREEMPTED, again=again)
    write_checkpoints(folder.checkpoints, 1)
    counted.append(folder.failures_without_a_slice())
    assert counted == [1, 2, 3, 1, 2, 0]


def test_progress_tells_speed_and_end(tmp_path, monkeypatch):
    plan, clock = plan_of(tmp_path, samples=192), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress(plan, tmp_path)
    progress.look()
    assert progress.values(epoch=0) == {
        "slices": 3, "step": 0, "steps": 12, "samples_per_second": None, "expected_end": None,
    }  # fmt: skip
    for clock[0], steps in ((110.0, 1), (112.0, 1), (114.0, 3)):
        (tmp_path / "steps").write_text(f"{steps:>20}")
        progress.look()
    before = datetime.now().astimezone()
    told = progress.values(epoch=0)
    assert (told["step"], told["samples_per_second"]) == (3, 8.0)  # 2 steps of 16 samples in 4 seconds
    assert 17 <= (datetime.fromisoformat(told["expected_end"]) - before).total_seconds() <= 19  # 9 steps
    assert progress.values(epoch=3)["step"] == 12  # those that a killed start has trained count
    assert [progress.stands_still(minutes) for minutes in (0.1, 1, 0)] == [False, False, False]
    clock[0] += 30
    assert [progress.stands_still(minutes) for minutes in (0.1, 1, 0)] == [True, False, False]
    assert not Progress(plan, tmp_path / "before the first step").stands_still(0.1)


def test_a_stopped_rank_of_any_node_is_named(tmp_path):
    nodes = [StoppedRanks(tmp_path, node, num_processes=2) for node in range(2)]
    with subprocess.Popen(["sleep", "60"]) as rank:
        pid_file(tmp_path, 3).write_text(str(rank.pid))
        pid_file(tmp_path, 2).write_text("no number yet")
        try:
            rank.send_signal(signal.SIGSTOP)
            os.waitpid(rank.pid, os.WUNTRACED)
            nodes[1].look()
            (line,) = nodes[0].of_all_nodes()
            assert line.startswith(f"rank 3 is stopped by a signal (process {rank.pid} on {socket.gethostname()}): ")
            rank.send_signal(signal.SIGCONT)
            os.waitpid(rank.pid, os.WCONTINUED)
            nodes[1].look()
            assert nodes[0].of_all_nodes() == []
        finally:
            rank.kill()


def test_a_rehearsal_that_fails_where_it_is_to_be_stopped_has_failed(tmp_path, monkeypatch):
    stopped, failed, again = None, 1, 75
    monkeypatch.setenv(ASKED, "1")  # and taken back: it has every rank measure itself
    for node, codes, expected in (
        (0, [0, stopped, 0], 0),
        (0, [0, failed], failed),
        (0, [0, again], again),
        (1, [0, failed, 0], 0),  # as the first node's ranks have stopped
    ):
        left = iter(codes)
        monkeypatch.setattr(Rehearsal, "_train", lambda *_, left=left, **__: next(left))
        assert Rehearsal(None, Placement(node=node), tmp_path).run() == expected
        assert not list(left)
    monkeypatch.setattr(Rehearsal, "_train", lambda *_, **__: 0)
    with pytest.raises(InputError, match="--steps: training was to be stopped"):
        Rehearsal(None, Placement(), tmp_path).run()


@pytest.mark.parametrize(("found", "device", "said"), [
    ((0, 0, 0.0, False, True), "cuda", "NOT as it was: other weights"),
    ((2, 0, 0.5, False, True), "cpu", "NOT as it was: other losses in 2 of 8 steps, by 0.5 at most, other weights"),
    ((2, 0, 0.5, True, False), "cpu",
     "other losses in 2 of 8 steps, by 0.5 at most; they differ before SIGUSR1 as well: two equal trainings do not "
     "agree here"),
    ((0, 0, 0.0, True, True), "cpu", "after SIGUSR1, with equal losses in all 8 steps and equal weights"),
    ((3, 3, 0.0, False, False), "cpu", "NOT as it was: 3 of 8 steps were not trained again"),
])  # fmt: skip
def test_a_rehearsals_report_calls_no_difference_a_gpus_where_there_is_none(found, device, said):
    names = ("different", "missing", "largest", "equal_weights", "repeats")
    assert _resumed({"steps": 8, **dict(zip(names, found, strict=True))}, device) == said


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"options": []}'])
def test_a_record_of_the_beginning_that_is_broken_does_not_pass_for_none(content, tmp_path):
    assert read_beginning(tmp_path) is None
    (tmp_path / "began_with.json").write_text(content)
    with pytest.raises(InputError, match="is broken: without it nobody knows"):
        read_beginning(tmp_path)
