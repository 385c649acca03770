"""The arguments of `superclip train` that a plan comes to."""

from ..data.table_columns import is_table_file
from .recipe_rules import CONFIG_FIELDS


def train_arguments(plan) -> list[str]:
    """Returns OpenCLIP's command line of a Plan, without --logs, --name and --resume."""
    recipe = plan.recipe
    of_shards = {"train-num-samples": plan.slice_samples, "superclip-slices": plan.slices_per_pass}
    tables = plan.is_table or is_table_file(recipe.flags.get("val-data"))
    values = {
        "model": recipe.model,
        "train-data": plan.data,
        "dataset-type": "auto" if tables else "webdataset",
        **({} if plan.is_table else of_shards),
        "epochs": plan.num_slices,
        "batch-size": plan.batch_size,
        "accum-freq": plan.accum_freq,
        "workers": plan.workers,
        "lr": recipe.lr,
        "warmup": recipe.warmup,
        "lr-scheduler": recipe.schedule,
        "beta1": recipe.beta1,
        "beta2": recipe.beta2,
        "eps": recipe.eps,
        "wd": recipe.wd,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "device": plan.device,
        **recipe.flags,
    }
    arguments = [argument for flag, value in values.items() for argument in _arguments(f"--{flag}", value)]
    if recipe.superclip is not None:
        arguments.append("--superclip")
        for field, value in recipe.superclip.items():
            arguments += _arguments(CONFIG_FIELDS[field].metadata["flag"], value)
    return arguments


def _arguments(flag: str, value) -> list[str]:
    """Returns what the command line holds of a flag: nothing for False, its name alone for True."""
    if isinstance(value, bool):
        return [flag] if value else []
    return [flag, *map(str, value if isinstance(value, list) else [value])]
