"""Layers of the causal tokenizer.

Inside the network a clip is channels-last and contiguous, ``b t h w c``: a channel norm reads consecutive memory, a 1×1
convolution is a linear layer, and both factors of a factorised convolution run as 2D convolutions over *views* —
``(b t) h w c`` in space, ``b t (h w) c`` in time — which on a CPU is several times faster than a 3D convolution.

Causality: nothing here looks at a later time step, and no norm mixes statistics over time or space. Layers that look at
earlier ones, or treat the first frame by itself, take the cache of a stream (`kinema.tokenizers.streaming`).
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.streaming import StreamCache, is_first, with_past

_SQRT_HALF = 0.5**0.5


class SpatialConv(nn.Module):
    """A 3×3 convolution on every time step by itself, zero padding; ``b t h w c -> b t h w d``."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, 3)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w d"]:
        folded = rearrange(x, "b t h w c -> (b t) c h w")
        return rearrange(F.conv2d(folded, self.weight, self.bias, padding=1), "(b t) d h w -> b t h w d", b=x.shape[0])


class CausalTemporalConv(nn.Module):
    """A convolution over the present and the ``kernel_size - 1`` past time steps; zeros stand before the first."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        conv = nn.Conv2d(in_channels, out_channels, (kernel_size, 1))
        self.weight, self.bias = conv.weight, conv.bias
        self.past = kernel_size - 1

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b t h w d"]:
        height, steps = x.shape[2], x.shape[1]
        if cache is not None:
            x = with_past(x, self, self.past, cache)
        folded = rearrange(x, "b t h w c -> b c t (h w)")
        # Of a whole clip, symmetric padding and a crop give the causal result without a padded copy of the input.
        padding = (self.past if cache is None else 0, 0)
        out = F.conv2d(folded, self.weight, self.bias, padding=padding)[:, :, :steps]
        return rearrange(out, "b d t (h w) -> b t h w d", h=height)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv_t(silu(conv(norm(x)))))), the temporal convolution only where `temporal` is set.

    Nothing starts at zero here: next to a linear path at its optimum (a saddle point), features without context would
    give the network's zero head no gradient to start from.
    """

    def __init__(self, channels: int, temporal: bool):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.conv_in = SpatialConv(channels, channels)
        self.conv_time = CausalTemporalConv(channels, channels) if temporal else None
        self.conv_out = SpatialConv(channels, channels)

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b t h w c"]:
        h = F.silu(self.conv_in(self.norm(x)))
        if self.conv_time is not None:
            h = F.silu(self.conv_time(h, cache))
        return x + self.conv_out(h)


def fold(x: Float[Tensor, "b t h w c"], ratio: tuple[int, int, int], first: bool = True) -> Float[Tensor, "b u i j d"]:
    """Space and time to channels. The `first` time step stands alone: it fills all temporal slots of its step."""
    rt, rh, rw = ratio
    if rt > 1 and first:
        x = torch.cat([repeat(x[:, :1], "b 1 h w c -> b r h w c", r=rt - 1), x], dim=1)
    return rearrange(x, "b (t rt) (h rh) (w rw) c -> b t h w (rt rh rw c)", rt=rt, rh=rh, rw=rw)


def unfold(
    x: Float[Tensor, "b t h w c"], ratio: tuple[int, int, int], first: bool = True
) -> Float[Tensor, "b u i j d"]:
    """Channels to space and time, the inverse of `fold`: of the `first` step only the last temporal slot is kept."""
    rt, rh, rw = ratio
    x = rearrange(x, "b t h w (rt rh rw c) -> b (t rt) (h rh) (w rw) c", rt=rt, rh=rh, rw=rw)
    return x[:, rt - 1 :] if first else x


class Downsample(nn.Module):
    """`fold`, then a linear map, plus a shortcut without weights: means of channel groups (DC-AE, arXiv 2410.10733)."""

    def __init__(self, in_channels: int, out_channels: int, ratio: tuple[int, int, int]):
        super().__init__()
        folded = in_channels * ratio[0] * ratio[1] * ratio[2]
        if folded % out_channels:
            raise KinemaError(f"`out_channels` (={out_channels}) must divide the folded channels (={folded})")
        self.ratio = ratio
        self.groups = out_channels
        self.linear = nn.Linear(folded, out_channels)

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b u i j d"]:
        folded = fold(x, self.ratio, is_first(cache))
        # Slots vary slowest in `folded`, so a group takes one channel from every slot.
        shortcut = rearrange(folded, "... (r d) -> ... r d", d=self.groups).mean(-2)
        return self.linear(folded) + shortcut


class Upsample(nn.Module):
    """A linear map, then `unfold`, plus a shortcut without weights: repeated channels (DC-AE, arXiv 2410.10733)."""

    def __init__(self, in_channels: int, out_channels: int, ratio: tuple[int, int, int]):
        super().__init__()
        folded = out_channels * ratio[0] * ratio[1] * ratio[2]
        if folded % in_channels:
            raise KinemaError(f"`in_channels` (={in_channels}) must divide the folded channels (={folded})")
        self.ratio = ratio
        self.repeats = folded // in_channels
        self.linear = nn.Linear(in_channels, folded)

    def forward(self, x: Float[Tensor, "b t h w c"], cache: StreamCache | None = None) -> Float[Tensor, "b u i j d"]:
        shortcut = repeat(x, "... c -> ... (r c)", r=self.repeats)
        return unfold(self.linear(x) + shortcut, self.ratio, is_first(cache))


def haar_fold(video: Float[Tensor, "b c t h w"], first: bool = True) -> Float[Tensor, "b u i j d"]:
    """One orthonormal 2×2×2 Haar level: ``b c t h w -> b (1 + (t-1)/2) h/2 w/2 (8 c)``, without `first` ``t/2`` steps.

    The first frame enters as a temporal low band with zero high bands. Bands vary slowest, the low band comes first.
    """
    x = rearrange(video, "b c t h w -> b t h w c")
    alone, pairs = (x[:, :1], x[:, 1:]) if first else (x[:, :0], x)
    low = torch.cat([alone / _SQRT_HALF, (pairs[:, ::2] + pairs[:, 1::2]) * _SQRT_HALF], dim=1)
    high = torch.cat([torch.zeros_like(alone), (pairs[:, ::2] - pairs[:, 1::2]) * _SQRT_HALF], dim=1)
    x = torch.cat([low, high], dim=-1)
    x = torch.cat([(x[:, :, ::2] + x[:, :, 1::2]) * _SQRT_HALF, (x[:, :, ::2] - x[:, :, 1::2]) * _SQRT_HALF], dim=-1)
    even, odd = x[:, :, :, ::2], x[:, :, :, 1::2]
    return torch.cat([(even + odd) * _SQRT_HALF, (even - odd) * _SQRT_HALF], dim=-1)


def haar_unfold(x: Float[Tensor, "b t h w c"], first: bool = True) -> Float[Tensor, "b d u i j"]:
    """The inverse of `haar_fold`; the temporal high bands of the `first` step are ignored."""
    for axis in (3, 2):
        low, high = x.chunk(2, dim=-1)
        x = torch.stack([(low + high) * _SQRT_HALF, (low - high) * _SQRT_HALF], dim=axis + 1).flatten(axis, axis + 1)
    low, high = x.chunk(2, dim=-1)
    alone = 1 if first else 0
    pairs = torch.stack([low[:, alone:] + high[:, alone:], low[:, alone:] - high[:, alone:]], dim=2).flatten(1, 2)
    x = torch.cat([low[:, :alone], pairs], dim=1) * _SQRT_HALF
    return rearrange(x, "b t h w c -> b c t h w")
