"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): every channel is rounded to a few levels."""

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers.base import Bottleneck, BottleneckOutput


class FSQ(Bottleneck):
    """Rounds channel i to one of `levels[i]` values in [-1, 1]; the codebook is the product of the levels.

    Latents are (integer level) / (levels // 2); the index counts in mixed radix with channel 0 fastest. Memory is
    linear in the number of positions: the codebook is never laid out.
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]):
        """
        Args:
            levels: number of levels per channel, each at least 2.

        Raises:
            KinemaError: a level is below 2, or there is none.
        """
        super().__init__()
        if not levels or min(levels) < 2:
            raise KinemaError(f"`levels` (={tuple(levels)}) must be integers of at least 2, one per latent channel")
        self.latent_channels = self.in_channels = len(levels)
        self.codebook_size = prod(levels)
        basis = [prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        latents = self.quantize(h.float())
        return BottleneckOutput(latents=latents, mode=latents, indices=self.latents_to_indices(latents))

    def quantize(self, z: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Bounds and rounds; gradients pass straight through the rounding (arXiv 2309.15505, section 3.1)."""
        levels = self._channelwise(self._levels).to(z.dtype)
        # Even level counts are shifted by half a step, so that all their values lie inside the bounds.
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (levels // 2)

    def latents_to_indices(self, latents: Float[Tensor, "b c t h w"]) -> Int[Tensor, "b t h w"]:
        half = self._channelwise(self._levels) // 2
        digits = (latents * half).round().long() + half
        return (digits * self._channelwise(self._basis)).sum(dim=1)

    def indices_to_latents(self, indices: Int[Tensor, "b t h w"]) -> Float[Tensor, "b z t h w"]:
        """
        Raises:
            KinemaError: an index lies outside the codebook.
        """
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= self.codebook_size:
            raise KinemaError(f"`indices` (={low}..{high}) must lie in 0..{self.codebook_size - 1}")
        half = self._channelwise(self._levels) // 2
        digits = indices.unsqueeze(1) // self._channelwise(self._basis) % self._channelwise(self._levels)
        return (digits - half).float() / half

    def _channelwise(self, vector: Tensor) -> Tensor:
        return vector.view(1, -1, 1, 1, 1)
