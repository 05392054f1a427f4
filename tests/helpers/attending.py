"""Patterns and grids to draw, for tests of properties."""

from collections.abc import Callable
from functools import partial

from hypothesis import strategies as st

from kinema.generation.attention import (
    AlternatingGrid,
    Band,
    BlockCausal,
    Full,
    Grid,
    Radial,
    ShiftedWindow,
    SlidingTile,
    SlidingTileTopK,
    Spatial,
    SpatialTemporalHeads,
    Temporal,
    TileTopK,
    Window,
)

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
