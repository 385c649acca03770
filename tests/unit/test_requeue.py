"""What the job's script does after each exit code."""

import os
import subprocess

import pytest
from support import parametrize, write_program

from openclip_superclip.files import shipped_folder

SCONTROL = """
echo "$1 $2 $3" >>asked
[ $2 = hostnames ] && { echo "${3//,/$'\\n'}"; exit; }
echo " JobState=${STATE:-RUNNING} Restarts=${RESTARTS:-0} ExcNodeList=${EXCLUDED:-(null)} "
"""
# codes are srun's, one per start; the first node writes ENDED
SRUN = """
read -r code rest <codes; echo "${rest:-$code}" >codes
[ -z "$ENDED" ] || echo "$ENDED" >"$SUPERCLIP_ENDED"
echo start >>asked
exit $code
"""
# of two kinds, in a partition of which one is down
SINFO = """
case "$*" in
    *--nodes=*) echo "gpu:a100 (null)" ;;
    *) for node in $UP; do echo "$node gpu:a100 (null)"; done; echo "node9 (null) (null)" ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """A function that runs the script, and returns its exit code and what it has done."""
    for name, lines in {"scontrol": SCONTROL, "srun": SRUN, "sinfo": SINFO, "sleep": ":"}.items():
        write_program(tmp_path / name, lines)

    def run(codes, **variables):
        (tmp_path / "codes").write_text(f"{codes}\n")
        script = shipped_folder("slurm") / "train.sbatch"
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": "node1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_PARTITION": "gpu",
            **variables,
        }
        command = ["bash", script, "demo"]
        code = subprocess.run(command, env=environment, cwd=tmp_path, timeout=60).returncode
        asked = (tmp_path / "asked").read_text().splitlines()
        done = [line for line in asked if line.startswith(("start", "requeue", "update"))]
        return code, done

    return run


REQUEUED = ["start", "requeue 17 "]
FAILED = {"ENDED": "75 node1"}  # the second time


@parametrize(
    "codes, variables, code, done",
    [
        ("0", {}, 0, ["start"]),
        ("1", {}, 1, ["start"]),
        ("192", {}, 192, ["start"]),  # another node is refused
        ("75 75 0", {}, 0, ["start"] * 3),
        ("76 137 253 0", {}, 0, ["start"] * 4),
        ("76", {}, 76, ["start"] * 10),  # not for ever
        ("143", {}, 143, REQUEUED),  # a preemption, or a drained node
        ("143", {"STATE": "COMPLETING"}, 143, ["start"]),  # SLURM has requeued or ended it
        ("143", {"RESTARTS": "1"}, 143, ["start"]),
        ("253", {"ENDED": "1"}, 1, ["start"]),  # a process had too little memory
        ("137", {"ENDED": "0"}, 0, ["start"]),
        (
            "75",
            FAILED | {"UP": "node1 node2"},
            75,
            [*REQUEUED, "update JobId=17 ExcNodeList=node1"],
        ),
        ("75", FAILED | {"UP": "node1"}, 75, REQUEUED),
        ("75", FAILED | {"UP": "node1 node2", "EXCLUDED": "node2"}, 75, REQUEUED),
        (
            "75",
            FAILED | {"UP": "node1 node2 node3", "EXCLUDED": "node2"},
            75,
            [*REQUEUED, "update JobId=17 ExcNodeList=node2,node1"],
        ),
    ],
)
def test_an_exit_code_decides_what_follows(codes, variables, code, done, job):
    assert job(codes, **variables) == (code, done)


def test_a_container_that_bash_cannot_read_ends_the_job(job, tmp_path):
    (tmp_path / "asked").touch()
    assert job("0", SUPERCLIP_CONTAINER="env A='b") == (1, [])
