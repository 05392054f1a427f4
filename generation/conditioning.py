"""Conditioning on given latents, such as the first frame: they stay fixed during sampling and have timestep 0.

Used in training and by the pipeline. Shapes: b batch, z channels, t h w the latent grid, n tokens.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.flow import TIMESTEP_SCALE, interpolate, velocity_target

Granularity = Literal["clip", "step", "token"]
"""Which tokens share a timestep: all of a clip, those of a latent step, or none."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Given latents and their positions.

    Attributes:
        latents: normalised latents; ignored where `mask` is false.
        mask: true at given positions.
        granularity: "clip" if nothing is given, "step" if only whole latent steps are given, else "token". Stored,
            because reading it from the mask would synchronise with the device.
    """

    latents: Float[Tensor, "b z t h w"]
    mask: Bool[Tensor, "b t h w"]
    granularity: Granularity = "token"

    @classmethod
    def nothing(cls, latents: Float[Tensor, "b z t h w"]) -> "Conditioning":
        """Create a conditioning with nothing given (text-to-video), with shape, dtype and device of `latents`."""
        mask = torch.zeros_like(latents[:, 0], dtype=torch.bool)
        return cls(latents=torch.zeros_like(latents), mask=mask, granularity="clip")

    @classmethod
    def first_steps(cls, given: Float[Tensor, "b z k h w"], num_steps: int) -> "Conditioning":
        """Create a conditioning on the first k of `num_steps` latent steps: k = 1 for image-to-video, more to continue.

        Raises:
            KinemaError: k is larger than `num_steps`.
        """
        num_given = given.shape[2]
        if num_given > num_steps:
            raise KinemaError(f"`given` has {num_given} latent steps, but the clip has `num_steps` (={num_steps})")
        batch, channels, _, height, width = given.shape
        latents = given.new_zeros(batch, channels, num_steps, height, width)
        latents[:, :, :num_given] = given
        mask = torch.zeros_like(latents[:, 0], dtype=torch.bool)
        mask[:, :num_given] = True
        return cls(latents=latents, mask=mask, granularity="step")

    def impose(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """Replace the given positions of `latents` with the given latents."""
        return torch.where(self.mask[:, None], self.latents.to(latents.dtype), latents)

    def timesteps(self, t: Float[Tensor, " b"], patch_size: tuple[int, int, int] = (1, 1, 1)) -> Float[Tensor, "b n"]:
        """Return the transformer's timestep of each token: 0 if all its latents are given, else 1000 t.

        Args:
            t: time of each clip, in [0, 1].
            patch_size: patch size of the transformer.
        """
        given = self.token_mask(patch_size)
        return torch.where(given, 0.0, (t.float() * TIMESTEP_SCALE)[:, None])

    def grouped_timesteps(
        self, t: Float[Tensor, " b"], patch_size: tuple[int, int, int] = (1, 1, 1)
    ) -> Float[Tensor, "b ..."]:
        """Return `timesteps` without repetition: one value per clip, latent step or token, see `granularity`."""
        if self.granularity == "token":
            return self.timesteps(t, patch_size)
        scaled = t.float() * TIMESTEP_SCALE
        if self.granularity == "clip":
            return scaled
        given = self.mask[:, :, 0, 0].unflatten(1, (-1, patch_size[0])).all(2)
        return torch.where(given, 0.0, scaled[:, None])

    def token_mask(self, patch_size: tuple[int, int, int] = (1, 1, 1)) -> Bool[Tensor, "b n"]:
        """Return which tokens are given, in the transformer's order (t h w)."""
        pt, ph, pw = patch_size
        pattern = "b (t pt) (h ph) (w pw) -> b t h w"
        tokens = reduce(self.mask.to(torch.uint8), pattern, "min", pt=pt, ph=ph, pw=pw)
        return rearrange(tokens, "b t h w -> b (t h w)").bool()


@dataclass(frozen=True, kw_only=True)
class FlowInputs:
    """Inputs and target of the transformer for a batch of training examples.

    Attributes:
        hidden_states: noisy latents, clean at given positions.
        timestep: timestep of each clip, latent step or token, see `Conditioning.grouped_timesteps`.
        target: the velocity to predict.
        wanted: positions that are not given, where the loss is computed.
    """

    hidden_states: Float[Tensor, "b z t h w"]
    timestep: Float[Tensor, "b ..."]
    target: Float[Tensor, "b z t h w"]
    wanted: Bool[Tensor, "b t h w"]


def flow_inputs(
    clean: Float[Tensor, "b z t h w"],
    noise: Float[Tensor, "b z t h w"],
    t: Float[Tensor, " b"],
    conditioning: Conditioning | None = None,
    patch_size: tuple[int, int, int] = (1, 1, 1),
) -> FlowInputs:
    """Create training examples from clean latents.

    Args:
        clean: normalised latents.
        noise: standard normal noise.
        t: time of each clip, in [0, 1].
        conditioning: the given latents; None: nothing is given.
        patch_size: patch size of the transformer.
    """
    conditioning = Conditioning.nothing(clean) if conditioning is None else conditioning
    return FlowInputs(
        hidden_states=conditioning.impose(interpolate(clean, noise, t)),
        timestep=conditioning.grouped_timesteps(t, patch_size),
        target=velocity_target(clean, noise),
        wanted=~conditioning.mask,
    )


def sample_first_step_conditioning(
    clean: Float[Tensor, "b z t h w"],
    probability: float,
    *,
    max_noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Conditioning:
    """Randomly choose the clips of a training batch whose first latent step is given.

    A little noise is added to given latents, so that the model does not rely on details that the latents of a user's
    image may lack. One-frame clips (images) are never given, because nothing would be left to predict.

    Args:
        clean: normalised latents.
        probability: probability that the first step of a clip is given.
        max_noise: given latents are noised to a time drawn uniformly from [0, `max_noise`].
        generator: source of randomness.
    """
    batch, _, num_steps, *_ = clean.shape
    draw = torch.rand(2, batch, generator=generator, device=generator.device if generator is not None else None)
    is_given = (draw[0] < probability).to(clean.device)
    noise = torch.randn(clean[:, :, :1].shape, generator=generator, device=draw.device).to(clean)
    given = interpolate(clean[:, :, :1], noise, (draw[1] * max_noise).to(clean.device))
    return given_steps(given, is_given, num_steps)


def given_steps(first: Float[Tensor, "b z 1 h w"], is_given: Bool[Tensor, " b"], num_steps: int) -> Conditioning:
    """Give the first latent step of some clips; never of images, because nothing would be left to predict."""
    conditioning = Conditioning.first_steps(first, num_steps)
    mask = conditioning.mask & (is_given & (num_steps > 1))[:, None, None, None]
    return replace(conditioning, mask=mask)
