"""`superclip plan`: its arithmetic is that of a calculation by hand, its
steps are those that OpenCLIP runs."""

import re
import shlex
import types

import open_clip_train.data
import pytest
from support import cases, parametrize, refusals, table
from support.models import write_hf_text_model
from support.training_runs import execute

from openclip_superclip.checkpoints.architecture import expected_head, read_architecture
from openclip_superclip.data.slices import batches_of_shards
from openclip_superclip.plans.cost import count_gmacs, estimate_cost
from openclip_superclip.plans.plan import make_run
from openclip_superclip.plans.plan_text import command_text
from openclip_superclip.plans.recipe_files import read_recipe

RELEASED = "datacomp1b/superclip_vit-b-16_512m_bs16k"


# layers and width of the text tower
TEXT_TOWERS = {"ViT-L-16": (12, 768), "ViT-B-16": (12, 512)}


def attention_gmacs(layers, width, tokens):
    """GMACs of attention's own products, which the paper does not count."""
    return layers * 2 * tokens**2 * width / 1e9


@cases("model, vision, text, share, layers, width", table("plans: FLOPs of the paper"))
def test_the_head_adds_the_fraction_of_flops_that_the_paper_states(
    model, vision, text, share, layers, width
):
    built = read_architecture(model).build()
    gmacs = count_gmacs(built, expected_head(built))
    of_vision = gmacs["vision"] - attention_gmacs(layers, width, 197)
    of_text = gmacs["text"] - attention_gmacs(*TEXT_TOWERS[model], 77)
    # the paper's count contains norms and biases, too
    assert of_vision == pytest.approx(vision, rel=2e-3)
    assert of_text == pytest.approx(text, rel=2e-3)
    assert gmacs["head"] / (of_vision + of_text) == pytest.approx(share, rel=0.02)


def plan(name=RELEASED, nodes=4, gpus=8, set_=None, **options):
    return make_run(read_recipe(name, set_), nodes, gpus, **options)


def test_the_plan_of_the_released_run_on_four_nodes_matches_a_calculation_by_hand():
    ours = plan()
    assert (ours.world_size, ours.batch_size, ours.accum_freq) == (32, 512, 1)  # 16,384 / 32
    assert (ours.steps, ours.samples) == (31_250, 512_000_000)  # 512 M / 16,384
    # 512 M × 300 / 1.3 G = 118.2, and 125 divides 31,250
    assert (ours.recipe.slices, ours.num_slices, ours.slice_steps) == (300, 125, 250)
    assert ours.slice_samples == 4_096_000
    assert ours.warnings == []


@cases("nodes, gpus, gpu_batch_max, batch_size, accum_freq", table("plans: batches of gpus"))
def test_a_gpus_memory_bounds_its_batch_and_the_rest_is_accumulated(
    nodes, gpus, gpu_batch_max, batch_size, accum_freq
):
    ours = plan(nodes=nodes, gpus=gpus, gpu_batch_max=gpu_batch_max)
    assert (ours.batch_size, ours.accum_freq) == (batch_size, accum_freq)
    assert ours.steps == 31_250
    flags = dict(zip(ours.openclip_arguments(), ours.openclip_arguments()[1:], strict=False))
    assert (flags["--batch-size"], flags["--accum-freq"]) == (str(batch_size), str(accum_freq))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@cases("num_samples, batch_size, world_size, workers, accum_freq", table("plans: steps of slices"))
def test_the_steps_of_a_slice_are_openclips(
    num_samples, batch_size, world_size, workers, accum_freq, shards
):
    args = types.SimpleNamespace(
        train_data=shards.replace("{0..1}", "{0..29}"),
        train_num_samples=num_samples,
        dataset_resampled=False,
        seed=0,
        train_data_upsampling_factors=None,
        batch_size=batch_size,
        world_size=world_size,
        workers=workers,
    )
    data = open_clip_train.data.get_wds_dataset(args, None, is_train=True, tokenizer=None)
    expected = data.dataloader.num_batches // accum_freq  # train_one_epoch's num_batches_per_epoch
    assert batches_of_shards(num_samples, batch_size, world_size, workers) // accum_freq == expected


