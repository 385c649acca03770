"""Writes openclip_superclip/plans/model_counts.json: python -m tests.support.model_counts."""

import json
import tempfile
from pathlib import Path

from openclip_superclip.demo.data import write_model
from openclip_superclip.plans.cost import COUNTS, count, counted_model
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe, shipped_recipes


def rows():
    """The counts of the shipped recipes, and of those with a class head also without it."""
    counted = {}
    with tempfile.TemporaryDirectory() as demo:
        write_model(Path(demo))
        for name, values in shipped_recipes().items():
            model = values["model"].replace("local-dir:demo/model", f"local-dir:{demo}")
            for method in (values["method"], values["method"].removeprefix("super")):
                recipe = read_recipe(name, {"model": model, "method": method})
                key = json.dumps(counted_model(recipe))
                if key not in counted:
                    counted[key] = count(make_run(recipe, gpus_per_node=8))
    return [{"model": json.loads(key), "counts": counts} for key, counts in counted.items()]


if __name__ == "__main__":
    text = ",\n".join(map(json.dumps, rows()))
    COUNTS.write_text(f'{{"models": [\n{text}\n]}}\n')
