"""Encoder and decoder of the causal tokenizer.

    video --Haar 2×2×2--> [blocks, downsample] ... blocks --> latents        (encoder; the decoder mirrors it)
      `--fold to one latent step's block--> linear ----------^               (the linear path)

The linear path is a block transform; initialised with a KLT (PCA) it makes the untrained network the best linear code
of its size, and the convolutional path learns what a linear code cannot do.
"""

from collections.abc import Iterable, Sequence
from math import ceil, prod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    fold,
    haar_fold,
    haar_unfold,
    unfold,
)
from kinema.tokenizers.streaming import StreamCache, is_first

Ratio = tuple[int, int, int]
HAAR_RATIO: Ratio = (2, 2, 2)


def block_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """The product of the stages' ratios per axis."""
    return prod(r[0] for r in ratios), prod(r[1] for r in ratios), prod(r[2] for r in ratios)


def spatial_context(blocks: Sequence[int], ratios: Sequence[Ratio]) -> int:
    """How many latent cells away an output can depend on an input: two 3×3 convolutions a block, at each resolution."""
    pixels = [HAAR_RATIO[1] * block_ratio(ratios[:i])[1] for i in range(len(blocks))]
    cell = HAAR_RATIO[1] * block_ratio(ratios)[1]
    return ceil(sum(2 * count * size for count, size in zip(blocks, pixels, strict=True)) / cell)


class Coder(nn.Module):
    """An encoder or decoder made of blocks.

    Attributes:
        gradient_checkpointing: Whether the backward pass recomputes the blocks' activations.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Any

    def run(self, blocks: Iterable[nn.Module], x: Tensor, *more: Any) -> Tensor:
        """Apply the blocks in order; `more` goes to each.

        Raises:
            KinemaError: Gradient checkpointing of a stream, whose cache has changed when blocks are recomputed.
        """
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        if recomputes and any(isinstance(value, StreamCache) for value in more):
            flags = "`use_framewise_encoding`, `use_framewise_decoding`"
            raise KinemaError(f"{flags} (=True) must be False with gradient checkpointing")
        for block in blocks:
            x = self._gradient_checkpointing_func(block, x, *more) if recomputes else block(x, *more)
        return x


class BlockCoder(Coder):
    """An encoder or decoder with a linear path between the Haar level's blocks and latents."""

    linear_path: nn.Linear
    block_ratio: Ratio


class Encoder(BlockCoder):
    """Video ``(b, 3, t, h, w)`` to the bottleneck's input ``(b, c, t', h', w')``; of a stream, the next piece.

    Attributes:
        context: Latent cells that an output can depend on, to either side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        linear_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        ratios: Sequence[Ratio],
    ):
        super().__init__()
        haar_channels = in_channels * prod(HAAR_RATIO)
        self.block_ratio = block_ratio(ratios)
        self.context = spatial_context(blocks, ratios)
        self.linear_path = nn.Linear(haar_channels * prod(self.block_ratio), linear_channels)
        self.stem = nn.Linear(haar_channels, widths[0])
        stages: list[nn.Module] = []
        for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if i > 0:
                stages.append(Downsample(widths[i - 1], width, ratios[i - 1]))
            stages += [ResidualBlock(width, temporal=i > 0) for _ in range(count)]
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], out_channels)
        # Zero heads in encoder and decoder: an untrained network is its linear path alone.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, video: Float[Tensor, "b c t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b d u i j"]:
        x = haar_fold(video, is_first(cache))
        located = self.linear_path(fold(x, self.block_ratio, is_first(cache)))
        h = self.run(self.stages, self.stem(x), cache)
        h = self.head(self.norm(h)).float()
        # The linear path moves the location (the first channels), not the bottleneck's other parameters.
        h = torch.cat([h[..., : located.shape[-1]] + located, h[..., located.shape[-1] :]], dim=-1)
        return rearrange(h, "b t h w c -> b c t h w")


class Decoder(BlockCoder):
    """Latents ``(b, z, t', h', w')`` to video ``(b, 3, t, h, w)``, whole latent steps; of a stream, the next piece.

    Attributes:
        context: Latent cells that an output can depend on, to either side.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        ratios: Sequence[Ratio],
    ):
        super().__init__()
        haar_channels = out_channels * prod(HAAR_RATIO)
        self.block_ratio = block_ratio(ratios)
        self.context = spatial_context(blocks, ratios)
        self.linear_path = nn.Linear(latent_channels, haar_channels * prod(self.block_ratio))
        self.stem = nn.Linear(latent_channels, widths[-1])
        stages: list[nn.Module] = []
        for i in reversed(range(len(widths))):
            stages += [ResidualBlock(widths[i], temporal=i > 0) for _ in range(blocks[i])]
            if i > 0:
                stages.append(Upsample(widths[i], widths[i - 1], ratios[i - 1]))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(widths[0], eps=1e-6)
        self.head = nn.Linear(widths[0], haar_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, latents: Float[Tensor, "b z t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b c u i j"]:
        z = rearrange(latents, "b z t h w -> b t h w z")
        h = self.run(self.stages, self.stem(z), cache)
        x = self.head(self.norm(h)).float() + unfold(self.linear_path(z).float(), self.block_ratio, is_first(cache))
        return haar_unfold(x, is_first(cache))
