"""`superclip plan` computes the memory that OpenCLIP's trainer allocates,
and keeps it."""

import os
import re
import sys

import open_clip
import pytest
import torch
from open_clip_train.train import train_one_epoch
from support import DATA, cases, input_error, parametrize, read_json, succeed, table
from support.models import Batches, as_rank_1, create_model, write_model
from support.training_runs import execute
from torch._C._profiler import _EventType

from openclip_superclip import environment, hooks
from openclip_superclip.errors import InputError
from openclip_superclip.openclip import current
from openclip_superclip.openclip.hook_calls import plugins_model_class
from openclip_superclip.openclip.step_memory import Step
from openclip_superclip.openclip.train import check_command
from openclip_superclip.plans.cost import estimate_cost, estimate_memory, step_memory
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.recipe_files import read_recipe

needs_loop = pytest.mark.skipif(
    current().HAS_TASKS, reason="OpenCLIP 4 trains with a state made by its main"
)
LARGER = read_json(DATA / "larger_model.json")


def run_of(model, batch_max=None, **set_):
    name = "superclip" if set_.pop("head", True) else "clip"
    recipe = read_recipe(f"demo/{name}_demo-model_8k_bs64", {"model": model, **set_})
    return make_run(recipe, gpu_batch_max=batch_max, device="cpu")


def train(run):
    """Trains two steps as OpenCLIP's main does."""
    args = as_rank_1(check_command(run.openclip_arguments()))
    with plugins_model_class():
        model = create_model(args)
    loss = hooks.plugin_manager().hook.open_clip_create_loss(args=args, model=model)
    loss = loss or open_clip.create_loss(args)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = Batches(model, args.batch_size, 2 * args.accum_freq, model.context_length)
    data = {"train": batches}
    train_one_epoch(model, data, loss, 0, optimizer, None, lambda step: None, None, args)


