"""Bottlenecks against formulas and small oracles."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.quantizers import FSQ, KL, DiagonalGaussian


@settings(max_examples=20, deadline=None)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_fsq_indices_and_codes_are_one_to_one(levels: list[int]):
    fsq = FSQ(tuple(levels))
    every = torch.arange(fsq.codebook_size).view(1, -1, 1, 1)
    codes = fsq.indices_to_latents(every)
    assert torch.equal(fsq.latents_to_indices(codes), every)
    # Channel 0 counts fastest (arXiv 2309.15505; the order of public checkpoints).
    digits = list(itertools.product(*[range(n) for n in reversed(levels)]))
    expected = torch.tensor([[(d - n // 2) / (n // 2) for d, n in zip(t[::-1], levels, strict=True)] for t in digits])
    assert torch.allclose(codes[0, :, :, 0, 0].T, expected)


@settings(max_examples=20, deadline=None)
@given(levels=st.lists(st.integers(2, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_fsq_rounds_to_codes_of_its_codebook(levels: list[int], seed: int):
    fsq = FSQ(tuple(levels))
    z = torch.randn(2, len(levels), 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 3
    out = fsq(z)
    assert out.indices is not None
    assert out.indices.min() >= 0
    assert out.indices.max() < fsq.codebook_size
    assert torch.allclose(fsq.indices_to_latents(out.indices), out.latents, atol=1e-6)
    assert torch.allclose(fsq.quantize(_preimage(out.latents, levels)), out.latents, atol=1e-6)


def _preimage(codes: torch.Tensor, levels: list[int]) -> torch.Tensor:
    """The input that the bounding function maps on a code exactly."""
    columns = []
    for i, n in enumerate(levels):
        half, offset = (n - 1) * (1 + 1e-3) / 2, 0.5 if n % 2 == 0 else 0.0
        shift = 0.0 if n == 2 else math.atanh(offset / half)
        columns.append(torch.atanh((codes[:, i] * (n // 2) + offset) / half) - shift)
    return torch.stack(columns, dim=1)


def test_fsq_reaches_every_code():
    fsq = FSQ((8, 5))
    grid = torch.linspace(-6, 6, 200)
    z = torch.stack(torch.meshgrid(grid, grid, indexing="ij")).view(1, 2, 1, 200, 200)
    indices = fsq(z).indices
    assert indices is not None
    assert len(indices.unique()) == 40


def test_fsq_passes_gradients_straight_through():
    fsq = FSQ((8, 8))
    z = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
    fsq(z).latents.sum().backward()
    # d/dz tanh(z + s)·h / (L // 2) at 0, with tanh(s) = 1/2 / h.
    half = 3.5 * 1.001
    assert z.grad is not None
    assert torch.allclose(z.grad, torch.full_like(z, (1 - (0.5 / half) ** 2) * half / 4))


# Level counts, inputs, and integer codes, worked out by hand from arXiv 2309.15505, app. A.1: the nearest integer to
# tanh(z + s)·h - o with h = (L-1)·1.001/2, and o = 1/2, s = atanh(o/h) for even L, else 0.
GOLDEN_FSQ = [
    (2, [-100.0, -5.0, -0.1, 0.1, 100.0], [-1, -1, -1, 0, 0]),  # two levels are kinema's own: the border at zero
    (3, [-100.0, -0.6, -0.5, 0.5, 0.6, 100.0], [-1, -1, 0, 0, 1, 1]),
    (4, [-100.0, -0.7, -0.1, 0.0, 0.5, 0.7, 100.0], [-2, -1, 0, 0, 1, 1, 1]),
    (8, [-100.0, -0.5, 0.0, 0.1, 0.5, 1.0, 100.0], [-4, -2, 0, 0, 1, 2, 3]),
    (5, [-100.0, -0.3, -0.2, 0.2, 0.3, 1.0, 100.0], [-2, -1, 0, 0, 1, 2, 2]),
]


@pytest.mark.parametrize(("levels", "inputs", "codes"), GOLDEN_FSQ)
def test_fsq_golden_codes(levels: int, inputs: list[float], codes: list[int]):
    fsq = FSQ((levels,))
    out = fsq(torch.tensor(inputs).view(1, 1, -1, 1, 1))
    assert out.indices is not None
    assert (out.indices.flatten() - levels // 2).tolist() == codes
    assert (out.latents.flatten() * (levels // 2)).tolist() == pytest.approx(codes)


def test_fsq_of_two_levels_uses_both_and_learns():
    z = (0.6 * torch.randn(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0))).requires_grad_()
    out = FSQ((2,))(z)
    assert out.indices is not None
    assert 0.45 < out.indices.double().mean() < 0.55
    out.latents.sum().backward()
    assert z.grad is not None
    assert z.grad.mean() > 0.3


def test_fsq_entropy_loss_is_the_part_of_the_entropy_that_is_not_used():
    fsq = FSQ((5,)).train()

    def loss(codes: list[int]) -> float:
        preimage = _preimage(torch.tensor(codes).view(1, 1, -1, 1, 1) / 2, [5])
        return float(fsq(preimage).losses["entropy"])

    assert loss([-2, -1, 0, 1, 2]) == pytest.approx(0, abs=1e-5)
    assert loss([1, 1, 1]) == pytest.approx(1, abs=1e-5)
    assert loss([0, 0, 1, 1]) == pytest.approx(1 - math.log(2) / math.log(5), abs=1e-5)
    assert fsq.eval()(torch.zeros(1, 1, 1, 1, 1)).losses == {}


@pytest.mark.parametrize("levels", [(8, 8), (2, 5), (3, 1001)])
def test_fsq_entropy_loss_leads_to_equal_use_of_the_levels(levels: tuple[int, ...]):
    fsq = FSQ(levels).train()
    start = 0.2 * torch.randn(1, len(levels), 4, 16, 16, generator=torch.Generator().manual_seed(0))
    z = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        fsq(z).losses["entropy"].backward()
        optimizer.step()
    before, after = (float(fsq(value.detach()).losses["entropy"]) for value in (start, z))
    assert after < 0.6 * before
    assert torch.isfinite(z).all()


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(2, 3000), z=st.floats(-1e30, 1e30))
def test_fsq_indices_stay_in_the_codebook_for_any_levels_and_input(levels: int, z: float):
    fsq = FSQ((levels, 2))
    ends = torch.tensor([[z, math.inf, -math.inf], [-z, -math.inf, math.inf]]).view(1, 2, 3, 1, 1)
    out = fsq(ends)
    assert out.indices is not None
    assert out.indices.min() >= 0
    assert out.indices.max() < fsq.codebook_size
    assert out.latents.min() >= -1
    # Latents of somewhere else than the quantiser count as their nearest code.
    assert fsq.latents_to_indices(ends.clamp(-5.0, 5.0)).min() >= 0


@pytest.mark.parametrize("index", [-1, 64])
def test_fsq_refuses_indices_outside_its_codebook(index: int):
    with pytest.raises(KinemaError, match=r"must lie in 0\.\.63"):
        FSQ((8, 8)).indices_to_latents(torch.full((1, 1, 1, 1), index))


def test_kl_against_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 2, 3, 2, 2, 2, generator=generator).unbind(0)
    dist = DiagonalGaussian(mean, logvar)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(dist.kl(), reference, atol=1e-5)
    draws = torch.stack([dist.sample(generator) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), mean, atol=0.2)
    assert torch.allclose(draws.std(0) / dist.std, torch.ones_like(mean), atol=0.1)


def test_kl_samples_only_when_asked():
    kl = KL(2)
    h = torch.randn(1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl(h).latents, h[:, :2])
    sampled = kl(h, sample=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampled.mode, h[:, :2])
    assert not torch.equal(sampled.latents, sampled.mode)


def test_continuous_bottlenecks_have_no_indices():
    with pytest.raises(KinemaError, match=r"`bottleneck` \(='kl'\) must be a discrete one .* continuous"):
        CausalVideoTokenizer(**TINY).indices_to_latents(torch.zeros(1, 1, 1, 1, dtype=torch.long))


@torch.no_grad()
def test_decoding_indices_is_decoding_latents():
    model = CausalVideoTokenizer(**{**TINY, "bottleneck": {"name": "fsq", "levels": (8, 5, 5)}})
    clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    code = model.encode(clip)
    assert code.indices is not None
    again = model.decode(model.indices_to_latents(code.indices)).sample
    assert torch.allclose(again, model.decode(code.latents).sample, atol=1e-6)
