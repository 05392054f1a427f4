"""Encoder and decoder of ordered tokens.

    window --blocks of pixels--> patches ┐                              tokens ┐
                                queries ┴ transformer --> tokens        places ┴ transformer --> blocks --> window

Encoder: patches see patches, a query sees patches, itself and the queries before it, so that a token does not depend on
later ones, nor on how many there are. Decoder: everything sees the tokens that are there and all places; tokens that
are dropped are absent from the attention. Beside either stands a linear path (`kinema.tokenizers.holistic.linear`).

Legend: g windows, p patches, n tokens, l = p + n.
"""

from dataclasses import dataclass
from math import prod

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.networks import Coder, Ratio
from kinema.tokenizers.holistic.linear import SpectralDecoder, SpectralEncoder, spectral_rank
from kinema.tokenizers.transformer.layers import Attention, SwiGLU, attend
from kinema.tokenizers.transformer.networks import HAAR_CHANNELS, deep_ratio, from_blocks, to_blocks, zero_head

_PLACE_STD = 0.5
"""Deviation of what is learned per place and query, of the size of what the first attention adds to it."""


@dataclass(frozen=True, kw_only=True)
class TokenTrunk:
    """The transformer of an encoder or a decoder: width of a token, number of blocks, and their shape."""

    width: int
    depth: int
    head_dim: int
    mlp_ratio: float

    def blocks(self) -> nn.ModuleList:
        """The untrained blocks."""
        return nn.ModuleList(JointBlock(self.width, self.head_dim, self.mlp_ratio) for _ in range(self.depth))


def patch_grid(num_frames: int, size: int, ratio: Ratio) -> tuple[int, int, int]:
    """Patches of a window (time, height, width): the first frame alone, then groups.

    Raises:
        KinemaError: the window is not made of whole patches.
    """
    if num_frames < 1 or (num_frames - 1) % ratio[0]:
        raise KinemaError(f"`num_frames` (={num_frames}) must be 1 more than a multiple of {ratio[0]}")
    if size < 1 or size % ratio[1]:
        raise KinemaError(f"`size` (={size}) must be a multiple of {ratio[1]}")
    return 1 + (num_frames - 1) // ratio[0], size // ratio[1], size // ratio[2]


class JointAttention(Attention):
    """Attention over one sequence; `mask` is true where a position (second to last axis) sees another (last axis)."""

    def forward(self, x: Float[Tensor, "g l c"], mask: Bool[Tensor, "..."] | None) -> Float[Tensor, "g l c"]:
        q, k, v = rearrange(self.qkv(x), "g l (s n d) -> s g n l d", s=3, d=self.head_dim)
        q, k = self.normalised(q, k)
        return self.out(rearrange(attend(q, k, v, mask), "g n l d -> g l (n d)"))


class JointBlock(nn.Module):
    """Attention, then a gated network, each on normalised input and added to it."""

    def __init__(self, channels: int, head_dim: int, mlp_ratio: float):
        super().__init__()
        self.norm_attention = nn.LayerNorm(channels, eps=1e-6)
        self.attention = JointAttention(channels, head_dim)
        self.norm_mlp = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = SwiGLU(channels, mlp_ratio)

    def forward(self, x: Float[Tensor, "g l c"], mask: Bool[Tensor, "..."] | None) -> Float[Tensor, "g l c"]:
        x = x + self.attention(self.norm_attention(x), mask)
        return x + self.mlp(self.norm_mlp(x))


class Places(nn.Module):
    """What is learned about where a patch is: the sum of a vector for its time, its row and its column."""

    def __init__(self, grid: tuple[int, int, int], channels: int):
        super().__init__()
        self.time, self.row, self.column = (nn.Parameter(_PLACE_STD * torch.randn(size, channels)) for size in grid)

    def forward(self) -> Float[Tensor, "p c"]:
        places = self.time[:, None, None] + self.row[:, None] + self.column
        return places.flatten(0, 2)


