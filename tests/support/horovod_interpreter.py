"""Trains in an interpreter that has Horovod, which pytest's own must not
have: OpenCLIP uses it wherever it finds it.

    python -m support.horovod_interpreter JOBS RUNS

JOBS holds {name: [function of FUNCTIONS, number of ranks, folder,
arguments]}, and RUNS gets {name: [run, …]}.
"""

import json
import sys
from pathlib import Path

import conftest  # noqa: F401  # the environment of the tests

from openclip_superclip.trainer.horovod import join_ranks
from support.training_runs import in_one_order, run_ranks, stock_train, superclip_train


def stock_train_under_horovod(*argv):
    """`python -m open_clip_train.main` with WebDataset's shuffling in one
    order."""
    join_ranks()
    return in_one_order(stock_train)(*argv)


def superclip_train_in_one_order(*argv):
    return in_one_order(superclip_train)(*argv)


FUNCTIONS = {
    function.__name__: function
    for function in (superclip_train, superclip_train_in_one_order, stock_train_under_horovod)
}


def main(jobs, runs):
    done = {}
    for name, (function, world_size, folder, arguments) in json.loads(
        Path(jobs).read_text()
    ).items():
        Path(folder).mkdir(exist_ok=True)
        done[name] = run_ranks(
            FUNCTIONS[function], *arguments, world_size=world_size, cwd=Path(folder)
        )
    Path(runs).write_text(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
