"""The head has the paper's size and start; the loss adds one term to any of
OpenCLIP's."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss
from support import cases, input_error, parametrize

from openclip_superclip import SuperCLIPLoss
from openclip_superclip.method.head import ClassHead


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@parametrize("width, vocab", [(16, 20_011), (768, 1_000)])
def test_the_weight_starts_normal_with_the_inverse_root_of_the_width(width, vocab):
    head = ClassHead(width, vocab)
    assert (head.bias == 0).all() and (head.ln.weight == 1).all() and (head.ln.bias == 0).all()
    weight = head.weight * width**0.5
    error = 1 / weight.numel() ** 0.5
    assert weight.mean().abs() < 5 * error
    assert (weight.std() - 1).abs() < 5 * error
    assert abs((weight.abs() > 2).float().mean() - 0.0455) < 5 * error  # of a normal distribution


def trained_head():
    """A head whose every parameter matters."""
    head = ClassHead(16, 50)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    return head


def captions():
    return torch.randint(0, 50, (6, 9))


@parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_head_normalises_in_float32(dtype):
    head = trained_head().to(dtype)
    x = 1000 + torch.randn(6, 16)  # which half precision cannot distinguish from a constant
    precise = F.layer_norm(x, (16,), head.ln.weight.float(), head.ln.bias.float()).to(dtype)
    assert torch.equal(head.logits(x), F.linear(precise, head.weight, head.bias))
    losses = head(x, captions(), torch.rand(50))
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in head.parameters())


def outputs_for(loss):
    """What the OpenCLIP model for this loss returns in training."""
    rng = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(4, 8, generator=rng), dim=-1) for _ in range(2))
    outputs = {"image_features": image, "text_features": text, "logit_scale": torch.tensor(10.0)}
    if isinstance(loss, SigLipLoss):
        outputs["logit_bias"] = torch.tensor(-10.0)
    if isinstance(loss, CoCaLoss):
        outputs["logits"] = torch.randn(4, 5, 50, generator=rng)
        outputs["labels"] = torch.randint(1, 50, (4, 5), generator=rng)
    return outputs


LOSSES = {
    "ClipLoss": ClipLoss(),
    "SigLipLoss": SigLipLoss(),
    "CoCaLoss": CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0),
}
CLASS_LOSSES = torch.tensor([1.0, 2.0, 3.0, 6.0])


@cases("stock", LOSSES)
@parametrize("weight", [0.0, 0.4, 2])
def test_weight_times_the_mean_is_added_to_openclips_own_losses(stock, weight):
    outputs, loss = outputs_for(stock), SuperCLIPLoss(stock, weight)
    ours = loss(**outputs, class_losses=CLASS_LOSSES, output_dict=True)
    theirs = stock(**outputs, output_dict=True)
    assert list(ours) == [*theirs, "class_loss"]
    assert ours == {**theirs, "class_loss": weight * 3.0}
    assert loss(**outputs, class_losses=CLASS_LOSSES) == tuple(ours.values())


def test_cocas_labels_are_those_of_the_text_towers_caption():
    stock = LOSSES["CoCaLoss"]
    outputs = {**outputs_for(stock), "class_losses": CLASS_LOSSES}
    # as OpenCLIP 4 gives them
    of_both = torch.cat([outputs["labels"], torch.randint(1, 50, (4, 6))], dim=1)
    assert SuperCLIPLoss(stock)(**{**outputs, "labels": of_both}) == SuperCLIPLoss(stock)(**outputs)


@parametrize("scale", [1.0, 0.125, 0.0])
def test_gradient_scale_multiplies_the_class_losss_gradient_and_nothing_else(scale):
    stock = LOSSES["ClipLoss"]
    class_losses, outputs = CLASS_LOSSES.clone().requires_grad_(), outputs_for(stock)
    features = outputs["image_features"].requires_grad_()
    loss = SuperCLIPLoss(stock, weight=3.0, gradient_scale=scale)
    losses = loss(**outputs, class_losses=class_losses, output_dict=True)
    assert losses["class_loss"] == 3.0 * 3.0
    gradient, contrastive = torch.autograd.grad(sum(losses.values()), (class_losses, features))
    assert torch.equal(gradient, torch.full((4,), 3.0 * scale / 4))
    assert torch.equal(contrastive, torch.autograd.grad(stock(**outputs), features)[0])


def test_without_class_losses_the_loss_is_openclips_in_evaluation_and_an_error_in_training():
    stock = LOSSES["ClipLoss"]
    outputs, loss = outputs_for(stock), SuperCLIPLoss(stock)
    with input_error(r"^SuperCLIPLoss got no class_losses: give the model .*add_class_head"):
        loss(**outputs, output_dict=True)
    assert loss.eval()(**outputs, output_dict=True) == stock(**outputs, output_dict=True)


@parametrize("weight", [-1.0, float("nan")])
def test_a_negative_or_non_finite_weight_is_refused(weight):
    with input_error(f"^weight is {weight}; expected a finite number, 0 or more$"):
        SuperCLIPLoss(ClipLoss(), weight)
