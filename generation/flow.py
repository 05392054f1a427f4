"""Rectified flow: the path from clean latents to noise, and what is learned along it.

One convention everywhere (that of diffusers' `FlowMatchEulerDiscreteScheduler`): t in [0, 1], t = 0 is clean, t = 1 is
noise, x_t = (1 - t) x_0 + t noise, velocity = noise - x_0. The transformer is told 1000 t (`TIMESTEP_SCALE`).
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
    """The point at time t on the straight path (rectified flow, arXiv:2209.03003, eq. 1 with time reversed).

    Args:
        clean: x_0.
        noise: standard normal noise, the x_1 of this path.
        t: time of each row, in [0, 1].
    """
    t = _per_row(t, clean)
    return (1 - t) * clean + t * noise


def velocity_target(clean: Float[Tensor, "b z t h w"], noise: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
    """The path's velocity dx_t / dt = noise - x_0, the same at every t."""
    return noise - clean


def shift_timesteps(t: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """Moves times towards noise: s t / (1 + (s - 1) t) (Stable Diffusion 3, arXiv:2403.03206, eq. 23).

    Args:
        t: times in [0, 1].
        shift: s > 0; 1 changes nothing.

    Raises:
        KinemaError: `shift` is not positive.
    """
    if shift <= 0:
        raise KinemaError(f"`shift` (={shift}) must be positive")
    return shift * t / (1 + (shift - 1) * t)


_TOKENS_WITHOUT_SHIFT = 128
_LARGEST_SHIFT = 12.0


def shift_for_tokens(num_tokens: int) -> float:
    """A shift that grows with the number of tokens, since the same noise hides less of a signal of more tokens.

    The square root of the ratio of sizes (arXiv:2403.03206, eq. 23), held between 1 and 12.
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
    """Draws training times, one a clip.

    Stratified: each time comes from its own of `num` equal slices of probability, in random order, so that a batch
    covers the path evenly and the loss is less noisy. Each single time is distributed as if it were drawn alone.

    Args:
        num: how many.
        generator: source of randomness.
        shift: see `shift_timesteps`.
        distribution: "uniform", or "logit-normal" (the logistic function of a normal number; arXiv:2403.03206, 3.1).
        mean: of the normal number.
        std: of the normal number.
        uniform_fraction: share of the times that come from the uniform distribution instead: logit-normal times all
            but leave out the ends, where sampling starts and stops.
        device: where to put the result.

    Raises:
        KinemaError: `uniform_fraction` outside [0, 1], unknown `distribution`, or `shift` not positive.
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
    """Mean squared error of the velocity over the wanted positions.

    Args:
        prediction: predicted velocity.
        target: `velocity_target`.
        wanted: positions that count; None: all. What is given is no part of the loss.
        weight: weight of each clip, e.g. from `loss_weight`.
    """
    error = (prediction.float() - target.float()).square().mean(dim=1)
    counts = torch.ones_like(error) if wanted is None else wanted.to(error.dtype)
    if weight is not None:
        error = error * weight[:, None, None, None]
    return (error * counts).sum() / counts.sum().clamp(min=1)


def loss_weight(
    t: Float[Tensor, " b"], kind: Literal["uniform", "min-snr"] = "uniform", gamma: float = 5.0
) -> Float[Tensor, " b"]:
    """Weight of the velocity's error at time t.

    Args:
        t: times.
        kind: "uniform", or "min-snr": the velocity form of arXiv:2303.09556, min(SNR, gamma) / (SNR + 1), with
            SNR = ((1 - t) / t)^2.
        gamma: largest signal-to-noise ratio that still raises the weight.
    """
    if kind == "uniform":
        return torch.ones_like(t)
    snr = ((1 - t) / t.clamp(min=1e-4)).square()
    return snr.clamp(max=gamma) / (snr + 1)


def _per_row(t: Float[Tensor, " b"], like: Float[Tensor, "b z t h w"]) -> Tensor:
    return t.to(like.dtype)[:, None, None, None, None]
