"""What the tests on a SLURM cluster share."""

import pytest
from filelock import FileLock
from support.plugins import write_slow_loss
from support.slurm_cluster import ON_CPUS, submit, write_setup
from support.tiny_run import write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the jobs are submitted from."""
    return tmp_path_factory.mktemp("at 50% of slurm")


@pytest.fixture(scope="module")
def recipe(work):
    return write_recipe(work, batch=4)  # many steps: time to disturb a run in the midst of them


@pytest.fixture(scope="module")
def slow_steps(work):
    """A --setup: each slice takes four seconds, so that all is noticed
    within the one in which it happens."""
    write_setup(work / "slow steps", write_slow_loss(work / "slow", 0.25))
    return "--setup 'slow steps'"


@pytest.fixture(scope="session")
def undisturbed(cluster, shared_folder):
    """A run of the same recipe on both nodes that nothing has disturbed,
    trained once for all workers."""
    work = shared_folder / "undisturbed at 50% of slurm"
    run = work / "runs/undisturbed"
    with FileLock(shared_folder / "undisturbed.lock"):
        if not work.exists():
            job = submit(cluster, write_recipe(work, batch=4), run, ON_CPUS)
            cluster.complete(job, run / f"slurm-{job}.out")
    return run
