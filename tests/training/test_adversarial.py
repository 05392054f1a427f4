"""Hinge, adaptive weight, LeCAM against values worked out by hand; the discriminator judges clips one by one."""

import pytest
import torch
from torch import nn

from kinema.errors import KinemaError
from kinema.machine import computes_bf16
from kinema.training.losses.adversarial import (
    MOST_ADAPTIVE,
    Adversary,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    last_weight,
    lecam,
    with_gradient,
)
from kinema.training.losses.discriminator import PatchDiscriminator, accuracy
from kinema.training.losses.reconstruction import mse

BF16 = computes_bf16(torch.device("cpu"))


def test_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    # max(0, 1 - real) = 0, 0.5, 2; max(0, 1 + fake) = 0, 0.5, 2
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(5 / 3)
    assert hinge_generator_loss(fake).item() == pytest.approx(2.5 / 3)
    assert accuracy(real, fake).item() == pytest.approx(2 / 3)


def test_lecam():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    # (1 + 0.5)^2, (3 + 0.5)^2 from the mean of the reconstructions' logits, (-1 - 2)^2, (0 - 2)^2 from the clips'
    expected = (1.5**2 + 3.5**2) / 2 + (9 + 4) / 2
    assert lecam(real, fake, torch.tensor(2.0), torch.tensor(-0.5)).item() == pytest.approx(expected)


def test_means_of_logits_start_with_the_first_and_follow():
    adversary = Adversary(width=4, levels=1, lecam_weight=0.5)
    loss, terms = adversary.loss(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1, 1))
    assert adversary.mean_logits.tolist() == [2.0, -1.0]
    assert terms["lecam"].item() == pytest.approx(2 * 3.0**2)
    assert loss.item() == pytest.approx(0.5 * 18.0)  # the hinge is 0
    adversary.loss(torch.tensor([4.0, 1.0]).view(2, 1, 1, 1, 1))
    assert adversary.mean_logits.tolist() == pytest.approx([2.02, -0.98])
    assert {"mean_logits", "num_updates"} <= adversary.state_dict().keys()


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
    output = weight * torch.tensor([[3.0, 4.0]])  # d output / d weight is diagonal: 3, 4
    gradients = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.5]])
    assert adaptive_weight(output, *gradients, weight).item() == pytest.approx(5.0 / 2.0, rel=1e-5)
    swapped = adaptive_weight(output, gradients[1], gradients[0], weight)
    assert swapped.item() == pytest.approx(2.0 / 5.0, rel=1e-5)
    assert adaptive_weight(output, gradients[0], torch.zeros(1, 2), weight).item() == MOST_ADAPTIVE
    assert torch.isnan(adaptive_weight(output, gradients[0], torch.full((1, 2), torch.nan), weight))
    halved = adaptive_weight(output, *gradients, weight, lambda norms: norms * torch.tensor([0.5, 1.0]))
    assert halved.item() == pytest.approx(1.25, rel=1e-5)


def test_with_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = with_gradient(torch.tensor(7.0), x, torch.tensor([3.0, -1.0]))
    loss.backward()
    assert loss.item() == 7
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, -1.0]


@pytest.mark.parametrize("adaptive", [False, True])
def test_blend_is_the_weighted_sum_and_spares_the_discriminator(adaptive: bool):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv3d(2, 4, 1), nn.Tanh(), nn.Conv3d(4, 3, 1))
    adversary = Adversary(width=4, levels=2)
    video, latents = torch.rand(2, 3, 3, 8, 8), torch.randn(2, 2, 3, 8, 8)
    last = last_weight(decoder)
    assert last is decoder[2].weight
    loss, terms = adversary.blend(decoder(latents), lambda x: mse(x, video), last, 0.3, adaptive=adaptive)
    loss.backward()
    mine = [p.grad for p in decoder.parameters()]
    assert all(p.grad is None for p in adversary.parameters())

    # The same, written out with whole backward passes.
    output = decoder(latents)
    parts = [mse(output, video), hinge_generator_loss(adversary(output))]
    norms = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in parts]
    factor = 0.3 * (norms[0] / (norms[1] + 1e-6) if adaptive else 1.0)
    total = parts[0] + factor * parts[1]
    assert terms["adversarial_factor"].item() == pytest.approx(float(factor), rel=1e-4)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for given, wanted in zip(mine, torch.autograd.grad(total, list(decoder.parameters())), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 17])
def test_discriminator_takes_images_and_clips(frames: int):
    logits = PatchDiscriminator(width=4, levels=3)(torch.rand(2, 3, frames, 16, 24))
    assert logits.shape == (2, 1, {1: 1, 2: 1, 17: 5}[frames], 2, 3)


@pytest.mark.skipif(not BF16, reason="trainings refuse bfloat16 on a processor without it")
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (24, 9)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_discriminator_in_bfloat16_is_near_the_one_in_float32(frames: int, size: tuple[int, int]):
    """CPUs with AMX have kernels that return uninitialised memory for such shapes."""
    torch.manual_seed(0)
    network, video = PatchDiscriminator(width=5, levels=3), torch.rand(2, 3, frames, *size) * 2 - 1

    def run(enabled: bool) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = network(video)
        gradients = torch.autograd.grad((logits - 1).square().mean(), list(network.parameters()))
        return logits, torch.cat([gradient.flatten() for gradient in gradients])

    (logits, gradient), (wanted, wanted_gradient) = run(enabled=True), run(enabled=False)
    torch.testing.assert_close(logits, wanted, atol=0.02, rtol=0)
    assert (gradient - wanted_gradient).norm() <= 0.05 * wanted_gradient.norm()


@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_discriminator_is_made_of_plain_convolutions(frames: int, size: tuple[int, int]):
    network = PatchDiscriminator(width=4, levels=3).double()
    video = torch.rand(2, 3, frames, *size, dtype=torch.float64)
    plain = video
    for layer in network.layers:
        if isinstance(layer, nn.Conv3d):
            plain = nn.functional.conv3d(plain, layer.weight, layer.bias, layer.stride, layer.padding)
        else:
            plain = layer(plain)
    torch.testing.assert_close(network(video), plain.float())


def test_discriminator_judges_each_clip_for_itself():
    torch.manual_seed(0)
    network = PatchDiscriminator(width=8, levels=2).train()
    video = torch.rand(3, 3, 5, 16, 16)
    whole = network(video)
    torch.testing.assert_close(torch.cat([network(clip[None]) for clip in video]), whole)
    reach = torch.zeros_like(video).requires_grad_()
    network(video + reach)[0, 0, 0, 0, 0].backward()
    assert reach.grad is not None
    assert reach.grad[0].abs().sum() > 0
    assert reach.grad[1:].abs().sum() == 0


def test_frames_that_are_too_small_are_named():
    with pytest.raises(KinemaError, match=r"`video` \(of 4x16 pixels\) must be at least 8x8"):
        PatchDiscriminator(width=4, levels=3)(torch.rand(1, 3, 1, 4, 16))
    with pytest.raises(KinemaError, match="`levels`"):
        PatchDiscriminator(levels=0)