def test_steps_that_openclip_rounds_up_and_a_long_warm_up_are_warned_of():
    ours = plan(workers=4)
    assert ours.steps == 125 * 252  # 4 workers give as many batches each
    assert ours.warnings == [
        "OpenCLIP will run 31,500 steps (516,096,000 samples) instead of the recipe's 31,250 "
        "(512,000,000)"
    ]
    (warning,) = plan(set_={"samples": "4096000"}).warnings
    assert warning == "warm-up takes 500 steps, but the run has 250: shorten it with --set warmup=N"


@cases("set_, num_slices, slice_steps", table("plans: numbers of slices"))
def test_as_few_slices_are_trained_as_hold_the_samples(set_, num_slices, slice_steps):
    ours = plan(set_=set_)
    assert (ours.num_slices, ours.slice_steps) == (num_slices, slice_steps)
    assert ours.samples >= ours.recipe.samples
    assert bool(ours.warnings) == (ours.samples != ours.recipe.samples)


@parametrize(
    "name, kept",
    [
        # the two newest, the one that is being written, and four of every fifth of 125
        (RELEASED, 7),
        ("datacomp1b/clip_vit-l-16_12.8b_bs16k", 13),  # and the ends of 10 passes
    ],
)
def test_the_disk_estimate_counts_the_checkpoints_that_are_kept(name, kept):
    cost = estimate_cost(plan(name))
    assert cost["disk_bytes"] == kept * cost["checkpoint_bytes"]


def test_flops_are_three_forward_passes_and_one_more_for_checkpointing_and_for_accumulation():
    towers, head = 17.563 + 2.980, 0.038  # README: ViT-B-16, attention's products included
    cost = estimate_cost(plan())
    assert cost["flops_per_sample"] == pytest.approx(2e9 * (4 * towers + 3 * head), rel=1e-3)
    assert cost["flops"] == cost["flops_per_sample"] * 512_000_000
    assert cost["gpu_hours"] == pytest.approx(cost["flops"] / (cost["utilization"] * 312e12 * 3600))
    assert cost["hours"] == pytest.approx(cost["gpu_hours"] / 32)
    accumulated = estimate_cost(plan(gpu_batch_max=256))
    assert accumulated["flops_per_sample"] - cost["flops_per_sample"] == pytest.approx(
        2e9 * towers, rel=1e-3
    )
    measured = estimate_cost(plan(), samples_per_second=64_000)
    assert (
        measured["hours"]
        == pytest.approx(512e6 / 64_000 / 3600)
        == pytest.approx(measured["gpu_hours"] / 32)
    )
    assert measured["slice_hours"] == pytest.approx(4.096e6 / 64_000 / 3600)


def test_the_model_is_counted_with_the_flags_that_change_it_and_without_reading_weights(tmp_path):
    run = plan(set_={"model": "ViT-B/16"})
    assert "ViT-B-16" in run.openclip_arguments()
    ours = estimate_cost(run)
    clip = estimate_cost(plan("datacomp1b/clip_vit-b-16_512m_bs16k"))
    assert ours["parameters"] - clip["parameters"] == ours["head_parameters"] == 37_996_288
    assert clip["parameters"] == 149_620_737
    flip = estimate_cost(plan("flip_vit-b-16_512m_bs16k"))
    assert flip["forward_gmacs"]["vision"] == pytest.approx(
        ours["forward_gmacs"]["vision"] / 2, rel=0.01
    )
    larger = estimate_cost(
        plan(set_={"flags.force-image-size": "448", "flags.force-context-length": "154"})
    )
    # position embeddings
    assert larger["parameters"] - ours["parameters"] == 3 * 14 * 14 * 768 + 77 * 512
    assert larger["flops"] > 3.9 * ours["flops"]
    model = write_hf_text_model(tmp_path)
    (tmp_path / "tower/model.safetensors").unlink()
    gmacs = estimate_cost(plan(set_={"model": model}))["forward_gmacs"]
    # BERT's linear layers
    assert gmacs["text"] == pytest.approx(20 * (2 * (4 * 48**2 + 2 * 48 * 96) + 48**2) / 1e9)


