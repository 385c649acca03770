"""A custom training loop: a class head for an existing model, and its
parameter groups."""

import open_clip
import pytest
import torch
from support import input_error, parametrize
from support.models import MODELS, assert_equal, write_model

import openclip_superclip as superclip
from openclip_superclip.method.model import report_words

CAPTIONS = ["a red cat", "a dog", "the blue boat and the cat", ""]


@pytest.fixture
def tokenizer(tiny_model):
    return open_clip.get_tokenizer(tiny_model)


def with_head(name, tokenizer, precision="fp32", **options):
    torch.manual_seed(0)
    model = open_clip.create_model(name, precision=precision)
    return superclip.add_class_head(model, tokenizer, **options)


@parametrize("precision", ["fp32", "bf16", "pure_bf16"])
@parametrize("options", [{}, {"head_input": "pooled", "idf": "off"}], ids=str)
def test_the_head_is_the_factorys_bit_for_bit(options, precision, tiny_model, tokenizer):
    added = with_head(tiny_model, tokenizer, precision, **options)
    torch.manual_seed(0)
    made, *_ = superclip.create_model_and_transforms(tiny_model, precision=precision, **options)
    assert type(added) is type(made)
    assert_equal(added.state_dict(), made.state_dict())
    batch = torch.randn(4, 3, 32, 32).to(added.visual.proj.dtype), tokenizer(CAPTIONS)
    assert_equal(added(*batch), made(*batch))


@parametrize("kind", ["coca", "resnet"])
def test_the_towers_weights_stay(kind, tmp_path):
    name = write_model(tmp_path, **MODELS[kind])
    model = open_clip.create_model(name)
    if kind == "coca":  # OpenCLIP leaves in it what the memory held
        torch.nn.init.normal_(model.text_decoder.text_projection)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    superclip.add_class_head(model, open_clip.get_tokenizer(name))
    after = model.state_dict()
    assert_equal({name: after[name] for name in before}, before)


def test_twenty_lines_train_the_towers_and_the_head_each_at_its_rate(tiny_model, tokenizer):
    model = with_head(tiny_model, tokenizer)
    groups = superclip.parameter_groups(model, lr=1e-3, head_lr=1e-2, weight_decay=0.1)
    assert [group["lr"] for group in groups] == [1e-3, 1e-3, 1e-2, 1e-2]
    assert [group["weight_decay"] for group in groups] == [0, 0.1, 0, 0.1]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    loss = superclip.SuperCLIPLoss(open_clip.ClipLoss())
    images = torch.randn(4, 3, 32, 32)
    history = []
    for _ in range(20):
        losses = loss(**model(images, tokenizer(CAPTIONS)), output_dict=True)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert all(history[-1][name] < history[0][name] / 2 for name in history[0])
    assert "20 of 80 captions without words" in report_words(model)
    assert "0 of 0 captions" in report_words(model)


def test_a_model_that_cannot_have_a_head_is_refused_and_left_as_it_was(tiny_model, tokenizer):
    model = open_clip.create_model(tiny_model)
    model.visual = torch.nn.Linear(4, 4)
    model_class = type(model)
    with input_error("vision tower with patch features; Linear has none"):
        superclip.add_class_head(model, tokenizer)
    assert type(model) is model_class
    assert not hasattr(model, "class_head")
    head = with_head(tiny_model, tokenizer)
    with input_error("without a wrapper, not to SuperCLIP"):
        superclip.add_class_head(head, tokenizer)


def test_the_mean_weight_is_over_all_words_of_all_captions(tokenizer):
    statistics = superclip.TokenStatistics(50)
    statistics.update(torch.tensor([[1, 2], [2, 2]]))
    weights = torch.zeros(50)
    weights[1] = 3.0
    assert statistics.report(weights).startswith("mean IDF weight of a word 1.00;")
