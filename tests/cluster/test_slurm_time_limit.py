"""A run that SLURM's time limit ends, on a real cluster of two nodes."""

import pytest
from support.plugins import write_slow_loss
from support.slurm_cluster import ON_CPUS, attempts, submit, write_setup
from support.tiny_run import assert_equal_weights

pytestmark = pytest.mark.slurm


def test_a_job_that_reaches_its_time_limit_stops_in_its_last_minute_and_resumes(
    cluster, work, recipe, undisturbed
):
    seconds = "0 if 'SLURM_RESTART_COUNT' in os.environ else 2"
    write_setup(work / "slower", write_slow_loss(work / "slower steps", seconds))
    run = work / "runs/limited"
    job = submit(cluster, recipe, run, f"{ON_CPUS} --setup slower --time 3")
    ended = cluster.complete(job, run / f"slurm-{job}.out")
    *limited, last = attempts(run)
    assert {one["error"] for one in limited} == {"stopped by SIGUSR1"}
    assert int(ended["Restarts"]) == len(limited) == last["restarts"]
    assert_equal_weights(run, undisturbed)