@parametrize(
    "name, published",
    [
        ("datacomp1b/clip_vit-b-16_512m_bs16k", 310),
        ("finetune/superclip_vit-l-14_51.2m_bs4k", 66),
    ],
)
def test_hours_are_those_of_openclips_slowest_published_run(name, published):
    """Samples per second and A100; ours recompute the forward pass, which
    the runs of ViT-B/16 did not."""
    ours = plan(
        name, nodes=1, gpus=1, set_={"flags.grad-checkpointing": "false"} if "b-16" in name else {}
    )
    speed = ours.samples / estimate_cost(ours)["hours"] / 3600
    assert speed == pytest.approx(published, rel=0.01)


@cases("nodes, gpus, launcher", table("plans: launchers"))
def test_the_printed_command_is_the_plans_for_a_shell(nodes, gpus, launcher):
    ours = plan(nodes=nodes, gpus=gpus, data="a folder/{0..9}.tar")
    named = f"--logs runs --name {ours.recipe.name}".split()
    words = shlex.split(command_text(ours).replace("\\\n", ""))
    assert words == [*launcher.split(), *ours.openclip_arguments(), *named]


@parametrize(
    "flag", ["report-to=wandb", "use-bnb-linear=SwitchBackLinear", "pretrained=on-nodes.pt"]
)
def test_files_and_packages_that_only_nodes_have_are_planned(flag):
    name, value = flag.split("=")
    assert value in plan(set_={f"flags.{name}": value}).openclip_arguments()


@cases("arguments, reason", refusals("plan"))
def test_impossible_plans_are_refused_in_one_line(arguments, reason, tmp_path, refused):
    assert reason in refused(tmp_path, f"plan {RELEASED} {arguments}")


def plan_text(command):
    return " ".join(execute(f"plan {command}").split())


def test_a_plan_says_what_an_interruption_loses_and_how_it_would_lose_less(tmp_path):
    text = plan_text(f"{RELEASED} --set slices=60")
    assert "every 1,250 steps, 3.1 hours: the most that an interruption loses" in text
    (slices,) = re.findall(r"warning a slice takes 3.1 hours, .*: --set slices=(\d+) brings", text)
    shorter = estimate_cost(plan(nodes=1, set_={"slices": slices}))
    assert 0.25 < shorter["slice_hours"] < 0.51
    assert "a slice takes" not in plan_text(f"{RELEASED} --set slices=60 --nodes 4")


def test_plan_and_submit_have_one_default_of_gpus():
    for command in ("plan", "submit --dry-run"):
        text = " ".join(execute(f"{command} {RELEASED}").split())
        assert "batch 16,384 = 2,048 per GPU × 8 (8 per node)" in text
    text = plan_text(f"{RELEASED} --device cpu --set global_batch_size=64")
    assert "batch 64 = 64 per process × 1 (1 per node)" in text


def test_if_every_checkpoint_is_kept_the_plan_says_so():
    text = plan_text("coco/clip_vit-b-16_20.48m_bs1k --set 'samples=4 passes'")
    assert "superclip run keeps all: at most" in text


def test_a_plan_prints_the_exact_bytes_that_need_no_activations():
    clip, superclip = (
        estimate_cost(make_run(read_recipe(f"datacomp1b/{method}_vit-b-16_512m_bs16k"), 4, 8))
        for method in ("clip", "superclip")
    )
    num_parameters = 149_620_737  # of OpenCLIP's ViT-B-16
    of_clip = clip["memory_bytes"]
    assert of_clip["gradients"] == 4 * num_parameters
    assert of_clip["optimizer"] == 8 * num_parameters
    assert of_clip["weights"] - 4 * num_parameters == 4 * 77**2  # the text tower's causal mask
    head = superclip["memory_bytes"]["head"]
    assert (of_clip["head"], head) == (0, 4 * 4 * superclip["head_parameters"])
    text = " ".join(execute(f"plan {RELEASED} --nodes 4 --gpus-per-node 8").split())
    assert "memory weights 751 MB, gradients 750 MB, AdamW's moments 1.5 GB; of these" in text


def test_a_locked_tower_needs_memory_for_its_weights_alone():
    locked = {"flags.lock-image": "true", "flags.lock-image-unlocked-groups": "3"}
    whole, part = (
        estimate_cost(make_run(read_recipe(RELEASED, flags), 4, 8))["memory_bytes"]
        for flags in ({}, locked)
    )
    assert part["weights"] == whole["weights"]
    assert part["gradients"] < 0.8 * whole["gradients"]
