"""Rectified flow: the path from clean latents to noise, training times and the loss.

The convention is that of diffusers' `FlowMatchEulerDiscreteScheduler`: t in [0, 1], t = 0 is clean, t = 1 is noise,
x_t = (1 - t) x_0 + t noise, velocity = noise - x_0. The transformer takes 1000 t (`TIMESTEP_SCALE`).
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError

TIMESTEP_SCALE = 1000.0

TimestepDistribution = Literal["logit-normal", "uniform"]


def interpolate(
    clean: Float[Tensor, "b z t h w"], noise: Float[Tensor, "b z t h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b z t h w"]:
    """Return the point at time t on the straight path (rectified flow, arXiv:2209.03003, eq. 1 with time reversed).

    Args:
        clean: x_0.
        noise: standard normal noise, x_1.
        t: time of each clip, in [0, 1].
    """
    t = _per_row(t, clean)
    return (1 - t) * clean + t * noise


def velocity_target(clean: Float[Tensor, "b z t h w"], noise: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
    """Return the velocity dx_t / dt = noise - x_0, which is constant along the path."""
    return noise - clean


def shift_timesteps(t: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """Shift times towards noise: s t / (1 + (s - 1) t) (Stable Diffusion 3, arXiv:2403.03206, eq. 23).

    Args:
        t: times in [0, 1].
        shift: s > 0; 1 is the identity.

    Raises:
        KinemaError: `shift` is not positive.
    """
    if shift <= 0:
        raise KinemaError(f"`shift` (={shift}) must be positive")
    return shift * t / (1 + (shift - 1) * t)


_TOKENS_WITHOUT_SHIFT = 128
_LARGEST_SHIFT = 12.0


def shift_for_tokens(num_tokens: int) -> float:
    """Return a timestep shift that grows with the number of tokens, because noise hides less of a larger signal.

    The square root of the ratio of sizes (arXiv:2403.03206, eq. 23), clamped to [1, 12].
    """
    return min(max(1.0, math.sqrt(num_tokens / _TOKENS_WITHOUT_SHIFT)), _LARGEST_SHIFT)


def sample_timesteps(
    num: int,
    generator: torch.Generator | None = None,
    shift: float = 1.0,
    distribution: TimestepDistribution = "logit-normal",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    uniform_fraction: float = 0.0,
    device: torch.device | None = None,
) -> Float[Tensor, " num"]:
    """Draw one training time per clip, stratified.

    Each time comes from a different one of `num` equal quantiles, in random order, so that a batch covers the path
    evenly and the loss is less noisy. The marginal distribution of each time is unchanged.

    Args:
        num: number of times.
        generator: source of randomness.
        shift: see `shift_timesteps`.
        distribution: "uniform", or "logit-normal" (the logistic function of a normal variable; arXiv:2403.03206, 3.1).
        mean: mean of the normal variable.
        std: standard deviation of the normal variable.
        uniform_fraction: share of the times drawn from the uniform distribution instead, because logit-normal times
            are rarely near the ends, where sampling starts and stops.
        device: device of the result.

    Raises:
        KinemaError: `uniform_fraction` is outside [0, 1], `distribution` is unknown, or `shift` is not positive.
    """
    if not 0 <= uniform_fraction <= 1:
        raise KinemaError(f"`uniform_fraction` (={uniform_fraction}) must be between 0 and 1")
    draw_device = generator.device if generator is not None else None
    order = torch.randperm(num, generator=generator, device=draw_device)
    within = torch.rand(num, generator=generator, device=draw_device)
    uniform = (order + within) / num
    if distribution == "uniform":
        t = uniform
    elif distribution == "logit-normal":
        # erfinv is infinite at the ends.
        normal = math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-6, 1 - 1e-6))
        t = torch.sigmoid(mean + std * normal)
        take_uniform = torch.rand(num, generator=generator, device=draw_device) < uniform_fraction
        t = torch.where(take_uniform, uniform, t)
    else:
        raise KinemaError(f"`distribution` (={distribution!r}) must be one of logit-normal, uniform")
    return shift_timesteps(t, shift).to(device)


def flow_loss(
    prediction: Float[Tensor, "b z t h w"],
    target: Float[Tensor, "b z t h w"],
    wanted: Bool[Tensor, "b t h w"] | None = None,
    weight: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error of the velocity over positions that are not given.

    Args:
        prediction: predicted velocity.
        target: velocity from `velocity_target`.
        wanted: positions to include; None: all.
        weight: weight of each clip, for example from `loss_weight`; None: 1.
    """
    error = (prediction.float() - target.float()).square().mean(dim=1)
    counts = torch.ones_like(error) if wanted is None else wanted.to(error.dtype)
    if weight is not None:
        error = error * weight[:, None, None, None]
    return (error * counts).sum() / counts.sum().clamp(min=1)


def loss_weight(
    t: Float[Tensor, " b"], kind: Literal["uniform", "min-snr"] = "uniform", gamma: float = 5.0
) -> Float[Tensor, " b"]:
    """Return the loss weight of the velocity error at time t.

    Args:
        t: times in [0, 1].
        kind: "uniform", or "min-snr": the velocity form of arXiv:2303.09556, min(SNR, gamma) / (SNR + 1), with
            SNR = ((1 - t) / t)^2.
        gamma: maximum of the signal-to-noise ratio in the weight.
    """
    if kind == "uniform":
        return torch.ones_like(t)
    snr = ((1 - t) / t.clamp(min=1e-4)).square()
    return snr.clamp(max=gamma) / (snr + 1)


def _per_row(t: Float[Tensor, " b"], like: Float[Tensor, "b z t h w"]) -> Tensor:
    return t.to(like.dtype)[:, None, None, None, None]