def allocated_peak(function, *args):
    """Returns the most bytes that torch's allocator of the CPU holds while
    the function runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function(*args)
    waiting = list(profile.profiler.kineto_results.experimental_event_tree())
    total, peak, allocations = 0, 0, []
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            allocations.append((event.start_time_ns, event.extra_fields.alloc_size))
    for _, num_bytes in sorted(allocations, key=lambda allocation: allocation[0]):
        total += num_bytes
        peak = max(peak, total)
    return peak


@needs_loop
@cases("changes", table("plans: memory"))
def test_the_planned_peak_is_what_openclips_trainer_allocates(changes, tmp_path):
    run = run_of(write_model(tmp_path, **LARGER), **changes)
    planned = step_memory(run)["peak_bytes"]
    assert planned == pytest.approx(allocated_peak(train, run), rel=0.1)


RELEASED = "datacomp1b/superclip_vit-b-16_512m_bs16k"


def released(name=RELEASED, nodes=4, set_=None, **options):
    return make_run(read_recipe(name, set_), nodes, 8, **options)


def test_the_parts_of_the_peak_are_those_that_one_calculates_by_hand():
    ours = step_memory(released())
    clip = step_memory(released("datacomp1b/clip_vit-b-16_512m_bs16k"))
    num_parameters = 187_617_025
    assert ours["peak_bytes"] == sum(
        ours[part] for part in "parameters gradients optimizer activations".split()
    )
    assert ours["parameters"] == pytest.approx(4 * num_parameters, rel=0.01)  # and buffers
    assert ours["optimizer"] == pytest.approx(8 * num_parameters, rel=0.01)
    # DistributedDataParallel's copy, and the gradients that the backward
    # pass has made
    assert 4 * num_parameters <= ours["gradients"] <= 8 * num_parameters
    assert clip["head"] == 0
    # weight, its two moments and its copy of the gradient, and the gradient
    assert ours["head"] == pytest.approx(5 * 4 * 37_996_288, rel=0.01)
    assert ours["peak_bytes"] - clip["peak_bytes"] == pytest.approx(ours["head"], rel=0.05)


def test_the_similarity_matrix_of_the_global_batch_is_counted():
    flags = {"flags.local-loss": "false", "flags.gather-with-grad": "false"}
    local, whole = step_memory(released()), step_memory(released(set_=flags))
    matrix = 2 * 16_384**2  # in bfloat16
    assert whole["peak_bytes"] - local["peak_bytes"] > 2 * matrix


def test_the_largest_batch_of_a_card_is_the_largest_whose_plan_fits():
    set_ = {"flags.grad-checkpointing": "false"}
    batches = step_memory(released(nodes=1, set_=set_))["largest_batches"]
    assert batches["24"] < batches["40"] < batches["80"]
    for size, fits in ((batches["24"], True), (2 * batches["24"], False)):
        run = released(nodes=1, set_=set_, gpu_batch_max=size)
        step = Step(run.openclip_arguments(), run.world_size)
        assert (step.peak(run.batch_size, run.accum_freq).total <= 24e9) == fits


def test_a_model_that_fits_no_card_has_no_batch():
    run = released(set_={"model": "ViT-bigG-14", "global_batch_size": "32", "samples": "512000"})
    assert step_memory(run)["largest_batches"] == {"24": 0, "40": 0, "80": 1}


@parametrize("name", "resnet timm-vit timm-convnext coca".split())
def test_other_towers_are_planned(name, models):
    assert step_memory(run_of(models[name]))["activations"] > 0


def test_a_flag_that_changes_how_memory_is_used_is_refused_in_the_output():
    run = released()
    run.recipe.flags["use-naflex"] = True
    assert estimate_memory(run) == {"problem": "--use-naflex is not supported"}


def test_a_repeated_plan_imports_neither_torch_nor_openclip(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path / "openclip-superclip")
    command = f"plan {RELEASED} --set model=ViT-Ti-16-96 --json"
    first = execute(command)
    again = [sys.executable, "-X", "importtime", "-m", "openclip_superclip", *command.split()]
    environ = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    second = succeed(again, env=environ, cwd=tmp_path)
    assert second.stdout == first
    imported = re.findall(r"\| +([\w.]+)$", second.stderr, flags=re.MULTILINE)
    assert "openclip_superclip.plans.plan" in imported
    assert not {"torch", "open_clip"}.intersection(imported)


def test_what_is_kept_is_computed_again_if_the_models_file_changes(tmp_path):
    narrow, wide = (write_model(tmp_path / "model", vision={"width": width}) for width in (64, 64))
    first = estimate_cost(run_of(narrow))["parameters"]
    write_model(tmp_path / "model", vision={"width": 128})
    assert estimate_cost(run_of(wide))["parameters"] > first


@pytest.fixture
def calls(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CACHE", tmp_path / "cache")
    return []


def keep(calls, inputs):
    def compute():
        calls.append(inputs)
        if inputs == "bad":
            raise InputError("bad")
        return {"result": inputs}

    return environment.kept("numbers", inputs, compute)


def test_a_result_is_computed_once_for_each_input(calls):
    assert [keep(calls, inputs) for inputs in (1, 2, 1)] == [{"result": n} for n in (1, 2, 1)]
    assert calls == [1, 2]


def test_a_damaged_file_of_the_cache_is_computed_again(calls, tmp_path):
    keep(calls, 1)
    (file,) = (tmp_path / "cache" / "numbers").iterdir()
    file.write_text("{")
    assert keep(calls, 1) == keep(calls, 1) == {"result": 1}
    assert calls == [1, 1]


def test_an_error_is_not_kept(calls):
    for _ in range(2):
        with input_error("bad"):
            keep(calls, "bad")
    assert calls == ["bad", "bad"]


def test_a_cache_that_cannot_be_written_is_left_out(calls, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert keep(calls, 1) == keep(calls, 1)
    assert calls == [1, 1]


def test_another_version_of_a_source_file_computes_again(calls, monkeypatch):
    keep(calls, 1)
    monkeypatch.setattr(environment, "_sources", lambda: iter([("loss.py", 1, 1)]))
    keep(calls, 1)
    assert calls == [1, 1]


def test_a_plan_prints_the_memory_and_what_it_leaves_out():
    text = " ".join(execute(f"plan {RELEASED} --nodes 4 --gpus-per-node 8").split())
    assert re.search(r"memory [\d.]+ GB per GPU at the peak of a step: parameters 751 MB, ", text)
    assert "(--gpu-batch-max): 512 in 24 GB, 512 in 40 GB, 512 in 80 GB." in text
    assert "never measured on a GPU: the CUDA context, workspaces and fragmentation need" in text
