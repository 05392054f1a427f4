"""Schedule, averaged weights, seeds."""

import math

import pytest
import torch
from torch import nn

from kinema.training.config import TrainingConfig
from kinema.training.ema import EMA
from kinema.training.loop import make_optimizer
from kinema.training.muon import Muon, orthogonalize
from kinema.training.schedule import learning_rate_factor
from kinema.training.seeds import derived_seed, step_generator


def test_warmup_is_linear_and_never_zero():
    factors = [learning_rate_factor(step, 0.0, warmup_steps=4, schedule="constant") for step in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_trapezoid_is_flat_then_falls_to_zero():
    def factor(progress):
        return learning_rate_factor(10, progress, warmup_steps=0, schedule="trapezoid", decay_fraction=0.4)

    assert [factor(0.0), factor(0.3), factor(0.6)] == [1.0, 1.0, 1.0]
    assert factor(0.8) == pytest.approx(0.5)
    assert factor(1.0) == factor(1.5) == 0.0


def test_cosine():
    def factor(progress):
        return learning_rate_factor(10, progress, warmup_steps=0, schedule="cosine")

    assert factor(0.0) == 1.0
    assert factor(0.25) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))
    assert factor(1.0) == pytest.approx(0.0)


def test_average_follows_the_closed_form():
    model = nn.Linear(1, 1, bias=False)
    decay, values = 0.9, [2.0, -1.0, 4.0, 0.5, 3.0] * 30
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = EMA(model, decay)
    weights = [1.0]  # of the first value and of each value since, in the average
    for k, value in enumerate(values, start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model)
        d = min(decay, k / (k + 9))
        weights = [w * d for w in weights] + [1 - d]
    expected = sum(w * v for w, v in zip(weights, [1.0, *values], strict=True))
    assert ema.model.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert ema.num_updates == len(values)


def test_average_copies_buffers_and_needs_no_gradient():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.99)
    model(torch.randn(8, 3))
    ema.update(model)
    torch.testing.assert_close(ema.model.state_dict()["running_mean"], model.state_dict()["running_mean"])
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert not ema.model.training


def test_seeds_differ_by_every_argument():
    arguments = [(0, 0, 0, "a"), (1, 0, 0, "a"), (0, 1, 0, "a"), (0, 0, 1, "a"), (0, 0, 0, "b"), (0, 11, 0, "a")]
    assert len({derived_seed(*a) for a in arguments}) == len(arguments)
    draws = [torch.rand(1, generator=step_generator(*a)).item() for a in arguments]
    assert len(set(draws)) == len(arguments)
    assert draws[0] == torch.rand(1, generator=step_generator(0, 0, 0, "a")).item()


def test_orthogonalized_matrices_have_singular_values_near_one():
    for shape in ((16, 16), (8, 40), (40, 8)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape) * 100))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_orthogonalizing_keeps_the_singular_vectors():
    u, _ = torch.linalg.qr(torch.randn(6, 6))
    v, _ = torch.linalg.qr(torch.randn(9, 6))
    result = u.T @ orthogonalize(u @ torch.linspace(1, 2, 6).diag() @ v.T) @ v
    off_diagonal = result - result.diagonal().diag()
    assert off_diagonal.abs().max() < 0.1
    assert result.diagonal().min() > 0.5


def train_linear(optimizer_of, steps=5):
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.zeros(4))
    optimizer = optimizer_of(weight, bias)
    for _ in range(steps):
        optimizer.zero_grad()
        (nn.functional.linear(torch.randn(8, 3), weight, bias) - 1).square().mean().backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def test_groups_without_muon_are_adamw():
    betas = (0.9, 0.98)

    def groups(weight, bias):
        return [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]

    mine = train_linear(lambda w, b: Muon(groups(w, b), lr=0.05, betas=betas))
    reference = train_linear(lambda w, b: torch.optim.AdamW(groups(w, b), lr=0.05, betas=betas))
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other)


def test_muon_moves_every_direction_alike():
    """The first update of a matrix is lr * 0.2 * sqrt(largest side) times a semi-orthogonal matrix."""
    weight = nn.Parameter(torch.zeros(8, 4, 2))
    optimizer = Muon([{"params": [weight], "muon": True}], lr=0.1, betas=(0.9, 0.99))
    weight.grad = torch.randn(8, 4, 2) * torch.logspace(-0.5, 0.5, 8)[:, None, None]
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.1 * 0.2 * 8**0.5)
    assert values.min() > 0.3
    assert values.max() < 1.3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])


def test_muon_is_for_the_matrices_of_blocks_only():
    model = Block()
    optimizer = make_optimizer(model, TrainingConfig(preset="x", weight_decay=0.1), torch.device("cpu"))
    by_muon = [p for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [p is model.blocks[0].weight for p in by_muon] == [True]
    assert {id(p) for p in decayed} == {id(model.embed.weight), id(model.blocks[0].weight)}
    adamw = make_optimizer(model, TrainingConfig(preset="x", optimizer="adamw"), torch.device("cpu"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4
