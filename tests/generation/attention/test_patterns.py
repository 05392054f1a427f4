"""Patterns: what tiles see is what tokens see, and what tokens see is what the papers say."""

import logging
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attending import dynamic, grids, odd, static, triples
from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, check_number, check_triple
from kinema.generation.attention.layout import BlockLayout
from kinema.generation.attention.patterns import (
    AlternatingGrid,
    Band,
    BlockCausal,
    Full,
    PerHead,
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


def tokens_seen(layout: BlockLayout, clip: int = 0, head: int = 0) -> Tensor:
    """The n × n table that a layout means, by loops over its lists."""
    order = layout.order
    tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
    n = order.grid.num_tokens
    seen = torch.zeros(n, n, dtype=torch.bool)
    b, h = (index if size > 1 else 0 for index, size in zip((clip, head), layout.indices.shape, strict=False))
    flat = torch.tensor(clip * layout.num_heads + head if layout.indices.shape[0] > 1 else head)
    for q in range(order.num_tiles):
        own = tokens[q][valid[q]]
        for place, k in enumerate(layout.indices[b, h, q, : layout.counts[b, h, q]].tolist()):
            keys = tokens[k][valid[k]]
            assert not seen[own[:, None], keys].any(), "a tile is listed twice"
            if place < layout.full_counts[b, h, q]:
                seen[own[:, None], keys] = True
            else:
                assert layout.mask is not None
                part = layout.mask(flat, own[:, None], keys[None, :])
                assert part.any(), "a tile that is not seen is listed"
                seen[own[:, None], keys] = part
    return seen


@settings(max_examples=200, deadline=None)
@given(grid=grids, make=static)
def test_tiles_see_what_tokens_see(grid: Grid, make: Callable):
    pattern = make()
    layout = pattern.plan(grid, 2, num_extra_tokens=3)
    mask = pattern.mask(grid)
    assert torch.equal(tokens_seen(layout), mask)
    assert layout.num_extra_tokens == 3
    assert mask.diagonal().all(), "every token sees itself"
    assert pattern.density(grid) == pytest.approx(mask.double().mean().item(), abs=1e-12)
    (density,) = pattern.densities(grid)
    assert (density.heads, density.density, density.is_exact) == ("all", pattern.density(grid), True)
    slots = layout.order.num_slots / grid.num_tokens
    assert density.tile_density == pytest.approx(layout.tile_density() * slots**2)
    assert density.tile_density >= density.density - 1e-12


@settings(max_examples=100, deadline=None)
@given(grid=grids, make=static)
def test_orders_are_permutations_in_tiles(grid: Grid, make: Callable):
    pattern = make()
    order = pattern.order(grid)
    assert order.tokens[order.valid].sort().values.tolist() == list(range(grid.num_tokens))
    assert torch.equal(order.tokens[order.slots], torch.arange(grid.num_tokens))
    assert order.is_ragged == (order.num_slots != grid.num_tokens)
    assert order.tiles_of(order.valid).any(1).all(), "a tile without tokens"
    x = torch.arange(2.0 * (grid.num_tokens + 2)).view(2, -1)
    arranged = order.arrange(x, dim=1)
    assert arranged.shape[1] == order.num_slots + 2
    assert torch.equal(order.restore(arranged, dim=1), x)
    assert pattern.order(grid) is order, "made once for a grid"
    # What fills a tile up repeats a token of that tile.
    own = order.tiles_of(order.slots[order.tokens] // order.tile_size)
    assert torch.equal(own, torch.arange(order.num_tiles)[:, None].expand_as(own))


@settings(max_examples=30, deadline=None)
@given(grid=grids, make=dynamic, seed=st.integers(0, 99))
def test_dynamic_patterns_are_their_references(grid: Grid, make: Callable, seed: int):
    pattern = make()
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 3, grid.num_tokens + 2, 8, generator=generator) for _ in range(3))
    layout = pattern.plan(grid, 3, 2, query, key, value=value)
    own = [x[:, :, : grid.num_tokens] for x in (query, key)]
    mask = pattern.mask(grid, *own, value=value[:, :, : grid.num_tokens])
    (density,) = pattern.densities(grid)
    seen, computed = (
        mask.double().mean((-1, -2)),
        layout.tile_density() * (layout.order.num_slots / grid.num_tokens) ** 2,
    )
    assert seen.max() <= density.density + 1e-12
    assert computed <= density.tile_density + 1e-12
    if density.is_exact:
        assert seen.mean().item() == pytest.approx(density.density)
        assert computed == pytest.approx(density.tile_density)
    assert mask.shape == (2, 3, grid.num_tokens, grid.num_tokens)
    for clip, head in product(range(2), range(3)):
        assert torch.equal(tokens_seen(layout, clip, head), mask[clip, head])


