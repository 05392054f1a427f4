"""The interface of a bottleneck.

Shapes: encoder output ``(b, c, t, h, w)``, latents ``(b, z, t, h, w)``, code indices ``(b, t, h, w)``.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.checks import checks_values

# Without bool: a mask is not a code.
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(kw_only=True)
class BottleneckOutput:
    """What a bottleneck returns.

    Attributes:
        latents: ``(b, z, t, h, w)``, the decoder's input (a sample if `sample` is set, see `Bottleneck.forward`).
        mode: ``(b, z, t, h, w)``, the deterministic latents; the same tensor if nothing is random.
        latent_dist: The posterior (KL only).
        indices: ``(b, t, h, w)`` code indices (discrete bottlenecks only).
        losses: Loss terms by name, each a scalar.
    """

    latents: Float[Tensor, "b z t h w"]
    mode: Float[Tensor, "b z t h w"]
    latent_dist: Any = None
    indices: Int[Tensor, "b t h w"] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """Turns the encoder's output into latents. The arguments of a subclass are the options of its config.

    Attributes:
        latent_channels: Channels of the latents.
        in_channels: Channels of the encoder's output; the first `latent_channels` of them are the latent's location.
        start_std: Standard deviation of the encoder's output at initialisation. If it is set, the decoder's linear
            path is fitted to the codes, which differ from that output. None: standard deviation 1, and the latents
            equal the output ("kl"), or the codebook is still to be initialised from it ("vq").
    """

    latent_channels: int
    in_channels: int
    start_std: float | None = None

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        """Quantise, or sample from the posterior if there is one and `sample` is set."""

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """Look up the latents of code indices.

        Args:
            indices: ``(b, t, h, w)``, any integer type.

        Raises:
            KinemaError: The bottleneck is continuous, an index is outside of the codebook, or the shape or type of
                `indices` is wrong.
        """
        raise KinemaError(
            f"`bottleneck` (={type(self).__name__.lower()!r}) must be a discrete one for code indices, not a continuous"
        )


class DiscreteBottleneck(Bottleneck):
    """A bottleneck whose latents are the codes of a codebook.

    Attributes:
        codebook_size: Number of codes; indices lie in ``0..codebook_size - 1``.
    """

    codebook_size: int

    @abstractmethod
    def latents_to_indices(self, latents: Float[Tensor, "b z t h w"]) -> Int[Tensor, "b t h w"]:
        """Index of the code nearest to each latent."""

    @abstractmethod
    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """The inverse of `latents_to_indices`; see `Bottleneck.indices_to_latents`."""

    def _check_indices(self, indices: Tensor) -> None:
        if indices.ndim != 4 or indices.dtype not in _INTEGERS:
            what = f"of shape {tuple(indices.shape)}, {indices.dtype}"
            raise KinemaError(f"`indices` ({what}) must be integers (batch, frames, height, width)")
        if indices.numel() == 0 or not checks_values():
            return
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.codebook_size:
            raise KinemaError(f"`indices` (={low}..{high}) must lie in 0..{self.codebook_size - 1}")


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Disable autocast on the tensor's device, so that matrix products keep their precision; meta has no autocast."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
