"""What `superclip run` accepts and records when it starts, and how it names failures, without training."""

import signal
import socket
from dataclasses import replace

import pytest
from support.tiny_run import write_recipe

from openclip_superclip.__main__ import main
from openclip_superclip.checkpoints.resume import beginning, read_beginning, write_beginning
from openclip_superclip.errors import InputError
from openclip_superclip.files import content_digest, write_json
from openclip_superclip.openclip import checks
from openclip_superclip.openclip.train import check_command
from openclip_superclip.runs.folder import RunFolder, lock
from openclip_superclip.runs.plan import make_run
from openclip_superclip.runs.process import EXIT_REQUEUE, HARDWARE, OF_HARDWARE, Failure, first_failure, rank_failure
from openclip_superclip.runs.recipe import read_recipe
from openclip_superclip.runs.run import Run, Settings
from openclip_superclip.runs.slurm import Placement
from openclip_superclip.runs.supervisor import NodeTraining


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """The folder of a run that accepts changes and has not begun."""
    folder, recipe = RunFolder(tmp_path / "run"), read_recipe(str(write_recipe(tmp_path)))
    folder.write(make_run(recipe, device="cpu", settings=Settings(accept_changes=True)))
    return folder


def started(folder: RunFolder, **values) -> int:
    """Returns the exit code of a start, whose run has other values than the folder's."""
    return NodeTraining(replace(Run.open(folder.path), **values), Placement(), folder).train()


def test_changes_are_accepted_at_one_start(folder, monkeypatch):
    monkeypatch.setattr("openclip_superclip.checkpoints.run_outputs.newest", lambda _: 1)
    monkeypatch.setattr("openclip_superclip.runs.supervisor.accepted_data", lambda *_: {})
    monkeypatch.setattr(NodeTraining, "_train", lambda _: Failure("rank 0", "it failed"))
    params = "seed: 3\ntrain_data: {0..3}.tar\nbatch_size: 16\naccum_freq: 1\nworld_size: 1\n"
    (folder.path / "params.txt").write_text(params)
    assert started(folder) == started(folder) == 1
    (changes,) = folder.record()["changes"]
    assert "--seed was 3 and is 0" in changes["changed"]
    with pytest.raises(InputError, match=r"--train-data was 12 shards .* and is 4 shards"):
        started(folder, data="{0..3}.tar")
    folder.checkpoints.mkdir()
    (folder.checkpoints / "mean.pt").touch()
    with pytest.raises(InputError, match=r"would use .*/checkpoints/mean\.pt, which the run has not saved: move it"):
        started(folder)


@pytest.mark.parametrize("engine", ["torchrun", "horovod"])
def test_a_run_resumes_with_the_options_that_its_ranks_recorded(engine, folder, monkeypatch):
    monkeypatch.setattr(checks, "check_horovod", lambda: None)
    monkeypatch.setattr("openclip_superclip.checkpoints.run_outputs.newest", lambda _: 1)
    training = NodeTraining(replace(Run.open(folder.path), settings=Settings(engine=engine)), Placement(), folder)
    options = vars(check_command(training.start.arguments))
    write_beginning(folder.path, beginning(options, world_size=1), resumes=False)
    assert training._changes() == []


@pytest.mark.parametrize(("node", "fails"), [(0, 0), (0, 1), (1, 1)])
def test_only_the_first_node_removes_an_incomplete_checkpoint_after_a_failure(node, fails, folder, monkeypatch):
    training = NodeTraining(Run.open(folder.path), Placement(2, node, "17", step="0"), folder)

    def fail(_, tick):
        failure = Failure(f"rank {fails}", "it failed")
        if fails == node:
            return failure
        failure.write(training.logs / f"node_{fails}.error.json")
        return tick()

    monkeypatch.setattr("openclip_superclip.runs.process.run_ranks", fail)
    monkeypatch.setattr(NodeTraining, "_silent_nodes", lambda *_: "")
    folder.checkpoints.mkdir()
    (folder.checkpoints / "epoch_1.pt").write_bytes(b"PK")  # that rank 0 is writing
    failure = training._train() if node == 0 else training._run_ranks(lambda: None)
    assert failure.text == f"rank {fails}: it failed"
    assert (folder.checkpoints / "epoch_1.pt").exists() == (node == 1)


