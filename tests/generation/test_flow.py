"""The flow's path, times and loss, against diffusers' scheduler and against their definitions."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.generation import flow

SHAPE = (3, 4, 2, 5, 6)


def make_scheduler(shift: float) -> Any:  # Any: its annotations ask for FloatTensor
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def latents(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_path_ends_at_clean_and_noise():
    clean, noise = latents(0), latents(1)
    torch.testing.assert_close(flow.interpolate(clean, noise, torch.zeros(3)), clean)
    torch.testing.assert_close(flow.interpolate(clean, noise, torch.ones(3)), noise)


def test_rows_have_their_own_time():
    clean, noise = latents(0), latents(1)
    mixed = flow.interpolate(clean, noise, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(mixed[0], clean[0])
    torch.testing.assert_close(mixed[1], 0.75 * clean[1] + 0.25 * noise[1])
    torch.testing.assert_close(mixed[2], noise[2])


def test_velocity_is_the_derivative_of_the_path():
    clean, noise, t, step = latents(0).double(), latents(1).double(), torch.full((3,), 0.4).double(), 1e-4
    slope = (flow.interpolate(clean, noise, t + step) - flow.interpolate(clean, noise, t - step)) / (2 * step)
    torch.testing.assert_close(slope, flow.velocity_target(clean, noise))


@pytest.mark.parametrize("num_steps", [1, 7])
def test_scheduler_follows_the_exact_velocity_to_clean(num_steps):
    clean, noise = latents(0), latents(1)
    scheduler = make_scheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / num_steps, num_steps).tolist())
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.step(flow.velocity_target(clean, noise), timestep, x).prev_sample
    torch.testing.assert_close(x, clean, atol=1e-5, rtol=0)


def test_path_is_the_schedulers():
    clean, noise = latents(0), latents(1)
    scheduler = make_scheduler(shift=2.0)
    timesteps = scheduler.timesteps[[10, 500, 990]]
    expected = scheduler.scale_noise(clean, timesteps, noise)
    torch.testing.assert_close(flow.interpolate(clean, noise, timesteps / flow.TIMESTEP_SCALE), expected)


@given(shift=st.floats(0.2, 15), num_steps=st.integers(1, 20))
def test_shift_is_the_schedulers(shift, num_steps):
    t = torch.linspace(1, 1 / num_steps, num_steps)
    scheduler = make_scheduler(shift=shift)
    scheduler.set_timesteps(sigmas=t.tolist())
    torch.testing.assert_close(flow.shift_timesteps(t, shift), scheduler.sigmas[:-1])


def test_shift_for_tokens_grows_within_bounds():
    shifts = [flow.shift_for_tokens(n) for n in (1, 128, 512, 4096, 10**7)]
    assert shifts == [1.0, 1.0, 2.0, pytest.approx(32**0.5), 12.0]


def test_uniform_times_take_one_of_each_slice():
    t = flow.sample_timesteps(64, torch.Generator().manual_seed(0), distribution="uniform")
    assert sorted((t * 64).floor().int().tolist()) == list(range(64))
    assert not torch.equal(t, t.sort().values), "the order must be random"


def test_logit_normal_times_have_their_moments():
    t = flow.sample_timesteps(4096, torch.Generator().manual_seed(0), mean=0.5, std=0.7)
    logits = torch.logit(t)
    assert logits.mean() == pytest.approx(0.5, abs=0.01)
    assert logits.std() == pytest.approx(0.7, abs=0.01)


def test_times_repeat_with_the_generator():
    draws = [flow.sample_timesteps(8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_shift_moves_drawn_times():
    plain, shifted = (flow.sample_timesteps(16, torch.Generator().manual_seed(0), shift) for shift in (1.0, 3.0))
    torch.testing.assert_close(shifted, flow.shift_timesteps(plain, 3.0))
    assert (shifted > plain).all()


def test_uniform_fraction_mixes_uniform_times_in():
    ends = [
        ((t < 0.02) | (t > 0.98)).float().mean()
        for t in (
            flow.sample_timesteps(8192, torch.Generator().manual_seed(0), uniform_fraction=share)
            for share in (0.0, 0.5, 1.0)
        )
    ]
    assert ends[0] < 0.001
    assert ends[1] == pytest.approx(0.02, abs=0.006)
    assert ends[2] == pytest.approx(0.04, abs=0.002)


def test_times_stay_inside_for_a_single_draw():
    t = torch.cat([flow.sample_timesteps(1, torch.Generator().manual_seed(seed)) for seed in range(300)])
    assert ((t > 0) & (t < 1)).all()
    assert torch.logit(t).std() == pytest.approx(1.0, abs=0.12)


@pytest.mark.parametrize("arguments", [{"uniform_fraction": 1.5}, {"shift": 0.0}], ids=["uniform_fraction", "shift"])
def test_wrong_times_are_refused(arguments):
    with pytest.raises(KinemaError, match=f"`{next(iter(arguments))}`"):
        flow.sample_timesteps(4, **arguments)


def test_loss_leaves_out_what_is_given():
    target = latents(0)
    wanted = torch.ones(3, 2, 5, 6, dtype=torch.bool)
    wanted[:, 0] = False
    prediction = target + 2.0
    prediction[:, :, 0] += 100.0
    assert flow.flow_loss(prediction, target, wanted) == pytest.approx(4.0)
    assert flow.flow_loss(prediction, target) > 1000


def test_loss_weighs_clips():
    target = latents(0)
    prediction = target + torch.tensor([1.0, 2.0, 3.0])[:, None, None, None, None]
    weight = torch.tensor([1.0, 0.5, 0.0])
    assert flow.flow_loss(prediction, target, weight=weight) == pytest.approx((1 + 2 + 0) / 3)


def test_loss_weight_at_equal_signal_and_noise():
    t = torch.tensor([0.5, 1.0, 0.01])
    assert flow.loss_weight(t).tolist() == [1, 1, 1]
    snr = ((1 - 0.01) / 0.01) ** 2
    torch.testing.assert_close(flow.loss_weight(t, "min-snr"), torch.tensor([0.5, 0.0, 5 / (snr + 1)]))
