"""LFQ and BSQ: codes, indices, and entropies against all codes of a small codebook laid out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers import BSQ, LFQ
from kinema.tokenizers.quantizers.binary import BinaryBottleneck, batch_entropy, code_entropy

KINDS = pytest.mark.parametrize("kind", [LFQ, BSQ])


class BinaryBottleneckOfScale(LFQ):
    """Codes of another size."""

    def __init__(self, num_bits: int, scale: float):
        BinaryBottleneck.__init__(self, num_bits, scale=scale)


def hidden(bits: int, seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, bits, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * 1.5


def codebook(bits: int, scale: float) -> Tensor:
    """Every code, ``(2^bits, bits)``, in the order of the indices."""
    return torch.tensor([[scale if i >> d & 1 else -scale for d in range(bits)] for i in range(2**bits)])


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)


@KINDS
@settings(max_examples=20, deadline=None)
@given(bits=st.integers(1, 7))
def test_indices_and_codes_are_one_to_one(kind: type[BinaryBottleneck], bits: int):
    quantizer = kind(bits)
    assert quantizer.codebook_size == 2**bits
    every = torch.arange(2**bits).view(1, -1, 1, 1)
    codes = quantizer.indices_to_latents(every)
    assert torch.equal(codes[0, :, :, 0, 0].T, codebook(bits, quantizer.scale))
    assert torch.equal(quantizer.latents_to_indices(codes), every)


@KINDS
@pytest.mark.parametrize("bits", [1, 18, 62])
def test_quantises_to_the_nearest_code_and_its_index(kind: type[BinaryBottleneck], bits: int):
    quantizer = kind(bits)
    out = quantizer(hidden(bits))
    assert out.indices is not None
    assert out.indices.min() >= 0
    assert out.indices.max() < quantizer.codebook_size
    assert torch.allclose(quantizer.indices_to_latents(out.indices), out.latents, atol=1e-6)
    assert torch.equal(out.latents > 0, hidden(bits) > 0)
    if kind is BSQ:
        assert torch.allclose(out.latents.norm(dim=1), torch.ones(2, 3, 4, 5), atol=1e-5)


@KINDS
def test_nothing_is_quantised_to_a_third_value(kind: type[BinaryBottleneck]):
    out = kind(3)(torch.zeros(1, 3, 1, 1, 1))
    assert out.indices is not None
    assert out.indices.item() == 7
    assert torch.equal(out.latents.unique(), torch.tensor([kind(3).scale]))


def soft_assignment(quantizer: BinaryBottleneck, h: Tensor) -> Tensor:
    """p(code | position) over all codes, from the definitions: ``(n, 2^bits)``."""
    z = h.movedim(1, -1).flatten(0, -2)
    codes = codebook(h.shape[1], quantizer.scale)
    if isinstance(quantizer, BSQ):
        return torch.softmax(quantizer.inverse_temperature * (z / z.norm(dim=1, keepdim=True)) @ codes.T, dim=1)
    assert isinstance(quantizer, LFQ)
    squares = (z[:, None] - codes[None]).square().sum(-1)
    return torch.softmax(-squares / quantizer.temperature, dim=1)


@pytest.mark.parametrize("quantizer", [LFQ(6, temperature=0.7), LFQ(6), BSQ(6), BSQ(6, inverse_temperature=3.0)])
def test_entropy_loss_is_that_of_all_codes(quantizer: BinaryBottleneck):
    h = hidden(6)
    p = soft_assignment(quantizer, h)
    expected = entropy(p).mean() - entropy(p.mean(0))
    assert quantizer(h).losses["entropy"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_groups_bound_the_entropy_of_a_batch_from_above_and_one_group_is_exact():
    # Bits that depend on each other over the batch: the case in which the bound is not tight.
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(300, 1, generator=generator)
    logits = 3 * shared + torch.randn(300, 6, generator=generator)
    bits = torch.tensor([[i >> d & 1 for d in range(6)] for i in range(64)]).float()
    p = torch.softmax(logits @ bits.T, dim=1)
    exact = entropy(p.mean(0)).item()
    bounds = [batch_entropy(logits, group).item() for group in (1, 2, 3, 6, 9)]
    assert bounds[-2:] == pytest.approx([exact, exact], rel=1e-5)
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > exact + 0.5
    # Groups of one bit are the independent bits of arXiv 2406.07548.
    mean = torch.sigmoid(logits).mean(0)
    assert bounds[0] == pytest.approx((entropy(torch.stack([mean, 1 - mean], dim=1))).sum().item(), rel=1e-5)
    assert torch.allclose(code_entropy(logits), entropy(p), atol=1e-5)


def test_entropies_do_not_depend_on_the_pieces_they_are_computed_in(monkeypatch: pytest.MonkeyPatch):
    logits = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    whole = batch_entropy(logits, 5)
    monkeypatch.setattr("kinema.tokenizers.quantizers.binary._CHUNK", 7)
    assert batch_entropy(logits, 5).item() == pytest.approx(whole.item(), rel=1e-5)


@KINDS
def test_entropy_loss_is_least_for_decided_latents_that_use_all_codes_alike(kind: type[BinaryBottleneck]):
    quantizer = kind(3)
    every = quantizer.indices_to_latents(torch.arange(8).view(1, 8, 1, 1))
    spread = quantizer(every * 50).losses["entropy"]
    collapsed = quantizer(every[:, :, :1].expand_as(every) * 50).losses["entropy"]
    assert spread < collapsed
    if kind is LFQ:
        assert spread.item() == pytest.approx(-math.log(8), rel=1e-5)
        assert collapsed.item() == pytest.approx(0.0, abs=1e-5)


@KINDS
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 1e4])
def test_gradients_are_finite_at_any_magnitude(kind: type[BinaryBottleneck], magnitude: float):
    h = (hidden(18) * magnitude).requires_grad_()
    out = kind(18)(h)
    (out.latents.sum() + torch.stack(list(out.losses.values())).sum()).backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_lfq_passes_gradients_straight_through_and_commits_to_ones():
    h = hidden(4).requires_grad_()
    out = LFQ(4)(h)
    weight = torch.randn(out.latents.shape)
    (out.latents * weight).sum().backward()
    assert h.grad is not None
    assert torch.equal(h.grad, weight)
    expected = torch.minimum((h - 1).square(), (h + 1).square()).mean()
    assert out.losses["commitment"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_bsq_passes_gradients_through_the_projection_alone():
    h = hidden(4).requires_grad_()
    weight = torch.randn(h.shape)
    (BSQ(4)(h).latents * weight).sum().backward()
    got = h.grad
    assert got is not None
    again = h.detach().requires_grad_()
    (again / again.norm(dim=1, keepdim=True) * weight).sum().backward()
    assert again.grad is not None
    assert torch.allclose(got, again.grad, atol=1e-6)
    assert set(BSQ(4)(h).losses) == {"entropy"}


@KINDS
def test_training_the_entropy_alone_spreads_collapsed_latents(kind: type[BinaryBottleneck]):
    generator = torch.Generator().manual_seed(0)
    h = (torch.randn(1, 6, 4, 8, 8, generator=generator) * 0.3 + 0.6).requires_grad_()
    quantizer = kind(6)
    optimizer = torch.optim.Adam([h], lr=0.05)
    used = []
    for _ in range(60):
        out = quantizer(h)
        assert out.indices is not None
        used.append(len(out.indices.unique()))
        optimizer.zero_grad()
        out.losses["entropy"].backward()
        optimizer.step()
    assert used[-1] > 1.5 * used[0]


@KINDS
def test_half_precision_and_autocast_change_nothing_in_the_losses(kind: type[BinaryBottleneck]):
    quantizer, h = kind(18), hidden(18)
    expected = quantizer(h).losses["entropy"].item()
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(h).losses["entropy"].item() == expected
    assert quantizer.half()(h).latents.dtype == torch.float32


@KINDS
@pytest.mark.parametrize("index", [-1, 8])
def test_refuses_indices_outside_the_codebook(kind: type[BinaryBottleneck], index: int):
    with pytest.raises(KinemaError, match=rf"`indices` \(={index}\.\.{index}\) must lie in 0\.\.7"):
        kind(3).indices_to_latents(torch.full((1, 1, 1, 1), index))


@KINDS
@pytest.mark.parametrize("bits", [0, 63])
def test_refuses_codes_that_have_no_index(kind: type[BinaryBottleneck], bits: int):
    with pytest.raises(KinemaError, match=rf"`num_bits` \(={bits}\) must lie in 1\.\.62"):
        kind(bits)
    with pytest.raises(KinemaError, match=r"`group_bits` \(=0\)"):
        kind(4, group_bits=0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_refuses_temperatures_and_scales_that_are_none(value: float):
    for argument, make in (
        ("temperature", lambda: LFQ(4, temperature=value)),
        ("inverse_temperature", lambda: BSQ(4, inverse_temperature=value)),
        ("scale", lambda: BinaryBottleneckOfScale(4, scale=value)),
    ):
        with pytest.raises(KinemaError, match=rf"`{argument}` \(={value}\) must be above 0 and finite"):
            make()
