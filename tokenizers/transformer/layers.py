"""Layers of the transformer tokenizers.

A clip is channels-last, ``b t h w c``, with a vector per latent cell. Attention in space stays within windows of a time
step, attention in time within a cell's own column and a limited number of steps: what an output depends on is bounded
in every direction, so that clips may be streamed and frames tiled without an error.

Legend: n heads, d channels of a head, l positions, s the three of query, key and value.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.streaming import StreamCache


def wave_angles(positions: Float[Tensor, " l"], pairs: int, reach: int) -> Float[Tensor, "l p"]:
    """Rotary angles of positions (arXiv 2104.09864): wavelengths from 2π to 2π·`reach`, evenly spread in the logarithm.

    In float64: only differences of angles matter, and those of late positions must not lose digits.
    """
    frequencies = float(reach) ** -torch.linspace(0, 1, pairs, dtype=torch.float64)
    return positions.double()[:, None] * frequencies


def rotate(x: Float[Tensor, "g n l d"], angles: Float[Tensor, "l p"]) -> Float[Tensor, "g n l d"]:
    """Turns channel i and channel i + d/2 as a plane by angle i (arXiv 2104.09864, equation 34)."""
    cos, sin = (table.to(x.device, x.dtype) for table in (angles.cos(), angles.sin()))
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Weights of a multi-head attention with normalised queries and keys (arXiv 2302.05442, section 2)."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        if head_dim % 4 or head_dim < 4 or channels % head_dim:
            raise KinemaError(f"`head_dim` (={head_dim}) must be a multiple of 4 and divide the width (={channels})")
        self.head_dim = head_dim
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.query_gain = nn.Parameter(torch.ones(head_dim))
        self.key_gain = nn.Parameter(torch.ones(head_dim))
        self.out = nn.Linear(channels, channels)

    def normalised(
        self, q: Float[Tensor, "g n l d"], k: Float[Tensor, "g n m d"]
    ) -> tuple[Float[Tensor, "g n l d"], Float[Tensor, "g n m d"]]:
        """Queries and keys in float32, each of root mean square 1 before the learned gains."""
        shape = (self.head_dim,)
        query_gain, key_gain = self.query_gain.float(), self.key_gain.float()
        return F.rms_norm(q.float(), shape, query_gain, 1e-6), F.rms_norm(k.float(), shape, key_gain, 1e-6)


def attend(
    q: Float[Tensor, "g n l d"],
    k: Float[Tensor, "g n m d"],
    v: Float[Tensor, "g n m d"],
    mask: Bool[Tensor, "..."] | None,
) -> Float[Tensor, "g n l d"]:
    """Softmax attention in the type of the values; `mask` is true where a query sees a key."""
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=mask)


class SpatialAttention(Attention):
    """Attention among the cells of a window of one time step; windows begin `shift` cells before the frame's corner.

    Windows at the edges hold the cells that there are: the rest is masked. Positions within a window are rotary.
    """

    def __init__(self, channels: int, head_dim: int, window: int, shift: int):
        super().__init__(channels, head_dim)
        self.window, self.shift = window, shift

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w c"]:
        batch, _, height, width, _ = x.shape
        start, size = self.shift, self.window
        bottom, right = -(height + start) % size, -(width + start) % size
        frames = rearrange(self.qkv(x), "b t h w e -> (b t) h w e")
        cells = F.pad(frames, (0, 0, start, right, start, bottom))
        grid = dict(i=cells.shape[1] // size, j=cells.shape[2] // size)
        q, k, v = rearrange(cells, "f (i p) (j r) (s n d) -> s (f i j) n (p r) d", p=size, r=size, s=3, d=self.head_dim)
        q, k = self.normalised(q, k)
        angles = self._angles()
        mask = None
        if start or bottom or right:
            inside = F.pad(torch.ones(height, width, dtype=torch.bool, device=x.device), (start, right, start, bottom))
            mask = repeat(inside, "(i p) (j r) -> (f i j) 1 1 (p r)", f=len(frames), p=size, r=size)
        y = attend(rotate(q, angles), rotate(k, angles), v, mask)
        y = rearrange(y, "(f i j) n (p r) d -> f (i p) (j r) (n d)", p=size, **grid)
        y = y[:, start : start + height, start : start + width]
        return rearrange(self.out(y), "(b t) h w c -> b t h w c", b=batch)

    def _angles(self) -> Float[Tensor, "l p"]:
        """Half of the planes turn with the row, half with the column."""
        line = wave_angles(torch.arange(self.window).float(), self.head_dim // 4, self.window)
        rows = repeat(line, "p a -> (p r) a", r=self.window)
        columns = repeat(line, "r a -> (p r) a", p=self.window)
        return torch.cat([rows, columns], dim=1)


class TemporalAttention(Attention):
    """Attention of a cell over its own column: the present and the ``reach - 1`` time steps before it.

    Positions are rotary, and so relative: a stream keeps the keys as they are before the rotation, and no count.
    """

    def __init__(self, channels: int, head_dim: int, reach: int):
        super().__init__(channels, head_dim)
        self.reach = reach

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b t h w c"]:
        batch, steps, height, width, _ = x.shape
        q, k, v = rearrange(self.qkv(x), "b t h w (s n d) -> s (b h w) n t d", s=3, d=self.head_dim)
        q, k = self.normalised(q, k)
        if cache is not None:
            k, v = self._with_past(k, v, (batch, height, width), cache)
        positions = torch.arange(k.shape[2])
        angles = wave_angles(positions.float(), self.head_dim // 2, self.reach)
        distance = positions[-steps:, None] - positions[None, :]
        mask = ((distance >= 0) & (distance < self.reach)).to(x.device)
        y = attend(rotate(q, angles[-steps:]), rotate(k, angles), v, mask)
        return self.out(rearrange(y, "(b h w) n t d -> b t h w (n d)", h=height, w=width))

    def _with_past(
        self, k: Tensor, v: Tensor, size: tuple[int, int, int], cache: StreamCache
    ) -> tuple[Float[Tensor, "g n m d"], Float[Tensor, "g n m d"]]:
        """Keys and values after those of the last steps that this layer saw; keeps the new last ones."""
        kept = cache.state.get(self)
        if kept is not None:
            size_before, keys, values = kept
            if size_before != size:
                raise KinemaError(
                    f"a stream's chunk ({size[0]} clips of {size[1:]} cells) must have the size of those before it "
                    f"({size_before[0]} clips of {size_before[1:]} cells)"
                )
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        start = max(k.shape[2] - (self.reach - 1), 0)
        # Copies, since views would keep the whole chunk in memory.
        cache.state[self] = (size, k[:, :, start:].clone(), v[:, :, start:].clone())
        return k, v


class SwiGLU(nn.Module):
    """A gated two-layer network with as many weights as a plain one of `ratio` times the width (arXiv 2002.05202)."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.hidden = max(int(ratio * channels * 2 / 3) // 8 * 8, 8)
        self.gate_and_value = nn.Linear(channels, 2 * self.hidden)
        self.out = nn.Linear(self.hidden, channels)

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class SpaceTimeBlock(nn.Module):
    """Attention in space, attention in time, then a gated network, each on normalised input and added to it.

    Nothing starts at zero here, for the reason that `kinema.tokenizers.causal_vae.layers.ResidualBlock` gives.
    """

    def __init__(self, channels: int, head_dim: int, window: int, shift: int, reach: int, mlp_ratio: float):
        super().__init__()
        self.norm_space = nn.LayerNorm(channels, eps=1e-6)
        self.space = SpatialAttention(channels, head_dim, window, shift)
        self.norm_time = nn.LayerNorm(channels, eps=1e-6)
        self.time = TemporalAttention(channels, head_dim, reach)
        self.norm_mlp = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = SwiGLU(channels, mlp_ratio)

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b t h w c"]:
        x = x + self.space(self.norm_space(x))
        x = x + self.time(self.norm_time(x), cache)
        return x + self.mlp(self.norm_mlp(x))