@settings(max_examples=30, deadline=None)
@given(
    grid=st.builds(Grid, st.integers(1, 40), st.integers(1, 12), st.integers(1, 12)),
    decay=st.floats(0.05, 3.0),
    width=st.integers(1, 40),
    share=st.floats(0.01, 1.0),
)
def test_arithmetic_counts_what_looking_counts(grid: Grid, decay: float, width: int, share: float):
    for pattern in (Radial(decay, width, 16), Band("spatial", share, (3, 16)), Band("temporal", share, (3, 16))):
        assert pattern.num_pairs(grid) == StaticPattern.num_pairs(pattern, grid), pattern


def test_density_of_a_long_clip_is_arithmetic():
    """720p, 81 frames: 5.7e9 pairs of tokens, of which nobody looks at one."""
    grid = Grid(21, 45, 80)
    assert Radial().density(grid) == pytest.approx(0.245376, abs=1e-6)
    # (1 - 0.85²) of the square without the sink: 1 / 21 of the keys, seen besides by those who are far away.
    assert Band().density(grid) == pytest.approx(1 - 0.85**2 + (0.85 - 1 / 42) / 21, abs=1e-4)


def test_tiles_by_score_have_the_density_of_their_number():
    (even,) = TileTopK(k=3, tile=(2, 2, 2)).densities(Grid(4, 4, 4))
    assert (even.density, even.tile_density, even.is_exact) == (3 / 8, 3 / 8, True)
    # Four frames in tiles of three: two of three steps and two of one, eight slots by tile; the larger ones are most.
    (ragged,) = TileTopK(k=2, tile=(3, 2, 2)).densities(Grid(4, 2, 4))
    assert (ragged.density, ragged.tile_density, ragged.is_exact) == (24 / 32, 4 * 2 * 12**2 / 32**2, False)
    (sliding,) = SlidingTileTopK(k=1, tile=(1, 2, 2), window=(1, 1, 1)).densities(Grid(4, 2, 2))
    assert (sliding.density, sliding.tile_density, sliding.is_exact) == (0.5, 0.5, False)
    (heads,) = SpatialTemporalHeads(width=1.0).densities(Grid(2, 2, 2))
    assert (heads.density, heads.is_exact) == (1.0, True)


def cell(grid: Grid, token: int) -> tuple[int, int, int]:
    return token // (grid.h * grid.w), token // grid.w % grid.h, token % grid.w


def by_loops(grid: Grid, sees) -> Tensor:
    cells = [cell(grid, token) for token in range(grid.num_tokens)]
    return torch.tensor([[sees(q, k) for k in cells] for q in cells])


