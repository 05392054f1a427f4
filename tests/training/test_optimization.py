"""Schedule, averaged weights, seeds, precision."""

import math
import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from kinema.errors import KinemaError
from kinema.machine import computes_bf16
from kinema.training import accelerator, loop
from kinema.training.config import TrainingConfig
from kinema.training.ema import EMA
from kinema.training.loop import make_optimizer
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


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])


def test_muon_is_for_the_matrices_of_blocks_only():
    model = Block()
    optimizer = make_optimizer(model, TrainingConfig(preset="x", weight_decay=0.1))
    by_muon = [p for group in optimizer.param_groups if group["muon"] for p in group["params"]]
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [p is model.blocks[0].weight for p in by_muon] == [True]
    assert {id(p) for p in decayed} == {id(model.embed.weight), id(model.blocks[0].weight)}
    adamw = make_optimizer(model, TrainingConfig(preset="x", optimizer="adamw"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "no")])
def test_precision_follows_what_the_device_computes_in(monkeypatch, native, precision):
    monkeypatch.setattr(accelerator, "computes_bf16", lambda device: native)
    assert accelerator.autocast_type("auto", torch.device("cpu")) == precision
    assert accelerator.autocast_type("no", torch.device("cpu")) == "no"


def test_emulated_precision_is_refused(monkeypatch):
    monkeypatch.setattr(accelerator, "computes_bf16", lambda device: False)
    with pytest.raises(KinemaError, match=r"^`mixed_precision` \(=bf16\) must be auto or no: this cpu has no bfloat16"):
        accelerator.autocast_type("bf16", torch.device("cpu"))


def test_this_processor_multiplies_fast_in_what_it_says_to_compute_in():
    assert computes_bf16(torch.device("meta")) is False
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or platform.machine() != "x86_64":
        pytest.skip("needs the list of a processor's features")
    words = flags.read_text().split()
    assert computes_bf16(torch.device("cpu")) == ("avx512_bf16" in words or "amx_bf16" in words)


def test_best_score():
    assert loop.is_better(-1.0, None)
    assert loop.is_better(2.0, 1.0)
    assert not loop.is_better(1.0, 1.0)
    assert not loop.is_better(None, 1.0)
    assert not loop.is_better(math.nan, None)
    assert not loop.is_better(math.inf, 1.0)
