"""The interface of a bottleneck."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(kw_only=True)
class BottleneckOutput:
    """Latents for the decoder, their deterministic form, and what the bottleneck knows about them.

    Attributes:
        latents: ``(b, z, t, h, w)``, what the decoder gets (a sample in training, see `Bottleneck.forward`).
        mode: ``(b, z, t, h, w)``, the deterministic latents; the same tensor where nothing is random.
        latent_dist: the posterior, if there is one.
        indices: ``(b, t, h, w)`` code indices, if the bottleneck is discrete.
        losses: loss terms by name, each a scalar.
    """

    latents: Float[Tensor, "b z t h w"]
    mode: Float[Tensor, "b z t h w"]
    latent_dist: Any = None
    indices: Int[Tensor, "b t h w"] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module, ABC):
    """Turns the encoder's output into latents.

    Attributes:
        latent_channels: channels of the latents.
        in_channels: channels that the encoder must give; the first `latent_channels` of them locate the latent.
    """

    latent_channels: int
    in_channels: int

    @abstractmethod
    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        """Quantises or samples; `sample` draws from the posterior where there is one."""

    def indices_to_latents(self, indices: Int[Tensor, "b t h w"]) -> Float[Tensor, "b z t h w"]:
        """The latents of code indices.

        Raises:
            TypeError: the bottleneck is continuous.
        """
        raise TypeError(f"a {type(self).__name__} bottleneck is continuous and has no code indices")