class TokenEncoder(Coder):
    """Windows ``(g, 3, f, s, s)`` to the bottleneck's input, ``(g, n, c)`` for the first `num_tokens` tokens."""

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_frames: int,
        size: int,
        ratio: Ratio,
        num_tokens: int,
        trunk: TokenTrunk,
    ):
        super().__init__()
        self.block_ratio = deep_ratio(ratio)
        self.latent_channels = latent_channels
        grid, numbers = patch_grid(num_frames, size, ratio), HAAR_CHANNELS * prod(self.block_ratio)
        count = num_tokens * latent_channels
        self.linear_path = SpectralEncoder(numbers, spectral_rank(count, grid, numbers), grid, count)
        self.stem = nn.Linear(numbers, trunk.width)
        self.places = Places(grid, trunk.width)
        self.queries = nn.Parameter(_PLACE_STD * torch.randn(num_tokens, trunk.width))
        self.blocks = trunk.blocks()
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.head = zero_head(trunk.width, out_channels)

    def forward(self, windows: Float[Tensor, "g 3 f s s"], num_tokens: int) -> Float[Tensor, "g n c"]:
        blocks = to_blocks(windows, self.block_ratio, first=True)
        located = self.linear_path(blocks).unflatten(1, (-1, self.latent_channels))[:, :num_tokens]
        patches = self.stem(blocks.flatten(1, 3)) + self.places()
        queries = repeat(self.queries[:num_tokens], "n c -> g n c", g=len(windows))
        x = torch.cat([patches, queries], dim=1)
        mask = causal_queries(patches.shape[1], num_tokens, x.device)
        x = self.run(self.blocks, x, mask)
        h = self.head(self.norm(x[:, patches.shape[1] :])).float()
        # The linear path moves the location (the first channels), not the bottleneck's other parameters.
        return torch.cat([h[..., : self.latent_channels] + located, h[..., self.latent_channels :]], dim=-1)


class TokenDecoder(Coder):
    """Latents ``(g, n, z)`` of the first n tokens to windows ``(g, 3, f, s, s)``."""

    def __init__(
        self, latent_channels: int, num_frames: int, size: int, ratio: Ratio, num_tokens: int, trunk: TokenTrunk
    ):
        super().__init__()
        self.block_ratio = deep_ratio(ratio)
        self.grid = patch_grid(num_frames, size, ratio)
        numbers, count = HAAR_CHANNELS * prod(self.block_ratio), num_tokens * latent_channels
        self.linear_path = SpectralDecoder(spectral_rank(count, self.grid, numbers), numbers, self.grid, count)
        self.stem = nn.Linear(latent_channels, trunk.width)
        self.order = nn.Parameter(_PLACE_STD * torch.randn(num_tokens, trunk.width))
        self.places = Places(self.grid, trunk.width)
        self.blocks = trunk.blocks()
        self.norm = nn.LayerNorm(trunk.width, eps=1e-6)
        self.head = zero_head(trunk.width, numbers)

    def forward(
        self, latents: Float[Tensor, "g n z"], lengths: Int[Tensor, " g"] | None = None
    ) -> Float[Tensor, "g 3 f s s"]:
        """With `lengths`, only so many tokens of each window are there."""
        num_tokens = latents.shape[1]
        tokens = self.stem(latents) + self.order[:num_tokens]
        places = repeat(self.places(), "p c -> g p c", g=len(latents))
        x = torch.cat([tokens, places], dim=1)
        mask = None if lengths is None else present(lengths, num_tokens, places.shape[1])
        x = self.run(self.blocks, x, mask)
        t, i, j = self.grid
        blocks = rearrange(self.head(self.norm(x[:, num_tokens:])), "g (t i j) d -> g t i j d", t=t, i=i, j=j)
        if mask is not None:
            latents = latents * mask[:, 0, 0, :num_tokens, None]
        blocks = blocks.float() + self.linear_path(latents.flatten(1)).float()
        return from_blocks(blocks, self.block_ratio, first=True)


def causal_queries(num_patches: int, num_tokens: int, device: torch.device) -> Bool[Tensor, "l l"]:
    """Patches see patches; queries see patches, and queries up to themselves."""
    length = num_patches + num_tokens
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask[:num_patches, :num_patches] = True
    return mask


def present(lengths: Int[Tensor, " g"], num_tokens: int, num_patches: int) -> Bool[Tensor, "g 1 1 l"]:
    """All places are there, and of each window's tokens the first few."""
    tokens = torch.arange(num_tokens, device=lengths.device) < lengths[:, None]
    return torch.cat([tokens, tokens.new_ones(len(lengths), num_patches)], dim=1)[:, None, None]
