"""Who requeues a job whose step has ended: SLURM, or the job's script."""

import os
import subprocess

import pytest
from support import parametrize, write_program

from openclip_superclip.files import shipped_folder

BEGUN, PREEMPTED = "2026-01-01T10:00:00", "2026-01-01T11:00:00"


@pytest.fixture
def is_ours(tmp_path):
    """Whether the script would start or requeue the job, after an exit code
    and what SLURM then answers; None if it waits."""

    def answer(code, job, mode, sleep="kill -9 $PPID"):
        write_program(
            tmp_path / "scontrol",
            f'[ $2 = partition ] && echo "   GraceTime=60 PreemptMode={mode} ReqResv=NO" && exit\n'
            f'echo "JobId=17"\nprintf "   %s \\n" {job}',
        )
        write_program(tmp_path / "sleep", sleep)
        script = (shipped_folder("slurm") / "train.sbatch").read_text()
        functions = script[
            script.index("# Returns whether this") : script.index("# Prints the nodes")
        ]
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_PARTITION": "gpu"}
        command = f"job=17 code={code} SLURM_RESTART_COUNT=1\n{functions}\nis_ours"
        done = subprocess.run(["bash", "-c", command], env=environment, check=False)
        return {0: True, 1: False}.get(done.returncode)

    return answer


@parametrize(
    "code, state, restarts, since, mode, expected",
    [
        (143, "RUNNING", 1, "None", "REQUEUE", True),  # a node is drained, or scancel --signal=TERM
        (143, "RUNNING", 1, PREEMPTED, "REQUEUE", None),  # in the grace time
        (143, "RUNNING", 1, "2026-01-01T09:00:00", "REQUEUE", True),  # of an earlier start
        (143, "RUNNING", 1, PREEMPTED, "GANG,REQUEUE", None),
        (143, "RUNNING", 1, PREEMPTED, "CANCEL", True),
        (143, "COMPLETING", 1, PREEMPTED, "REQUEUE", False),  # SLURM has requeued it
        (143, "RUNNING", 2, "None", "REQUEUE", False),
        (75, "RUNNING", 1, PREEMPTED, "REQUEUE", True),  # its time is nearly up
        (1, "CANCELLED", 1, "None", "OFF", False),
    ],
)
def test_a_job_that_slurm_requeues_is_not_requeued_by_its_script(
    code, state, restarts, since, mode, expected, is_ours
):
    job = (
        f'"JobState={state}" "Restarts={restarts}" "StartTime={BEGUN}" '
        f'"PreemptEligibleTime={BEGUN} PreemptTime={since}"'
    )
    assert is_ours(code, job, mode) is expected


def test_a_preempted_job_that_slurm_does_not_requeue_is_requeued_after_15_minutes(
    is_ours, tmp_path
):
    job = f'"JobState=RUNNING" "Restarts=1" "StartTime={BEGUN}" "PreemptTime={PREEMPTED}"'
    assert is_ours(143, job, "REQUEUE", sleep=f"echo $1 >> '{tmp_path}/slept'")
    assert sum(map(int, (tmp_path / "slept").read_text().split())) == 15 * 60


@parametrize("failed", ["an earlier start", "this start"])
def test_a_killed_start_is_requeued_unless_it_has_failed(failed, tmp_path):
    run = tmp_path / "run"
    state = f'printf \'\\n "state": "failed",\\n "since": "%s",\\n\' now >\'{run}/state.json\'\n'
    write_program(tmp_path / "srun", f"{state if failed == 'this start' else ''}kill -TERM $$")
    write_program(
        tmp_path / "scontrol",
        f"[ $2 = hostnames ] && echo localhost && exit\necho $1 >>'{tmp_path}/asked'\n"
        'echo " JobState=RUNNING Restarts=0 "',
    )
    run.mkdir()
    (run / "state.json").write_text('{\n "state": "failed",\n "since": "noon",\n}\n')
    job = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_PARTITION": "gpu"}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES": "1", **job}
    script = shipped_folder("slurm") / "train.sbatch"
    done = subprocess.run(["bash", script, run], env=environment, check=False)
    assert done.returncode == 143
    assert (tmp_path / "asked").exists() == (failed == "an earlier start")


def test_a_container_that_bash_cannot_read_ends_the_job(tmp_path):
    write_program(tmp_path / "srun", "exit 0")
    script = shipped_folder("slurm") / "train.sbatch"
    environment = {"PATH": f"{tmp_path}:/bin", "SUPERCLIP_CONTAINER": "env A='b"}
    assert subprocess.run(["bash", script, "demo"], env=environment, check=False).returncode == 1
