"""Encoder and decoder of VidTok (Tang et al., arXiv 2412.13061), causal, version 1.0.

Parameters have the names of VidTok's checkpoints. The code is kinema's: inside, a clip is channels-last and contiguous,
``b t h w c``, so that norms read consecutive memory, and every convolution runs as a 2D convolution over a view.

Time: a clip's first frame is put in front of it ct - 1 times more, so that it fills a latent step of its own; every
later step is ct frames. All convolutions over time see zeros before that. Decoding drops ct - 1 frames.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.tokenizers.streaming import StreamCache, is_first, with_past

CONTEXT = 8
"""Latent cells that tiles overlap by where a user asks for them: the attention in the middle sees the whole frame."""

Clip = Float[Tensor, "b t h w c"]


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every position."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Clip) -> Clip:
        return self.norm(x)


class SpatialConv(nn.Conv2d):
    """A 2D convolution on every time step by itself."""

    def forward(self, input: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t i j d"]:
        y = super().forward(rearrange(input, "b t h w c -> (b t) c h w"))
        return rearrange(y, "(b t) d i j -> b t i j d", b=input.shape[0])


class TemporalConv(nn.Module):
    """A convolution over the present and the two past time steps."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3)

    def forward(self, x: Clip, cache: StreamCache) -> Clip:
        folded = rearrange(with_past(x, self, 2, cache), "b t h w c -> b c t (h w)")
        y = F.conv2d(folded, self.conv.weight.unsqueeze(-1), self.conv.bias)
        return rearrange(y, "b c t (h w) -> b t h w c", h=x.shape[2])


class VolumeConv(nn.Module):
    """A 3×3×3 convolution, causal in time; with `stride` 2 in time it sees one past step, else two."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3)
        self.stride = stride

    def forward(self, x: Clip, cache: StreamCache) -> Float[Tensor, "b u h w d"]:
        return self.over(with_past(x, self, 3 - self.stride, cache))

    def over(self, x: Clip) -> Float[Tensor, "b u h w d"]:
        """The convolution of a clip that its past stands in front of."""
        steps = (x.shape[1] - 3) // self.stride + 1
        taps = [x[:, k : k + (steps - 1) * self.stride + 1 : self.stride] for k in range(3)]
        folded = rearrange(torch.cat(taps, dim=-1), "b t h w c -> (b t) c h w")
        weight = rearrange(self.conv.weight, "d c k i j -> d (k c) i j")
        y = F.conv2d(folded, weight, self.conv.bias, padding=1)
        return rearrange(y, "(b t) d h w -> b t h w d", b=x.shape[0])


class PointwiseConv(nn.Module):
    """A 1×1×1 convolution: a linear map of the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Clip) -> Clip:
        return F.linear(x, self.conv.weight.flatten(1), self.conv.bias)


class SpatialBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))) on every time step; a 1×1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = ChannelNorm(in_channels)
        self.conv1 = SpatialConv(in_channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels)
        self.conv2 = SpatialConv(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = SpatialConv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Clip) -> Float[Tensor, "b t h w d"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class CausalBlock(nn.Module):
    """The same with convolutions that see the past: over time alone, or over the volume."""

    def __init__(self, channels: int, *, volume: bool):
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = VolumeConv(channels, channels) if volume else TemporalConv(channels)
        self.conv2 = VolumeConv(channels, channels) if volume else TemporalConv(channels)

    def forward(self, x: Clip, cache: StreamCache) -> Clip:
        h = self.conv1(F.silu(self.norm1(x)), cache)
        return x + self.conv2(F.silu(self.norm2(h)), cache)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.q, self.k, self.v, self.proj_out = (PointwiseConv(channels) for _ in range(4))

    def forward(self, x: Clip) -> Clip:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b t h w c -> b t (h w) c") for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attended, "b t (h w) c -> b t h w c", h=x.shape[2]))


class Middle(nn.Module):
    """Volume, attention, volume."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = CausalBlock(channels, volume=True)
        self.attn_1 = FrameAttention(channels)
        self.block_2 = CausalBlock(channels, volume=True)

    def forward(self, x: Clip, cache: StreamCache) -> Clip:
        return self.block_2(self.attn_1(self.block_1(x, cache)), cache)


class SpatialDown(nn.Module):
    """Halves height and width; zeros stand beyond the right and bottom edge."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpatialConv(channels, channels, 3, stride=2)

    def forward(self, x: Clip) -> Float[Tensor, "b t i j c"]:
        return self.conv(F.pad(x, (0, 0, 0, 1, 0, 1)))


class SpatialUp(nn.Module):
    """Doubles height and width: each position four times, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpatialConv(channels, channels, 3, padding=1)

    def forward(self, x: Clip) -> Float[Tensor, "b t i j c"]:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class TemporalDown(nn.Module):
    """Halves time: σ(mix) · mean of three steps + (1 - σ(mix)) · convolution, both over one past step and two."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = VolumeConv(channels, channels, stride=2)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Clip, cache: StreamCache) -> Float[Tensor, "b u h w c"]:
        joined = with_past(x, self, 1, cache)
        mean = (joined[:, :-2:2] + joined[:, 1:-1:2] + joined[:, 2::2]) / 3
        share = torch.sigmoid(self.mix_factor)
        return share * mean + (1 - share) * self.conv.over(joined)


class TemporalUp(nn.Module):
    """Doubles time: σ(mix) · each step twice + (1 - σ(mix)) · a convolution of that."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = VolumeConv(channels, channels)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Clip, cache: StreamCache) -> Float[Tensor, "b u h w c"]:
        doubled = x.repeat_interleave(2, dim=1)
        share = torch.sigmoid(self.mix_factor)
        return share * doubled + (1 - share) * self.conv(doubled, cache)


class Level(nn.Module):
    """Blocks of one resolution, and what changes the resolution, of space or of time."""

    def __init__(self, blocks: Sequence[nn.Module]):
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None


def _run(spatial: Any, temporal: Any, x: Clip, cache: StreamCache) -> Tensor:
    """The blocks of a `Level` of space and of one of time in turns, then their resampling: space first."""
    for block, causal in zip(spatial.block, temporal.block, strict=True):
        x = causal(block(x), cache)
    for resample in (spatial.downsample, spatial.upsample):
        x = x if resample is None else resample(x)
    for resample in (temporal.downsample, temporal.upsample):
        x = x if resample is None else resample(x, cache)
    return x


def _levels(widths: Sequence[int], outs: Sequence[int], count: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    spatial = [
        Level([SpatialBlock(w if i == 0 else o, o) for i in range(count)]) for w, o in zip(widths, outs, strict=True)
    ]
    temporal = [Level([CausalBlock(o, volume=False) for _ in range(count)]) for o in outs]
    return nn.ModuleList(spatial), nn.ModuleList(temporal)


class Encoder(nn.Module):
    """Video ``(b, 3, t, h, w)`` to the bottleneck's input ``(b, c, t', h', w')``, whole latent steps.

    Args:
        widths: channels of each level, from the pixels down.
        blocks: spatial and temporal blocks of a level.
        spatial, temporal: levels that end with a halving of space, and of time.
    """

    def __init__(
        self, out_channels: int, widths: Sequence[int], blocks: int, spatial: Sequence[int], temporal: Sequence[int]
    ):
        super().__init__()
        self.context = CONTEXT
        self.lead = 2 ** len(temporal) - 1
        self.conv_in = VolumeConv(3, widths[0])
        self.down, self.down_temporal = _levels([widths[0], *widths[:-1]], widths, blocks)
        for i in spatial:
            self.down[i].downsample = SpatialDown(widths[i])
        for i in temporal:
            self.down_temporal[i].downsample = TemporalDown(widths[i])
        self.mid = Middle(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = VolumeConv(widths[-1], out_channels)

    def forward(
        self, video: Float[Tensor, "b 3 t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b c u i j"]:
        x = rearrange(video, "b c t h w -> b t h w c")
        if is_first(cache):
            x = torch.cat([x[:, :1].expand(-1, self.lead, -1, -1, -1), x], dim=1)
        cache = StreamCache() if cache is None else cache
        x = self.conv_in(x, cache)
        for spatial, temporal in zip(self.down, self.down_temporal, strict=True):
            x = _run(spatial, temporal, x, cache)
        x = self.mid(x, cache)
        x = self.conv_out(F.silu(self.norm_out(x)), cache)
        return rearrange(x.float(), "b t h w c -> b c t h w")


class Decoder(nn.Module):
    """Latents ``(b, z, t', h', w')`` to video ``(b, 3, t, h, w)``, the encoder's mirror with one more block a level."""

    def __init__(
        self, latent_channels: int, widths: Sequence[int], blocks: int, spatial: Sequence[int], temporal: Sequence[int]
    ):
        super().__init__()
        self.context = CONTEXT
        self.lead = 2 ** len(temporal) - 1
        self.conv_in = VolumeConv(latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up, self.up_temporal = _levels([*widths[1:], widths[-1]], widths, blocks + 1)
        for i in spatial:
            self.up[i].upsample = SpatialUp(widths[i])
        for i in temporal:
            self.up_temporal[i].upsample = TemporalUp(widths[i])
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = VolumeConv(widths[0], 3)

    def forward(
        self, latents: Float[Tensor, "b z t h w"], cache: StreamCache | None = None
    ) -> Float[Tensor, "b 3 u i j"]:
        lead = self.lead if is_first(cache) else 0
        cache = StreamCache() if cache is None else cache
        x = self.mid(self.conv_in(rearrange(latents, "b z t h w -> b t h w z"), cache), cache)
        for spatial, temporal in zip(reversed(self.up), reversed(self.up_temporal), strict=True):
            x = _run(spatial, temporal, x, cache)
        x = self.conv_out(F.silu(self.norm_out(x)), cache)
        return rearrange(x[:, lead:].float(), "b t h w c -> b c t h w")
