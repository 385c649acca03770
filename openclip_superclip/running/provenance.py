"""What a run ran with: plan, versions, code, machines, environment."""

import os
import re
import shlex
import subprocess
from collections.abc import Mapping

from ..checkpoints.began_with import DEPENDS_ON
from ..planning.plan import Plan
from ..shipped_files import PACKAGE
from ..versions import versions
from .placement import Placement, hosts

RECORDED = re.compile(r"(CUDA|NCCL|SLURM|OMP|TORCH|PYTORCH|GLOO|FI|UCX|HOROVOD|MASTER)_|HF_HUB_OFFLINE$")
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|JWT|CREDENTIAL|AUTH", re.IGNORECASE)


def what_runs(plan: Plan, arguments: list[str], set_: Mapping[str, str]) -> dict:
    """Returns what run.json tells of a run, `arguments` being those of `superclip train`."""
    return {
        "command": ["superclip", "train", *arguments],
        "cwd": os.getcwd(),
        "plan": plan.as_dict(),
        "data_check": None,
        "set": dict(set_),
        "versions": versions(*DEPENDS_ON),
        "git": git_commit(),
        "hosts": hosts(),
        "environment": recorded_environment(),
    }


def which_start(placement: Placement, plan: Plan, logs: str, launcher: list[str]) -> dict:
    """Returns what run.json tells of one start of a run."""
    return {
        "job": placement.job,
        "restarts": placement.restarts,
        "step": placement.step,
        "hosts": hosts(),
        "nodes": placement.num_nodes,
        "processes": plan.gpus_per_node,
        "ranks": f"ranks/{logs}",
        "launcher": shlex.join(launcher),
    }


def git_commit() -> str | None:
    """Returns the commit of the checkout that this package runs from, with "-dirty" where files differ from it."""
    checkout = PACKAGE.parent
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables that decide how a run goes, and no secret."""
    names = (name for name in environment if RECORDED.match(name) and not SECRET.search(name))
    return {name: environment[name] for name in sorted(names)}
