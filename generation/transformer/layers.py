"""Layers of the video transformer.

Shapes: b batch, n video tokens in the order (t h w), l text tokens, d width, k heads, e head width,
g groups of consecutive video tokens that share a timestep (g divides n).
"""

import math

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.generation.transformer.arrangement import DENSE, BlockAttention
from kinema.generation.transformer.rope import apply_rotary

RotaryTable = tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]

# Up to this many scores per head, explicit matmuls on a CPU are faster than the fused kernel, whose bfloat16 backward
# pass is 3 to 5 times slower (measured: 80 x 80 scores, 4 heads of 64, batch 32: 5 ms against 21 ms).
_EXPLICIT_SCORES_LIMIT = 512 * 512


def attend(
    query: Float[Tensor, "b n k e"],
    key: Float[Tensor, "b m k e"],
    value: Float[Tensor, "b m k e"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b n k e"]:
    """Softmax attention through diffusers' dispatcher, or by explicit matmuls for short sequences on a CPU.

    Args:
        query: queries.
        key: keys.
        value: values.
        mask: keys to attend to, at least one per row; None: all.
    """
    if query.device.type == "cpu" and query.shape[1] * key.shape[1] <= _EXPLICIT_SCORES_LIMIT:
        return _attend_explicitly(query, key, value, mask)
    attn_mask = None if mask is None else mask[:, None, None, :]
    return dispatch_attention_fn(query, key, value, attn_mask=attn_mask)


def _attend_explicitly(
    query: Float[Tensor, "b n k e"],
    key: Float[Tensor, "b m k e"],
    value: Float[Tensor, "b m k e"],
    mask: Bool[Tensor, "b m"] | None,
) -> Float[Tensor, "b n k e"]:
    scores = torch.matmul(query.transpose(1, 2) * query.shape[-1] ** -0.5, key.permute(0, 2, 3, 1))
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -math.inf)
    # Under autocast, softmax may return float32, which would slow down the second product.
    weights = scores.softmax(dim=-1).to(value.dtype)
    return torch.matmul(weights, value.transpose(1, 2)).transpose(1, 2)


class HeadNorm(nn.Module):
    """RMS norm of each head of several projections at once (QK-norm), with a learned gain per projection.

    Computed and returned in float32, because dot products of queries and keys are sensitive to rounding.
    """

    def __init__(self, num_projections: int, head_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_projections, 1, head_dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "b n s k e"]) -> Float[Tensor, "b n s k e"]:
        x = x.float()
        # On CPUs, vector_norm and rsqrt are several times faster than F.rms_norm, which is composite there.
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        return x * torch.rsqrt(mean_square + self.eps) * self.weight


class SelfAttention(nn.Module):
    """Multi-head self-attention with QK-norm and optional rotary embedding; full attention by default.

    With `coarse_gate`, attention between tile means is added, multiplied by a gate computed from each token (VSA,
    arXiv 2505.13389).
    """

    def __init__(self, dim: int, num_heads: int, coarse_gate: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm = HeadNorm(2, dim // num_heads)
        self.out = nn.Linear(dim, dim, bias=False)
        self.coarse_gate = nn.Linear(dim, dim) if coarse_gate else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: RotaryTable | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        attention: BlockAttention = DENSE,
    ) -> Float[Tensor, "b n d"]:
        qkv = rearrange(self.qkv(x), "b n (s k e) -> b n s k e", s=3, k=self.num_heads)
        query_key = self.norm(qkv[:, :, :2])
        if rotary is not None:
            query_key = apply_rotary(query_key, rotary)
        query, key = query_key.to(qkv.dtype).unbind(2)
        value = qkv[:, :, 2]
        tokens, shard = attention.tokens, attention.shard
        if shard is not None:
            query, key, value = shard.to_heads(query, key, value)
        out = attend(query, key, value, mask) if tokens is None else tokens(query, key, value)
        out = out if shard is None else shard.to_tokens(out)
        if self.coarse_gate is not None and attention.coarse is not None:
            gate = self.coarse_gate(x).unflatten(2, (self.num_heads, -1))
            coarse = attention.coarse(query, key, value)
            out = out + gate * (coarse if shard is None else shard.to_tokens(coarse))
        return self.out(out.flatten(2))


class CrossAttention(nn.Module):
    """Multi-head cross-attention from video tokens to text tokens, with QK-norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.norm_query = HeadNorm(1, dim // num_heads)
        self.norm_key = HeadNorm(1, dim // num_heads)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b n d"], text: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]
    ) -> Float[Tensor, "b n d"]:
        query = rearrange(self.query(x), "b n (s k e) -> b n s k e", s=1, k=self.num_heads)
        key_value = rearrange(self.key_value(text), "b l (s k e) -> b l s k e", s=2, k=self.num_heads)
        key = self.norm_key(key_value[:, :, :1]).to(key_value.dtype)
        query = self.norm_query(query).to(key_value.dtype)
        return self.out(attend(query[:, :, 0], key[:, :, 0], key_value[:, :, 1], mask).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (arXiv:2002.05202, eq. 6); the hidden width is rounded up to a multiple of 64."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        # Two thirds of the ratio, for the same number of weights as an ungated layer.
        hidden = 64 * math.ceil(dim * mlp_ratio * 2 / 3 / 64)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


def timestep_groups(timestep: Float[Tensor, "b ..."], grid: tuple[int, int, int]) -> Float[Tensor, "b g"]:
    """Return the timestep of each group of tokens, for which modulation is computed once.

    Groups follow from the shape, not from the values, to avoid synchronising with the device.

    Args:
        timestep: timestep of each clip, latent step, or token in the order (t h w).
        grid: number of tokens along t, h, w.

    Raises:
        KinemaError: `timestep` has another shape.
    """
    num_tokens = grid[0] * grid[1] * grid[2]
    if timestep.ndim == 1:
        return timestep[:, None]
    if timestep.ndim != 2 or timestep.shape[1] not in (1, grid[0], num_tokens):
        raise KinemaError(
            f"`timestep` (of shape {tuple(timestep.shape)}) must have one number per clip, per latent step ({grid[0]}),"
            f" or per token ({num_tokens})"
        )
    return timestep


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of the timestep, in [0, 1000], followed by two linear layers."""

    def __init__(self, dim: int, num_frequencies: int = 128, max_period: float = 10000.0) -> None:
        super().__init__()
        self.num_frequencies, self.max_period = num_frequencies, max_period
        self.linear_in = nn.Linear(2 * num_frequencies, dim)
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, timestep: Float[Tensor, "b g"]) -> Float[Tensor, "b g d"]:
        exponents = torch.arange(self.num_frequencies, device=timestep.device) / self.num_frequencies
        angles = timestep.float()[..., None] * self.max_period**-exponents
        features = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.linear_out(F.silu(self.linear_in(features.to(self.linear_in.weight.dtype))))


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b g d"], scale: Float[Tensor, "b g d"]
) -> Float[Tensor, "b n d"]:
    """Compute x · (1 + scale) + shift with one shift and scale per group of tokens."""
    groups = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], groups, 1 + scale[:, :, None]).flatten(1, 2)


