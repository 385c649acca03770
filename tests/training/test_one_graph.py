"""torch.compile traces a training step, counts and class loss included, as
one graph."""

import shutil

import open_clip
import pytest
import torch
from support import cases
from support.models import SPECIAL_TOKENS, assert_equal
from support.three_steps import batch, results_of

from openclip_superclip import create_model_and_transforms
from openclip_superclip.method.loss import SuperCLIPLoss
from openclip_superclip.method.model import SuperCLIP, SuperCoCa
from openclip_superclip.trainer import current, openclip_4


@pytest.fixture(scope="module")
def captions(models):
    """Eight images and the tokens of their captions."""
    return batch(models["one-layer"], 8)


def training_step(model, loss):
    """The forward pass of OpenCLIP's training: of its task, if it has
    tasks, as the adapter changes it."""
    if not current().HAS_TASKS:
        return lambda images, texts: loss(**model(images, texts), output_dict=True)
    if isinstance(model, SuperCoCa):
        task = open_clip.task.CoCaTask(model, loss=loss)
        task._build_loss_inputs = openclip_4.with_every_output(task._build_loss_inputs)
    else:
        task = open_clip.task.CLIPTask(model, loss=loss)
    return lambda images, texts: task.training_forward({"image": images, "text": texts})[0]


def gradients_and(losses, model):
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return gradients | {name: loss.detach() for name, loss in losses.items()}


def two_steps(model, loss, images, texts, **compiled):
    """Losses and gradients of two steps, by name; compiled, if options of
    torch.compile are given."""
    torch.compiler.reset()
    step = training_step(model, loss)
    if compiled:
        step = torch.compile(step, fullgraph=True, **compiled)
    results = []
    for _ in range(2):
        model.zero_grad()
        losses = step(images, texts)
        sum(losses[name] for name in losses if name.endswith("_loss")).backward()
        results.append(gradients_and(losses, model))
    return results


@pytest.fixture
def clip(models):
    """Makes a model of one layer, with options of the head."""

    def clip(**superclip):
        torch.manual_seed(0)
        config = open_clip.get_model_config(models["one-layer"])
        options = {"ignored_tokens": SPECIAL_TOKENS, **superclip}
        return SuperCLIP(**config, superclip=options).train()

    return clip


def assert_same(ours, expected, tolerance):
    for our_step, expected_step in zip(ours, expected, strict=True):
        assert our_step.keys() == expected_step.keys()
        for name, value in expected_step.items():
            assert (our_step[name] - value).norm() <= tolerance * value.norm() + 1e-9, name


FREQUENCIES = torch.arange(4096), 5000
CONFIGURATIONS = {
    "the defaults": {},
    "two captions, no IDF": {"text_length": 20, "idf": "off"},
    "a file of IDF, and the rest": {
        "frequencies": FREQUENCIES,
        "idf": "file",
        "head_warmup": 8,
        "head_input": "pooled",
    },
}


@cases("superclip", CONFIGURATIONS)
def test_a_step_is_one_graph_and_computes_the_same(superclip, captions, clip):
    images, texts = captions
    if "text_length" in superclip:
        texts = torch.cat([texts, texts.roll(1, dims=0)], dim=1)
    loss = SuperCLIPLoss(open_clip.ClipLoss())
    model, compiled = clip(**superclip), clip(**superclip)
    expected = two_steps(model, loss, images, texts)
    assert_same(two_steps(compiled, loss, images, texts, backend="aot_eager"), expected, 1e-6)
    assert_equal(compiled.statistics.state_dict(), model.statistics.state_dict())


def test_a_step_of_coca_is_one_graph(captions, models):
    def coca():
        torch.manual_seed(0)
        return create_model_and_transforms(models["coca"])[0].train()

    loss = SuperCLIPLoss(open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0))
    expected = two_steps(coca(), loss, *captions)
    assert_same(two_steps(coca(), loss, *captions, backend="aot_eager"), expected, 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on a CPU")
def test_inductor_computes_the_same_within_rounding(captions, clip):
    loss = SuperCLIPLoss(open_clip.ClipLoss())
    expected = two_steps(clip(), loss, *captions)
    assert_same(two_steps(clip(), loss, *captions, backend="inductor"), expected, 2e-5)


def accumulated(model, loss, images, texts, **compiled):
    """Two steps as OpenCLIP makes them with --accum-freq 8: each
    micro-batch without gradients, and then with."""
    torch.compiler.reset()
    forward = torch.compile(model, fullgraph=True, **compiled) if compiled else model
    results = []
    for _ in range(2):
        model.zero_grad()
        pairs = list(zip(images.chunk(8), texts.chunk(8), strict=True))
        with torch.no_grad():
            cached = [forward(*pair) for pair in pairs]
        for index, pair in enumerate(pairs):
            outputs = forward(*pair)
            joined = {"logit_scale": outputs.pop("logit_scale")}
            for name, output in outputs.items():
                parts = [one[name] for one in cached]
                parts[index] = output
                joined[name] = torch.cat(parts)
            losses = loss(**joined, output_dict=True)
            sum(losses.values()).backward()
        results.append(gradients_and(losses, model))
    return results


def test_accumulation_has_one_graph_for_each_pass(captions, clip):
    loss = SuperCLIPLoss(open_clip.ClipLoss())
    expected = accumulated(clip(accum_freq=8), loss, *captions)
    # an error if there are more than eight graphs
    ours = accumulated(clip(accum_freq=8), loss, *captions, backend="aot_eager")
    assert_same(ours, expected, 1e-6)


def only_class_loss(*, class_losses, output_dict, **_):
    """Without ClipLoss: torch.compile differentiates its gathering of
    features, which it does without gradients."""
    return {"class_loss": class_losses.mean()}


def test_two_ranks_sum_their_counts_in_the_graph(captions, clip, tmp_path):
    def train(rank, **compiled):
        images, texts = (tensor.chunk(2)[rank] for tensor in captions)
        model = clip()
        results = two_steps(model, only_class_loss, images, texts, **compiled)
        gradients = [
            {name: value for name, value in step.items() if value is not None} for step in results
        ]
        return gradients, model.statistics.state_dict()

    eager = results_of(lambda rank, _: train(rank), 2, tmp_path / "eager")
    compiled = results_of(
        lambda rank, _: train(rank, backend="aot_eager"), 2, tmp_path / "compiled"
    )
    for (ours, our_counts), (expected, counts) in zip(compiled, eager, strict=True):
        assert_same(ours, expected, 1e-6)
        assert_equal(our_counts, counts)
    assert eager[0][1]["num_captions"] == 2 * 8