@settings(max_examples=30, deadline=None)
@given(grid=grids, tile=triples, window=odd)
def test_sliding_tiles_as_the_paper_says(grid: Grid, tile: tuple[int, int, int], window: tuple[int, int, int]):
    numbers = [-(-n // min(length, n)) for n, length in zip(grid.sizes, tile, strict=True)]

    def sees(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
        for q, k, length, reach, n in zip(query, key, tile, window, numbers, strict=True):
            if reach < n:  # a longer window is all
                centre = min(max(q // length, reach // 2), n - 1 - reach // 2)
                if abs(centre - k // length) > reach // 2:
                    return False
        return True

    pattern = SlidingTile(tile, window)
    assert torch.equal(pattern.mask(grid), by_loops(grid, sees))
    counts = pattern.plan(grid, 1).counts
    wanted = torch.tensor([min(k, n) for k, n in zip(window, numbers, strict=True)]).prod()
    assert (counts == wanted).all(), "every tile sees as many"


@settings(max_examples=30, deadline=None)
@given(grid=grids, decay=st.floats(0.05, 3.0), width=st.integers(1, 20))
@example(grid=Grid(3, 1, 3), decay=2 - 2**-51, width=1)  # 2 in float32
def test_radial_as_its_code_says(grid: Grid, decay: float, width: int):
    frame = grid.h * grid.w

    def sees(query: tuple[int, ...], key: tuple[int, ...]) -> bool:
        distance = abs(query[0] - key[0])
        if key[0] == 0 or distance <= 1:
            return True
        length = 2 ** len(f"{frame:b}") / 2 ** len(f"{distance:b}")
        if length < width and distance % int(width / length) != 0:
            return False
        return abs((query[1] - key[1]) * grid.w + query[2] - key[2]) <= max(length * decay, width)

    assert torch.equal(Radial(decay, width, 8).mask(grid), by_loops(grid, sees))


@pytest.mark.parametrize(
    ("pattern", "sees"),
    [
        (Spatial(), lambda q, k: q[0] == k[0]),
        (Temporal(), lambda q, k: q[1:] == k[1:]),
        (Window((2, 3, 2)), lambda q, k: all(a // n == b // n for a, b, n in zip(q, k, (2, 3, 2), strict=True))),
        (
            ShiftedWindow((2, 4, 3)),
            lambda q, k: all(
                (a + n - s) // n == (b + n - s) // n for a, b, n, s in zip(q, k, (2, 4, 3), (1, 2, 1), strict=True)
            ),
        ),
        (
            AlternatingGrid((1, 2, 2)),
            lambda q, k: all(a // n == b // n for a, b, n in zip(q, k, (5, 3, 2), strict=True)),
        ),
        (BlockCausal(2), lambda q, k: k[0] // 2 <= q[0] // 2),
        (BlockCausal(2, window=0), lambda q, k: k[0] // 2 in (0, q[0] // 2) and k[0] // 2 <= q[0] // 2),
        (BlockCausal(1, window=1, sink=0), lambda q, k: q[0] - 1 <= k[0] <= q[0]),
    ],
)
def test_masks_as_defined(pattern: StaticPattern, sees):
    grid = Grid(5, 6, 4)
    assert torch.equal(pattern.mask(grid), by_loops(grid, sees))


def test_bands_are_bands_of_the_two_lists():
    grid = Grid(4, 3, 2)
    n, frame = grid.num_tokens, 6
    reach = int(0.2 * n)
    order = torch.arange(n)
    spatial = ((order[:, None] - order).abs() <= reach) | (order < frame)
    assert torch.equal(Band("spatial", 0.2, (2, 4)).mask(grid), spatial)
    place = order % frame * grid.t + order // frame
    temporal = ((place[:, None] - place).abs() <= reach) | (order < frame)
    assert torch.equal(Band("temporal", 0.2, (2, 4)).mask(grid), temporal)


def test_heads_are_told_apart_by_what_they_look_at():
    """A head whose keys tell the frame looks into frames, one whose keys tell the place looks through time."""
    grid = Grid(8, 6, 6)
    tokens = torch.arange(grid.num_tokens)
    frames = torch.nn.functional.one_hot(tokens // 36, 36).float() * 30
    places = torch.nn.functional.one_hot(tokens % 36, 36).float() * 30
    x = torch.stack((frames, places, frames))[None]
    pattern = SpatialTemporalHeads(width=0.13)
    assert pattern.is_temporal(grid, x, x).tolist() == [[False, True, False]]
    assert pattern.is_temporal(grid, x, x, torch.randn(x.shape)).tolist() == [[False, True, False]]


def test_per_head_patterns():
    grid = Grid(4, 4, 4)
    heads = (SlidingTile((2, 2, 2), (1, 1, 1)), SlidingTile((2, 2, 2), (3, 1, 1)), BlockCausal(2, tile=(2, 2, 2)))
    pattern = PerHead(heads)
    layout = pattern.plan(grid, 3)
    for head, own in enumerate(heads):
        assert torch.equal(tokens_seen(layout, head=head), own.mask(grid))
        assert torch.equal(pattern.mask(grid, head), own.mask(grid))
    assert pattern.density(grid) == pytest.approx(sum(own.density(grid) for own in heads) / 3)
    densities = pattern.densities(grid)
    assert [own.heads for own in densities] == ["0", "1", "2"]
    assert [own.density for own in densities] == [own.density(grid) for own in heads]
    windows = SlidingTile((2, 2, 2), ((1, 1, 1), (3, 1, 1)))
    for head, window in enumerate(((1, 1, 1), (3, 1, 1))):
        assert torch.equal(windows.mask(grid, head), SlidingTile((2, 2, 2), window).mask(grid))
    assert windows.plan(grid, 2).counts[0].float().mean(-1).tolist() == [1.0, 2.0]


def test_heads_on_other_tiles_are_groups():
    grid = Grid(3, 2, 4)
    pattern = PerHead((Temporal(), Spatial(), Spatial(), Full(), Temporal(), Spatial()))
    assert pattern.groups(grid) == [(Spatial(), [1, 2, 5]), (Temporal(), [0, 4]), (Full(), [3])]
    assert pattern.order(grid) is Spatial().order(grid)
    assert [own.density for own in pattern.densities(grid)] == [1 / 8, 1 / 3, 1 / 3, 1, 1 / 8, 1 / 3]
    assert pattern.density(grid) == pytest.approx((3 / 3 + 2 / 8 + 1) / 6)
    one = PerHead((Spatial(),))
    assert PerHead((one, Temporal(), one)).groups(grid) == [(PerHead((one, one)), [0, 2]), (Temporal(), [1])]
    windows = PerHead((SlidingTile((1, 1, 1), (1, 1, 1)), Spatial(), SlidingTile((1, 1, 1), (3, 1, 1))))
    assert windows.groups(grid) == [(PerHead((windows.patterns[0], windows.patterns[2])), [0, 2]), (Spatial(), [1])]


def test_per_head_patterns_with_parts_of_tiles():
    grid = Grid(4, 3, 3)
    heads = (Band("spatial", 0.2, (2, 4)), Band("temporal", 0.2, (2, 4)))
    layout = PerHead(heads).plan(grid, 2)
    for head, own in enumerate(heads):
        assert torch.equal(tokens_seen(layout, head=head), own.mask(grid))


def test_published_settings_have_their_density():
    """STA's kernel benchmark: tiles 6×8×8 and a window of 3×3×3 tiles on 30×48×80 tokens is 91 % sparse."""
    assert SlidingTile((6, 8, 8), (3, 3, 3)).density(Grid(30, 48, 80)) == pytest.approx(27 / 300)


def test_a_window_larger_than_the_grid_is_all_of_it_and_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        pattern = SlidingTile((2, 3, 3), (5, 3, 1))
        assert pattern.density(Grid(2, 9, 9)) == pytest.approx(1 / 3)
    assert "`window` (=(5, 3, 1)) is larger than the grid of (1, 3, 3) tiles" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grid(0, 2, 2), r"`grid.t` \(=0\) must be at least 1"),
        (lambda: SlidingTile((2, 2, 2), (3, 2, 1)), r"`window` \(=\(3, 2, 1\)\) must be odd"),
        (lambda: SlidingTile((2, 2), (3, 3, 1)), r"`tile` \(=\(2, 2\)\) must be a tuple of three integers"),
        (lambda: SlidingTile((2, 2, 0), (3, 3, 1)), r"`tile`"),
        (lambda: SlidingTile((2, 2, 2), ()), r"`window`"),
        (lambda: Window((0, 2, 2)), r"`size`"),
        (lambda: ShiftedWindow((2, 2, 2), (0, 0, 2)), r"`shift` \(=\(0, 0, 2\)\)"),
        (lambda: AlternatingGrid((1, 2)), r"`cells`"),
        (lambda: Radial(0.0), r"`decay` \(=0.0\) must be above 0"),
        (lambda: Radial(tile_size=0), r"`tile_size`"),
        (lambda: Band("diagonal"), r"`axis` \(=diagonal\) must be one of spatial, temporal"),
        (lambda: Band(width=0.0), r"`width`"),
        (lambda: BlockCausal(0), r"`chunk`"),
        (lambda: BlockCausal(1, window=-1), r"`window`"),
        (lambda: TileTopK(), r"exactly one of `k` \(=None\) and `share` \(=None\)"),
        (lambda: TileTopK(k=0), r"`k`"),
        (lambda: TileTopK(share=1.5), r"`share`"),
        (lambda: SlidingTileTopK(balance=2.0), r"`balance`"),
        (lambda: SpatialTemporalHeads(num_rows=0), r"`num_rows`"),
        (lambda: PerHead(()), r"`patterns`"),
        (lambda: PerHead((Spatial(), TileTopK(k=2))), r"`patterns` .* must be static"),
        (lambda: PerHead((SlidingTile(window=((1, 1, 1), (3, 3, 3))),)), r"`patterns` .* must be for one head each"),
        (lambda: PerHead((Spatial(), Temporal())).plan(Grid(2, 2, 2), 2), r"the tiles of the first, .* its `groups`"),
        (lambda: PerHead((Spatial(),)).plan(Grid(2, 2, 2), 2), r"`pattern` \(=spatial\*1\) is for 1 heads, .* are: 2"),
        (
            lambda: SlidingTile((2, 2, 2), ((1, 1, 1), (3, 1, 1))).plan(Grid(2, 2, 2), 3),
            r"is for 2 heads, .* there are: 3",
        ),
        (lambda: Full().plan(Grid(2, 2, 2), 0), r"`num_heads` \(=0\)"),
        (lambda: TileTopK(k=1).plan(Grid(2, 2, 2), 1), r"`query` \(=None\) must be given"),
        (
            lambda: TileTopK(k=1).plan(Grid(2, 2, 2), 1, 0, torch.zeros(1, 1, 7, 4), torch.zeros(1, 1, 8, 4)),
            r"`query` \(of shape \(1, 1, 7, 4\)\) must be \(b, 1 heads, at least 8 tokens of the grid 2x2x2",
        ),
    ],
)
def test_mistakes_are_named(make, message: str):
    with pytest.raises(KinemaError, match=message):
        make()


@pytest.mark.parametrize("grid", [Grid(5, 4, 7), Grid(6, 3, 9), Grid(9, 8, 5), Grid(1, 2, 3)])
@pytest.mark.parametrize("cells", [(1, 1, 1), (4, 1, 1), (1, 2, 3), (3, 4, 5)])
def test_alternating_grids_have_as_many_cells_as_they_say(grid: Grid, cells: tuple[int, int, int]):
    order = AlternatingGrid(cells).order(grid)
    assert order.tile_grid == tuple(min(number, size) for number, size in zip(cells, grid.sizes, strict=True))
    sizes = order.tiles_of(order.valid).sum(1)
    assert int(sizes.min()) * 8 >= int(sizes.max()), "cells are as equal as whole positions allow"


@pytest.mark.parametrize("value", [[2, 2, 2], 2, None, (2, 2), (2, 2, 0), (2, 2, 1.5), (2, 2, True), "222"])
def test_what_is_no_triple_is_named(value: object):
    with pytest.raises(KinemaError, match=r"`tile` \(=.*\) must be a tuple of three integers of at least 1"):
        check_triple("tile", value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "2"])
def test_what_is_no_number_is_named(value: object):
    with pytest.raises(KinemaError, match=r"`chunk` \(=.*\) must be at least 1, and an integer"):
        check_number("chunk", value, 1)


def test_a_decay_is_finite():
    with pytest.raises(KinemaError, match=r"`decay` \(=inf\) must be above 0, and finite"):
        Radial(decay=float("inf"))


@pytest.mark.parametrize(("share", "tiles", "number"), [(0.07, 100, 7), (0.14, 50, 7), (0.1, 11, 2), (1.0, 9, 9)])
def test_a_share_of_tiles_is_rounded_up_once(share: float, tiles: int, number: int):
    pattern = TileTopK(share=share, tile=(1, 1, 1))
    assert pattern.number(pattern.order(Grid(1, 1, tiles))) == number
