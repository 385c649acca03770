"""superclip plan: what a recipe comes to on given machines and data, before anything is trained."""

import argparse
import json
import math

from ..errors import InputError
from .recipe_options import add_recipe_options, all_settings

MFU, GPU_TFLOPS = 0.4, 312.0  # of an A100's bfloat16


def main(argv: list[str]) -> int:
    """Prints the plan and returns the exit code, 1 where --check finds a bad shard."""
    options = _parse(argv)
    from ..planning.cost import estimate_cost
    from ..planning.gpu_memory import estimate_memory, find_gpu
    from ..planning.plan import make_plan
    from ..planning.plan_summary import plan_text
    from ..planning.recipe_file import read_recipe
    from ..planning.rehearsed import read_rehearsal
    from ..planning.table_data import with_table

    if options.gpu is not None:
        options.gpu = find_gpu(options.gpu)
    gpu_tflops = options.gpu.tflops if options.gpu else None
    options.gpu_tflops = options.gpu_tflops or gpu_tflops or GPU_TFLOPS
    recipe = read_recipe(options.recipe, with_table(options.recipe, all_settings(options), options.data))
    plan = make_plan(
        recipe, options.nodes, options.gpus_per_node, options.data, options.gpu_batch_max, options.workers,
        options.device,
    )  # fmt: skip
    looks = options.data is not None or options.check
    if not looks:
        plan.warnings.extend(plan.check_shards())
    rehearsed = read_rehearsal(options.rehearsal, plan, options.gpu) if options.rehearsal else None
    speed = rehearsed["samples_per_second"]["median"] if rehearsed else options.samples_per_second
    cost = estimate_cost(plan, options.mfu, options.gpu_tflops, speed)
    memory = estimate_memory(plan, options.gpu)
    checked = plan.check_data(full=options.check, jobs=options.jobs) if looks else None
    if options.json:
        print(
            json.dumps(
                {**plan.as_dict(), "cost": cost, "memory": memory, "rehearsal": rehearsed, "data_check": checked},
                indent=1,
            )
        )
    else:
        print(plan_text(plan, cost, memory, checked, rehearsed))
    return 1 if options.check and checked["bad"] else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="superclip plan",
        description="Prints the whole plan of a run: OpenCLIP's command, batch arithmetic, steps, slices, FLOPs and "
        "sizes, and what is known of the data.",
        epilog="example: superclip plan datacomp1b/superclip_vit-b-16_512m_bs16k --nodes 4",
    )
    add_recipe_options(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--gpus-per-node", type=int, default=1, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read all shards, not the first and the last; exit code 1 where one is bad",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes that --check reads with (default: one per core)"
    )
    parser.add_argument(
        "--mfu", type=float, default=MFU, metavar="SHARE",
        help="share of its peak that a GPU reaches, recomputation counted (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu-tflops", type=float, metavar="T",
        help=f"that peak, in 10^12 FLOPs a second (default: --gpu's in bfloat16, an A100's {GPU_TFLOPS:g} without it)",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", metavar="TYPE",
        help="refuse a batch that it cannot hold: A100-40, A100-80, H100-80, H200, L40S-48, or bytes such as 24GB",
    )  # fmt: skip
    parser.add_argument(
        "--samples-per-second", type=float, metavar="S", help="of all GPUs together, where you have measured it"
    )
    parser.add_argument(
        "--rehearsal", metavar="FILE", help="rehearsal.json of superclip rehearse, instead of what is assumed"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    for flag in ("mfu", "gpu_tflops", "samples_per_second", "jobs"):
        value = getattr(options, flag)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"--{flag.replace('_', '-')} is {value}; expected a number above 0")
    if options.jobs is not None and not options.check:
        raise InputError("--jobs does nothing without --check: add --check, or leave --jobs out")
    if options.gpu is not None and options.device == "cpu":
        raise InputError("--gpu does nothing with --device cpu: leave one of them out")
    if options.rehearsal and options.samples_per_second:
        raise InputError("--rehearsal holds the samples a second: leave --samples-per-second out")
    if options.mfu > 1:
        raise InputError(f"--mfu is {options.mfu}; expected a share of the peak, 0.4 for 40 %")
    return options
