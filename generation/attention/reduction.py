"""Token reduction: similar queries and keys are merged before attention, and outputs are expanded after it.

Training-free, with different rates for queries and keys (AsymRnR, arXiv 2412.11706). Merging is a bipartite matching
of features as in ToMe (arXiv 2210.09461).

Shapes: b batch, h heads, n video tokens followed by e extra tokens, d head width, r kept tokens.
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
from kinema.machine import autocast_disabled


@dataclass(frozen=True, eq=False)
class Matching:
    """The assignment of tokens to kept tokens.

    Attributes:
        kept: tokens that are kept, anchors first.
        target: for each token, the index in `kept` of the token that it is merged into.
    """

    kept: Int[Tensor, "b r"]
    target: Int[Tensor, "b n"]

    def merge(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h r d"]:
        """Average the tokens that are merged into each kept token."""
        index = self.target[:, None, :, None].expand_as(x)
        out = x.new_zeros(*x.shape[:2], self.kept.shape[1], x.shape[3], dtype=torch.float32)
        # Accumulate in float32: bfloat16 cannot count beyond 256.
        return out.scatter_reduce(2, index, x.float(), "mean", include_self=False).to(x.dtype)

    def restore(self, x: Float[Tensor, "b h r d"]) -> Float[Tensor, "b h n d"]:
        """Copy the value of each kept token to all tokens merged into it."""
        return x.gather(2, self.target[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def sizes(self) -> Float[Tensor, "b r"]:
        """Count the tokens merged into each kept token."""
        ones = torch.ones_like(self.target, dtype=torch.float32)
        return torch.zeros_like(self.kept, dtype=torch.float32).scatter_add_(1, self.target, ones)


def match(features: Float[Tensor, "b n d"], grid: Grid, rate: float, stride: tuple[int, int, int]) -> Matching:
    """Merge the share `rate` of the tokens into their most similar anchors, most similar tokens first.

    Anchors are the tokens at every `stride`-th position along t, h and w. Similarity is cosine similarity.

    Args:
        features: features to compare tokens by.
        grid: the grid of video tokens.
        rate: share of all tokens to merge away.
        stride: distance between anchors along t, h and w.

    Raises:
        KinemaError: `rate` is larger than the share of tokens that are not anchors.
    """
    is_anchor = _anchors(grid, stride).to(features.device)
    anchors, others = is_anchor.nonzero()[:, 0], (~is_anchor).nonzero()[:, 0]
    number = int(rate * grid.num_tokens)
    if number > len(others):
        raise KinemaError(
            f"`rate` (={rate}) merges {number} tokens of the grid {grid}, and must leave the {len(anchors)} anchors of"
            f" `stride` (={tuple(stride)})"
        )
    with autocast_disabled(features.device):
        unit = normalize(features.float(), dim=-1)
        similarity, nearest = (unit[:, others] @ unit[:, anchors].mT).max(-1)
    by_similarity = similarity.argsort(dim=-1, descending=True, stable=True)
    merged, unmerged = by_similarity[:, :number], by_similarity[:, number:].sort(-1).values
    batch = len(features)
    kept = torch.cat((anchors.expand(batch, -1), others[unmerged]), dim=1)
    target = torch.empty(batch, grid.num_tokens, dtype=torch.long, device=features.device)
    target.scatter_(1, kept, torch.arange(kept.shape[1], device=features.device).expand(batch, -1))
    target.scatter_(1, others[merged], nearest.gather(1, merged))
    return Matching(kept, target)


def _anchors(grid: Grid, stride: tuple[int, int, int]) -> Bool[Tensor, " n"]:
    positions = grid.positions(torch.arange(grid.num_tokens))
    at_stride = [
        position % min(step, size) == 0 for position, step, size in zip(positions, stride, grid.sizes, strict=True)
    ]
    return at_stride[0] & at_stride[1] & at_stride[2]


@dataclass
class TokenReduction:
    """Full attention between fewer queries and fewer keys and values.

    Args:
        query_rate: share of the queries to merge away.
        key_rate: share of the keys and values to merge away.
        stride: distance (t, h, w) between anchors, the tokens that others are merged into.
        keep_for: number of denoising steps to reuse a matching for.
        proportional: weight each merged key by the number of its tokens (ToMe, section 3.2), which makes merging equal
            keys exact.

    Raises:
        KinemaError: a rate is outside [0, 1) or above the share of tokens that are not anchors, or another number is
            below 1.
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
                    f"`{name}` (={rate}) must be at most {others:.3f}: `stride` (={self.stride}) keeps the rest"
                )
        check_number("keep_for", self.keep_for, 1)

    def reset(self) -> None:
        """Discard cached matchings; call this before each new clip."""
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
        """Compute full attention between merged tokens; extra tokens are never merged.

        Args:
            query: video tokens in raster order, then extra tokens.
            key: same shape as `query`.
            value: same shape as `query`.
            grid: the grid of video tokens.
            num_extra_tokens: number of extra tokens.
            layer: index of the block; matchings are cached by block.
            step: the denoising step; None: do not use cached matchings.
            extra_mask: which extra tokens may be attended to; None: all.

        Raises:
            KinemaError: the number of tokens does not match `grid` and `num_extra_tokens`.
        """
        n = grid.num_tokens
        if query.shape[2] != n + num_extra_tokens:
            raise KinemaError(
                f"`query` (of {query.shape[2]} tokens) must have {n} of the grid {grid}"
                f" and {num_extra_tokens} extra ones"
            )
        if extra_mask is not None:
            check_extra_mask(extra_mask, len(query), num_extra_tokens)
        queries = self._matching("query", query[:, :, :n], grid, self.query_rate, layer, step)
        keys = self._matching("key", key[:, :, :n], grid, self.key_rate, layer, step)
        merged_query, merged_key, merged_value = (
            torch.cat((matching.merge(x[:, :, :n]), x[:, :, n:]), dim=2)
            for matching, x in ((queries, query), (keys, key), (keys, value))
        )
        bias = self._bias(keys, num_extra_tokens, extra_mask)
        out = dense(merged_query, merged_key, merged_value, None if bias is None else bias.to(query.dtype))
        num_kept = queries.kept.shape[1]
        return torch.cat((queries.restore(out[:, :, :num_kept]), out[:, :, num_kept:]), dim=2)

    def _bias(
        self, keys: Matching, num_extra_tokens: int, extra_mask: Bool[Tensor, "b e"] | None
    ) -> Float[Tensor, "b 1 1 k"] | None:
        """Return the bias of the scores: the log of the merged keys' sizes, and -inf for masked extra tokens."""
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
        """Return one matching for all heads, from the cache if it is recent enough."""
        made, matching = self._cache.get((role, layer), (-1, None))
        is_recent = step is not None and matching is not None and made <= step < made + self.keep_for
        if not is_recent or matching is None or matching.target.shape != (len(x), grid.num_tokens):
            stride = check_triple("stride", self.stride)
            matching = match(x.transpose(1, 2).flatten(2), grid, rate, stride)
            if step is not None:
                self._cache[role, layer] = step, matching
        return matching
