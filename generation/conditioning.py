"""What is given, and where: latents that the sampler keeps, at timestep 0.

Used by training and by the pipeline alike. Shapes: b batch, z channels, t h w the latent grid, n tokens.
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
"""What shares a timestep: all tokens of a clip, those of a latent step, or none."""


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Latents that are given.

    Attributes:
        latents: normalised latents; only positions of the mask count.
        mask: true where they are given.
        granularity: what the mask is known to leave whole: "clip" where nothing is given, "step" where latent steps are
            given whole. Looking at the mask instead would make the host wait for the device.
    """

    latents: Float[Tensor, "b z t h w"]
    mask: Bool[Tensor, "b t h w"]
    granularity: Granularity = "token"

    @classmethod
    def nothing(cls, latents: Float[Tensor, "b z t h w"]) -> "Conditioning":
        """Text-to-video: nothing is given; the argument tells shape, type and device."""
        mask = torch.zeros_like(latents[:, 0], dtype=torch.bool)
        return cls(latents=torch.zeros_like(latents), mask=mask, granularity="clip")

    @classmethod
    def first_steps(cls, given: Float[Tensor, "b z k h w"], num_steps: int) -> "Conditioning":
        """The first k of `num_steps` latent steps are given: k = 1 is image-to-video, more is continuation.

        Raises:
            KinemaError: more steps are given than there are.
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
        """Puts what is given into place."""
        return torch.where(self.mask[:, None], self.latents.to(latents.dtype), latents)

    def timesteps(self, t: Float[Tensor, " b"], patch_size: tuple[int, int, int] = (1, 1, 1)) -> Float[Tensor, "b n"]:
        """The timestep of each token as the transformer takes it: 0 where given, 1000 t elsewhere.

        A token counts as given when all its latents are.

        Args:
            t: time of each clip, in [0, 1].
            patch_size: of the transformer.
        """
        given = self.token_mask(patch_size)
        return torch.where(given, 0.0, (t.float() * TIMESTEP_SCALE)[:, None])

    def grouped_timesteps(
        self, t: Float[Tensor, " b"], patch_size: tuple[int, int, int] = (1, 1, 1)
    ) -> Float[Tensor, "b ..."]:
        """`timesteps`, one for all tokens that are known to share it, see `granularity`."""
        if self.granularity == "token":
            return self.timesteps(t, patch_size)
        scaled = t.float() * TIMESTEP_SCALE
        if self.granularity == "clip":
            return scaled
        given = self.mask[:, :, 0, 0].unflatten(1, (-1, patch_size[0])).all(2)
        return torch.where(given, 0.0, scaled[:, None])

    def token_mask(self, patch_size: tuple[int, int, int] = (1, 1, 1)) -> Bool[Tensor, "b n"]:
        """Which tokens are given, in the transformer's order (t h w)."""
        pt, ph, pw = patch_size
        pattern = "b (t pt) (h ph) (w pw) -> b t h w"
        tokens = reduce(self.mask.to(torch.uint8), pattern, "min", pt=pt, ph=ph, pw=pw)
        return rearrange(tokens, "b t h w -> b (t h w)").bool()


@dataclass(frozen=True, kw_only=True)
class FlowInputs:
    """One training example a row: what the transformer sees, and what it shall say.

    Attributes:
        hidden_states: noisy latents with the given ones in place.
        timestep: of each clip, latent step or token, see `Conditioning.grouped_timesteps`.
        target: the velocity.
        wanted: positions that count in the loss.
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
    """Makes a training example of clean latents.

    Args:
        clean: normalised latents.
        noise: standard normal.
        t: time of each clip, in [0, 1].
        conditioning: what is given; None: nothing.
        patch_size: of the transformer.
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
    """Draws, for each clip of a training batch, whether its first latent step is given.

    Given latents carry a little noise, so that the model does not lean on details that a user's image, which the
    tokenizer has not seen, will not have. One-frame clips (images) are never given: nothing would be left to learn.

    Args:
        clean: normalised latents.
        probability: share of clips whose first step is given.
        max_noise: noise is mixed in at a time drawn uniformly from [0, `max_noise`].
        generator: source of randomness.
    """
    batch, _, num_steps, *_ = clean.shape
    draw = torch.rand(2, batch, generator=generator, device=generator.device if generator is not None else None)
    is_given = (draw[0] < probability).to(clean.device) & (num_steps > 1)
    noise = torch.randn(clean[:, :, :1].shape, generator=generator, device=draw.device).to(clean)
    given = interpolate(clean[:, :, :1], noise, (draw[1] * max_noise).to(clean.device))
    conditioning = Conditioning.first_steps(given, num_steps)
    return replace(conditioning, mask=conditioning.mask & is_given[:, None, None, None])
