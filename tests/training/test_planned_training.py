"""OpenCLIP trains what `superclip plan` has computed."""

import pytest
import torch
from support.data import write_shards
from support.training_runs import run_train

from openclip_superclip.demo.data import write_model as write_demo_model
from openclip_superclip.plans.cost import estimate_cost
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe


def test_openclip_runs_the_steps_that_were_planned_and_writes_checkpoints_of_the_planned_size(
    tmp_path,
):
    """The demo's recipe, planned for 3 data loaders."""
    write_demo_model(tmp_path / "demo/model")
    write_shards(tmp_path / "shards")
    model = f"local-dir:{tmp_path}/demo/model"
    set_ = {"samples": "128", "data_samples": "256", "global_batch_size": "8", "model": model}
    ours = make_run(
        read_recipe("demo/superclip_demo-model_8k_bs16", set_),
        1,
        1,
        data=f"{tmp_path}/shards/{{000000..000015}}.tar",
        workers=3,
        device="cpu",
        gpu_batch_max=4,
    )
    # 2 of 4 slices, 8 steps and so 16 micro-batches each: 3 workers give 18
    # of them, 9 steps.
    assert (ours.num_slices, ours.accum_freq, ours.slice_steps, ours.steps) == (2, 2, 9, 18)
    run_train(*ours.openclip_arguments(), "--logs logs --name run", cwd=tmp_path)
    folder = tmp_path / "logs/run/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["epoch_1.pt", "epoch_2.pt"]
    checkpoint = torch.load(folder / "epoch_2.pt", weights_only=True)
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {
        ours.steps
    }
    assert checkpoint["state_dict"]["statistics.num_captions"] == ours.samples
    cost = estimate_cost(ours)
    assert cost["checkpoint_bytes"] == pytest.approx(
        (folder / "epoch_1.pt").stat().st_size, rel=0.01
    )
    assert cost["disk_bytes"] == 2 * cost["checkpoint_bytes"]
