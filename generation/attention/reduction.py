"""Fewer tokens: redundant queries and keys are merged before attention, and outputs handed back after it.

Training-free, at different rates for queries and for keys (AsymRnR, arXiv 2412.11706). Merging is a bipartite matching
of features as in ToMe (arXiv 2210.09461).

Shapes: b batch, h heads, n tokens, e extra tokens behind them, d head width, a anchors, s others, r kept tokens.
"""

from dataclasses import dataclass, field
from math import prod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize, pad

from kinema.errors import KinemaError
from kinema.generation.attention.backends.base import check_extra_mask, dense
from kinema.generation.attention.grid import Grid, check_number, check_triple
from kinema.machine import as_given


@dataclass(frozen=True, eq=False)
class Matching:
    """Which tokens are merged into which.

    Attributes:
        kept: tokens that stay, anchors first.
        target: for each token, which of the kept ones stands for it.
    """

    kept: Int[Tensor, "b r"]
    target: Int[Tensor, "b n"]

    def merge(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h r d"]:
        """Means of what each kept token stands for."""
        index = self.target[:, None, :, None].expand_as(x)
        out = x.new_zeros(*x.shape[:2], self.kept.shape[1], x.shape[3], dtype=torch.float32)
        # Sums in float32: bfloat16 cannot count beyond 256.
        return out.scatter_reduce(2, index, x.float(), "mean", include_self=False).to(x.dtype)

    def restore(self, x: Float[Tensor, "b h r d"]) -> Float[Tensor, "b h n d"]:
        """Each token gets what the kept one that stands for it has."""
        return x.gather(2, self.target[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def sizes(self) -> Float[Tensor, "b r"]:
        """How many tokens each kept one stands for."""
        ones = torch.ones_like(self.target, dtype=torch.float32)
        return torch.zeros_like(self.kept, dtype=torch.float32).scatter_add_(1, self.target, ones)


def match(features: Float[Tensor, "b n d"], grid: Grid, rate: float, stride: tuple[int, int, int]) -> Matching:
    """Merges the share `rate` of the tokens, those most like an anchor, into it.

    Anchors are the tokens at every `stride`-th place along t, h and w; each other token's anchor is the one of the
    highest cosine.

    Args:
        features: what tokens are compared by.
        grid: the grid.
        rate: share of all tokens that goes.
        stride: places between anchors.

    Raises:
        KinemaError: more should go than are no anchors.
    """
    is_anchor = _anchors(grid, stride).to(features.device)
    anchors, others = is_anchor.nonzero()[:, 0], (~is_anchor).nonzero()[:, 0]
    number = int(rate * grid.num_tokens)
    if number > len(others):
        raise KinemaError(
            f"`rate` (={rate}) merges {number} tokens of the grid {grid}, and must leave the {len(anchors)} that"
            f" `stride` (={tuple(stride)}) keeps"
        )
    with as_given(features.device):
        unit = normalize(features.float(), dim=-1)
        likeness, nearest = (unit[:, others] @ unit[:, anchors].mT).max(-1)
    by_likeness = likeness.argsort(dim=-1, descending=True, stable=True)
    merged, staying = by_likeness[:, :number], by_likeness[:, number:].sort(-1).values
    batch = len(features)
    kept = torch.cat((anchors.expand(batch, -1), others[staying]), dim=1)
    target = torch.empty(batch, grid.num_tokens, dtype=torch.long, device=features.device)
    target.scatter_(1, kept, torch.arange(kept.shape[1], device=features.device).expand(batch, -1))
    target.scatter_(1, others[merged], nearest.gather(1, merged))
    return Matching(kept, target)


def _anchors(grid: Grid, stride: tuple[int, int, int]) -> Bool[Tensor, " n"]:
    positions = grid.positions(torch.arange(grid.num_tokens))
    at_stride = [place % min(step, size) == 0 for place, step, size in zip(positions, stride, grid.sizes, strict=True)]
    return at_stride[0] & at_stride[1] & at_stride[2]


@dataclass
class TokenReduction:
    """Attention with fewer queries, and fewer keys and values.

    Args:
        query_rate: share of the queries that is merged away.
        key_rate: share of the keys and values.
        stride: places between the tokens that others may be merged into.
        keep_for: denoising steps for which a matching is used again before it is made anew.
        proportional: keys that stand for several count as several (ToMe, section 3.2), which makes merging keys that
            are the same exact.

    Raises:
        KinemaError: a rate lies outside [0, 1) or would merge tokens that `stride` keeps, or another number is below 1.
    """

    query_rate: float = 0.3
    key_rate: float = 0.5
    stride: tuple[int, ...] = (2, 2, 2)
    keep_for: int = 5
    proportional: bool = True
    _cache: dict[tuple[str, int], tuple[int, Matching]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        others = 1 - 1 / prod(check_triple("stride", self.stride))
        for name in ("query_rate", "key_rate"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise KinemaError(f"`{name}` (={rate}) must lie in [0, 1)")
            if rate > others:
                raise KinemaError(
                    f"`{name}` (={rate}) must be at most {others:.3f}: `stride` (={self.stride}) keeps the other tokens"
                )
        check_number("keep_for", self.keep_for, 1)

    def reset(self) -> None:
        """Forgets all matchings, before another clip."""
        self._cache.clear()

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        grid: Grid,
        *,
        num_extra_tokens: int = 0,
        layer: int = 0,
        step: int | None = None,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """Attention of all tokens to all, by fewer of them; extra tokens, behind, are all kept.

        Args:
            query: in raster order.
            key: likewise.
            value: likewise.
            grid: the grid.
            num_extra_tokens: tokens behind those of the grid.
            layer: which block asks: each has matchings of its own.
            step: the denoising step; None: matchings are made anew.
            extra_mask: which extra tokens exist as keys; None: all.

        Raises:
            KinemaError: tokens do not fit the grid.
        """
        n = grid.num_tokens
        if query.shape[2] != n + num_extra_tokens:
            raise KinemaError(
                f"`query` (of {query.shape[2]} tokens) must have {n} of the grid {grid} and {num_extra_tokens}"
            )
        if extra_mask is not None:
            check_extra_mask(extra_mask, len(query), num_extra_tokens)
        queries = self._matching("query", query[:, :, :n], grid, self.query_rate, layer, step)
        keys = self._matching("key", key[:, :, :n], grid, self.key_rate, layer, step)
        few_query, few_key, few_value = (
            torch.cat((matching.merge(x[:, :, :n]), x[:, :, n:]), dim=2)
            for matching, x in ((queries, query), (keys, key), (keys, value))
        )
        bias = self._bias(keys, num_extra_tokens, extra_mask)
        out = dense(few_query, few_key, few_value, None if bias is None else bias.to(query.dtype))
        few = queries.kept.shape[1]
        return torch.cat((queries.restore(out[:, :, :few]), out[:, :, few:]), dim=2)

    def _bias(
        self, keys: Matching, num_extra_tokens: int, extra_mask: Bool[Tensor, "b e"] | None
    ) -> Float[Tensor, "b 1 1 k"] | None:
        """What is added to scores: the log of how many keys each stands for, and -inf for those that do not exist."""
        if not (self.proportional and self.key_rate) and extra_mask is None:
            return None
        sizes = keys.sizes() if self.proportional else torch.ones_like(keys.kept, dtype=torch.float32)
        sizes = pad(sizes, (0, num_extra_tokens), value=1.0)
        if extra_mask is not None:
            sizes[:, keys.kept.shape[1] :] *= extra_mask
        return sizes.log()[:, None, None, :]

    @torch.no_grad()
    def _matching(
        self, role: str, x: Float[Tensor, "b h n d"], grid: Grid, rate: float, layer: int, step: int | None
    ) -> Matching:
        """A matching of all heads together, out of the cache while it is fresh."""
        made, matching = self._cache.get((role, layer), (-1, None))
        fresh = step is not None and matching is not None and made <= step < made + self.keep_for
        if not fresh or matching is None or matching.target.shape != (len(x), grid.num_tokens):
            stride = check_triple("stride", self.stride)
            matching = match(x.transpose(1, 2).flatten(2), grid, rate, stride)
            if step is not None:
                self._cache[role, layer] = step, matching
        return matching