@pytest.mark.parametrize(("job", "restarts", "accepts"), [("16", 0, True), ("17", 0, False), ("17", 1, True)])
def test_a_requeued_job_accepts_changes_unless_an_earlier_start_has(folder, job, restarts, accepts):
    write_json(folder.path / "run.json", {"attempts": [{"job": job, "restarts": restarts}]})
    for data, is_passed_on in (("{0..3}.tar", accepts), ("pairs.csv", False)):  # a table has no slices
        run = replace(Run.open(folder.path), data=data)
        training = NodeTraining(run, Placement(job="17", restarts=1), folder)
        assert training.accept_changes == accepts
        assert ("--superclip-accept-changes" in training.start.arguments) == is_passed_on


def test_a_finished_run_of_other_data_is_refused(folder):
    (table := folder.path / "held.csv").write_text("before")
    checked = {"tables": {str(table): content_digest(table), "nowhere.csv": "0"}}
    write_json(folder.path / "state.json", {"state": "finished"})
    write_json(folder.path / "run.json", {"plan": Run.open(folder.path).as_dict(), "data_check": checked})
    assert started(folder) == 0
    table.write_text("after")
    with pytest.raises(InputError, match=r"/held\.csv has changed since .*/run was trained on it: give --out another"):
        started(folder)
    with pytest.raises(InputError, match=r"with --data .*, not other.tar; give --out another folder"):
        started(folder, data="other.tar")


@pytest.mark.parametrize(("script", "codes"), [(False, [0]), (True, [EXIT_REQUEUE, 0])])
def test_a_run_starts_again_itself_unless_the_jobs_script_does(script, codes, folder, monkeypatch):
    exit_codes = iter([EXIT_REQUEUE, 0])
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    if script:
        monkeypatch.setenv("SUPERCLIP_NEXT", str(folder.path / "next"))
    monkeypatch.setattr(NodeTraining, "train", lambda _: next(exit_codes))
    assert [main(["run", str(folder.path)]) for _ in codes] == codes


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"options": []}'])
def test_a_broken_record_of_the_beginning_is_replaced_by_what_openclip_recorded(content, tmp_path):
    (tmp_path / "began_with.json").write_text(content)
    assert read_beginning(tmp_path) is None
    params = "seed: 3\ntrain_data: {0..3}.tar\nbatch_size: 4\naccum_freq: 1\nworld_size: 2\n"
    (tmp_path / "params.txt").write_text(params)
    record = read_beginning(tmp_path)
    assert (record["options"], record["global_batch_size"]) == ({"seed": 3}, 8)
    assert record["shards"]["number"] == 4


def test_a_lock_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    held = lock(tmp_path / "file/runs.lock", Placement(), flag="--runs")
    with pytest.raises(InputError, match=r"--runs: .*/file cannot be written"), held:
        pass


def test_the_first_error_is_that_of_a_killed_rank_or_else_the_earliest(tmp_path):
    Failure("rank 0", "Connection closed by peer", timestamp=2.0).write(tmp_path / "rank_0.error.json")
    Failure("rank 3", "ZeroDivisionError", timestamp=1.0).write(tmp_path / "rank_3.error.json")
    assert first_failure(tmp_path).who == "rank 3"
    Failure("rank 5", "Signal 9", timestamp=3.0, is_cause=True).write(tmp_path / "node_1.error.json")
    assert first_failure(tmp_path).who == "rank 5"


@pytest.mark.parametrize(("exit_code", "message", "kind"), [
    (-signal.SIGKILL, "it was ended from outside: Signal 9 (SIGKILL)", HARDWARE),
    (-signal.SIGABRT, "it was ended by Signal 6 (SIGABRT)", HARDWARE),
    (-signal.SIGTERM, "it was ended by Signal 15 (SIGTERM)", ""),
    (3, "it ended with exit code 3", ""),
])  # fmt: skip
def test_a_rank_that_could_not_say_why_it_failed_is_named_with_its_exit_code(tmp_path, exit_code, message, kind):
    failure = rank_failure(tmp_path, 2, exit_code)
    assert (failure.who, failure.message) == (f"rank 2 on {socket.gethostname()}", message)
    assert (failure.kind, failure.is_cause) == (kind, exit_code == -signal.SIGKILL)
    said = Failure("rank 2 on node1", "ZeroDivisionError: division by zero", "Traceback …", timestamp=1.5)
    said.write(tmp_path / "rank_2.error.json")
    assert rank_failure(tmp_path, 2, 1) == said


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
    assert (HARDWARE if OF_HARDWARE.search(message) else "") == kind