def add_gated(
    x: Float[Tensor, "b n d"], gate: Float[Tensor, "b g d"], branch: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """Compute x + gate · branch with one gate per group of tokens."""
    groups, branches = (tokens.unflatten(1, (gate.shape[1], -1)) for tokens in (x, branch))
    return torch.addcmul(groups, gate[:, :, None], branches).flatten(1, 2)


class VideoBlock(nn.Module):
    """Self-attention over the clip, cross-attention to the text and a feed-forward layer, each with a residual.

    The modulation is shared by all blocks; each block adds a learned table (PixArt-alpha, arXiv:2310.00426, 2.3).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, coarse_gate: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, dim))
        self.norm_self = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.self_attention = SelfAttention(dim, num_heads, coarse_gate)
        self.norm_cross = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attention = CrossAttention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = SwiGLU(dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        modulation: Float[Tensor, "b g 6 d"],
        text: Float[Tensor, "b l d"],
        text_mask: Bool[Tensor, "b l"],
        rotary: RotaryTable,
        attention: BlockAttention = DENSE,
    ) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.table).unbind(2)
        attended = self.self_attention(modulate(self.norm_self(x), shift1, scale1), rotary, attention=attention)
        x = add_gated(x, gate1, attended)
        x = x + self.cross_attention(self.norm_cross(x), text, text_mask)
        return add_gated(x, gate2, self.mlp(modulate(self.norm_mlp(x), shift2, scale2)))


class TextBlock(nn.Module):
    """A pre-norm transformer layer over the text tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = SelfAttention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGLU(dim, mlp_ratio)

    def forward(self, x: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        x = x + self.self_attention(self.norm_self(x), mask=mask)
        return x + self.mlp(self.norm_mlp(x))


class TextRefiner(nn.Module):
    """The trained part of the text path: word ids, or features of a frozen encoder, to text tokens and their mean.

    Args:
        dim: width of the transformer.
        num_heads: number of heads per layer.
        num_layers: number of layers.
        mlp_ratio: width of the feed-forward layers relative to `dim`.
        vocab_size: number of words, for text as word ids.
        feature_dim: width of the features, for text from a frozen encoder.
        max_length: maximum number of text tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        mlp_ratio: float,
        vocab_size: int | None,
        feature_dim: int | None,
        max_length: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim) if vocab_size is not None else None
        self.project = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, dim)) if feature_dim else None
        self.places = nn.Parameter(torch.zeros(max_length, dim))
        self.blocks = nn.ModuleList(TextBlock(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(
        self, text: Int[Tensor, "b l"] | Float[Tensor, "b l f"], mask: Bool[Tensor, "b l"]
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        x = self.embed(text) if self.embed is not None else self.project(text.to(self.places.dtype))  # pyright: ignore
        x = x + self.places[: x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        weights = mask.to(x.dtype)[:, :, None]
        return x, (x * weights).sum(1) / weights.sum(1)
