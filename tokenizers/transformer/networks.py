"""Encoder and decoder of the transformer tokenizer.

    video --Haar 2×2×2, fold--> blocks of pixels --linear--> [space, time, MLP] × depth --linear--> latents
                                     `--------------------- linear path -----------------------------^

The decoder mirrors it. Every latent cell is one block of pixels: the first frame alone, then groups of frames. The
linear path is that of the convolutional tokenizer (`kinema.tokenizers.causal_vae.networks`).
"""

from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.layers import fold, haar_fold, haar_unfold, unfold
from kinema.tokenizers.causal_vae.networks import HAAR_RATIO, BlockCoder, Ratio
from kinema.tokenizers.streaming import StreamCache, is_first
from kinema.tokenizers.transformer.layers import SpaceTimeBlock

HAAR_CHANNELS = 3 * prod(HAAR_RATIO)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The transformer of an encoder or a decoder.

    Attributes:
        width: channels of a cell.
        depth: number of blocks.
        head_dim: channels of an attention head.
        window: cells along either side of a window of attention in space; every other block shifts by half of it.
        reach: time steps that attention in time sees, the present one included.
        mlp_ratio: hidden width over width, see `SwiGLU`.
    """

    width: int
    depth: int
    head_dim: int
    window: int
    reach: int
    mlp_ratio: float

    def blocks(self) -> nn.ModuleList:
        """The untrained blocks.

        Raises:
            KinemaError: a size is not possible.
        """
        if self.window < 2 or self.window % 2:
            raise KinemaError(f"`window` (={self.window}) must be even and at least 2")
        if self.reach < 1:
            raise KinemaError(f"`temporal_window` (={self.reach}) must be at least 1")
        return nn.ModuleList(
            SpaceTimeBlock(self.width, self.head_dim, self.window, i % 2 * self.window // 2, self.reach, self.mlp_ratio)
            for i in range(self.depth)
        )

    @property
    def context(self) -> int:
        """How many cells away an output can depend on an input.

        The first block reaches as far as its window; each further one half a window beyond the edge of the last.
        """
        return self.window - 1 + (self.depth - 1) * self.window // 2 if self.depth else 0


def deep_ratio(ratio: Ratio) -> Ratio:
    """What is left of a compression ratio after the Haar level.

    Raises:
        KinemaError: the ratio is not a multiple of the Haar level's, or height and width differ.
    """
    if any(r < 1 or r % haar for r, haar in zip(ratio, HAAR_RATIO, strict=True)) or ratio[1] != ratio[2]:
        raise KinemaError(f"`ratio` (={ratio}) must be even numbers (time, height, width), the last two equal")
    return ratio[0] // HAAR_RATIO[0], ratio[1] // HAAR_RATIO[1], ratio[2] // HAAR_RATIO[2]


def to_blocks(video: Float[Tensor, "b 3 t h w"], ratio: Ratio, first: bool) -> Float[Tensor, "b u i j d"]:
    """The numbers of every latent cell's pixels, Haar coefficients; `ratio` is that after the Haar level."""
    return fold(haar_fold(video, first), ratio, first)


def from_blocks(blocks: Float[Tensor, "b u i j d"], ratio: Ratio, first: bool) -> Float[Tensor, "b 3 t h w"]:
    """The inverse of `to_blocks`."""
    return haar_unfold(unfold(blocks, ratio, first), first)


def zero_head(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer of zeros: with such a head, an untrained network is its linear path alone."""
    head = nn.Linear(in_features, out_features)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Encoder(BlockCoder):
    """Video ``(b, 3, t, h, w)`` to the bottleneck's input ``(b, c, t', h', w')``; of a stream, the next piece.

    Attributes:
        context: Latent cells that an output can depend on, to either side.
        grain: Tiles begin at multiples of this many cells, so that windows lie where they do in the whole frame.
    """

    def __init__(self, out_channels: int, linear_channels: int, ratio: Ratio, trunk: Trunk):
        super().__init__()
        self.block_ratio = deep_ratio(ratio)
        self.context, self.grain = trunk.context, trunk.window
        numbers = HAAR_CHANNELS * prod(self.block_ratio)
        self.linear_path = nn.Linear(numbers, linear_channels)
        self.stem = nn.Linear(numbers, trunk.width)
        self.blocks = trunk.blocks()
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.head = zero_head(trunk.width, out_channels)

    def forward(
        self, video: Float[Tensor, "b 3 t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b d u i j"]:
        x = to_blocks(video, self.block_ratio, is_first(cache))
        located = self.linear_path(x)
        h = self.stem(x)
        h = self.run(self.blocks, h, cache)
        h = self.head(self.norm(h)).float()
        # The linear path moves the location (the first channels), not the bottleneck's other parameters.
        h = torch.cat([h[..., : located.shape[-1]] + located, h[..., located.shape[-1] :]], dim=-1)
        return rearrange(h, "b t h w c -> b c t h w")


class Decoder(BlockCoder):
    """Latents ``(b, z, t', h', w')`` to video ``(b, 3, t, h, w)``, whole latent steps; of a stream, the next piece.

    Attributes:
        context, grain: As the encoder's.
    """

    def __init__(self, latent_channels: int, ratio: Ratio, trunk: Trunk):
        super().__init__()
        self.block_ratio = deep_ratio(ratio)
        self.context, self.grain = trunk.context, trunk.window
        numbers = HAAR_CHANNELS * prod(self.block_ratio)
        self.linear_path = nn.Linear(latent_channels, numbers)
        self.stem = nn.Linear(latent_channels, trunk.width)
        self.blocks = trunk.blocks()
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.head = zero_head(trunk.width, numbers)

    def forward(
        self, latents: Float[Tensor, "b z t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b 3 u i j"]:
        z = rearrange(latents, "b z t h w -> b t h w z")
        h = self.stem(z)
        h = self.run(self.blocks, h, cache)
        x = self.head(self.norm(h)).float() + self.linear_path(z).float()
        return from_blocks(x, self.block_ratio, is_first(cache))
