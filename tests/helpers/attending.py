"""Patterns and grids to draw, for tests of properties, and what attention must give for them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kinema.generation.attention import (
    AlternatingGrid,
    Band,
    BlockCausal,
    DynamicPattern,
    Full,
    Grid,
    Pattern,
    Radial,
    ShiftedWindow,
    SlidingTile,
    SlidingTileTopK,
    Spatial,
    SpatialTemporalHeads,
    StaticPattern,
    Temporal,
    TileTopK,
    Window,
)
from kinema.generation.attention.backends import BACKENDS

sizes = st.integers(1, 7)
grids = st.builds(Grid, sizes, sizes, sizes)
triples = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
odd = st.tuples(*[st.sampled_from([1, 3, 5])] * 3)
pairs = st.tuples(st.integers(1, 4), st.integers(1, 9))
widths = st.floats(0.01, 1.0)


def made(pattern: type, *args: st.SearchStrategy, **kwargs: st.SearchStrategy) -> st.SearchStrategy[Callable]:
    """How to make a pattern. Not the pattern: the checks of types draw random numbers, and strategies may not."""
    return st.builds(partial, st.just(pattern), *args, **kwargs)


@st.composite
def shifted_windows(draw: st.DrawFn) -> Callable:
    size = draw(triples)
    return partial(ShiftedWindow, size, draw(st.none() | st.tuples(*[st.integers(0, length - 1) for length in size])))


static = st.one_of(
    made(Full),
    made(Spatial),
    made(Temporal),
    made(Window, triples),
    shifted_windows(),
    made(AlternatingGrid, triples),
    made(SlidingTile, triples, odd),
    made(Radial, st.floats(0.05, 3.0), st.integers(1, 20), st.integers(1, 20)),
    made(Band, st.sampled_from(["spatial", "temporal"]), widths, pairs),
    made(BlockCausal, st.integers(1, 4), st.none() | st.integers(0, 3), st.integers(0, 2), triples),
)
dynamic = st.one_of(
    made(TileTopK, k=st.integers(1, 9), tile=triples),
    made(TileTopK, share=widths, tile=triples),
    made(SlidingTileTopK, st.integers(1, 5), st.floats(0.2, 1), triples, odd),  # 0 of two tiles is a tie
    made(SpatialTemporalHeads, widths, st.integers(1, 50), pairs),
)
patterns = st.one_of(static, dynamic)


def inputs(
    grid: Grid, extra: int = 0, batch: int = 2, heads: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """Queries, keys and values of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, grid.num_tokens + extra, 8)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def reference(tensors: Any, pattern: Pattern, grid: Grid, extra: int, extra_mask: Tensor | None = None) -> Tensor:
    """The softmax written out in float64, with the pattern's mask of tokens."""
    query, key, value = tensors
    n, heads = grid.num_tokens, query.shape[1]
    if isinstance(pattern, DynamicPattern):
        seen = pattern.mask(grid, query[:, :, :n], key[:, :, :n], value=value[:, :, :n])
    else:
        assert isinstance(pattern, StaticPattern)
        seen = torch.stack([pattern.mask(grid, head) for head in range(heads)])
    seen = torch.nn.functional.pad(seen, (0, extra, 0, extra), value=True).expand(len(query), heads, -1, -1).clone()
    if extra_mask is not None:
        seen[..., n:] &= extra_mask[:, None, None, :]
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.double()


def usable(pattern: Pattern, grid: Grid, tensors: Any, extra: int) -> list[str]:
    """Names of the backends that run a pattern without a compiler."""
    layout = pattern.plan(grid, tensors[0].shape[1], extra, tensors[0], tensors[1])
    names = [name for name in BACKENDS if name != "flex"]  # compiled: test_flex.py
    return [name for name in names if BACKENDS[name].missing(layout, tensors[0]) is None]


def extra_masks(extra: int) -> st.SearchStrategy[Tensor]:
    """Which extra tokens of two clips exist."""
    row = st.lists(st.booleans(), min_size=extra, max_size=extra)
    return st.tuples(row, row).map(torch.tensor)
