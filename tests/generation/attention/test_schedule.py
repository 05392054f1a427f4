"""Which pattern runs where, and patterns as text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attending import dynamic, static
from kinema.errors import KinemaError
from kinema.generation.attention import (
    Band,
    Full,
    Grid,
    PatternSchedule,
    PerHead,
    Radial,
    SlidingTile,
    Spatial,
    Temporal,
    TileTopK,
    parse_pattern,
    parse_patterns,
    pattern_text,
)
from kinema.generation.attention.schedule import as_schedule, common_order
from kinema.generation.attention.text import parse_grid

GRID = Grid(4, 8, 8)


def test_blocks_take_patterns_in_turns():
    schedule = as_schedule([Spatial(), Temporal()])
    assert [schedule.at(layer, 5, None, None, GRID) for layer in range(5)] == [
        Spatial(),
        Temporal(),
        Spatial(),
        Temporal(),
        Spatial(),
    ]
    assert as_schedule(schedule) is schedule
    assert as_schedule(Spatial()) == PatternSchedule((Spatial(),))


@pytest.mark.parametrize(("layers", "dense"), [(0, []), (2, [0, 1]), ((0, -1), [0, 5]), ((3,), [3])])
def test_dense_layers(layers, dense):
    schedule = PatternSchedule((Spatial(),), dense_layers=layers)
    assert [i for i in range(6) if schedule.at(i, 6, 0, 10, GRID) == Full()] == dense


@pytest.mark.parametrize(("steps", "dense"), [(0, []), (3, [0, 1, 2]), ((2, 1), [0, 1, 9]), ((0, 2), [8, 9])])
def test_dense_steps(steps, dense):
    schedule = PatternSchedule((Spatial(),), dense_steps=steps)
    assert [i for i in range(10) if schedule.at(0, 1, i, 10, GRID) == Full()] == dense
    assert schedule.at(0, 1, None, None, GRID) == Spatial()


def test_patterns_change_with_the_step():
    schedule = PatternSchedule((TileTopK(k=8),), by_step=((2, (TileTopK(k=4),)), (5, (TileTopK(k=2),))))
    patterns = [schedule.at(0, 1, step, 8, GRID) for step in range(8)]
    assert [pattern.k for pattern in patterns if isinstance(pattern, TileTopK)] == [8, 8, 4, 4, 4, 2, 2, 2]


def test_short_clips_are_dense():
    schedule = PatternSchedule((Spatial(),), min_tokens=257)
    assert schedule.at(0, 1, 0, 1, GRID) == Full()
    assert schedule.at(0, 1, 0, 1, Grid(5, 8, 8)) == Spatial()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patterns": ()}, r"`patterns` \(=\(\)\)"),
        ({"dense_layers": -1}, r"`dense_layers` \(=-1\)"),
        ({"dense_steps": -1}, r"`dense_steps` \(=-1\)"),
        ({"dense_steps": (1, -2)}, r"`dense_steps` \(=\(1, -2\)\)"),
        ({"min_tokens": -1}, r"`min_tokens` \(=-1\)"),
        ({"by_step": ((3, (Full(),)), (1, (Full(),)))}, r"`by_step` \(starting at \[3, 1\]\)"),
        ({"by_step": ((3, ()),)}, r"`by_step`"),
    ],
)
def test_mistakes_are_named(settings: dict, message: str):
    given: Any = {"patterns": (Spatial(),)} | settings
    with pytest.raises(KinemaError, match=message):
        PatternSchedule(**given)


def test_mistakes_are_found_before_any_work():
    with pytest.raises(KinemaError, match=r"`dense_layers` \(with 7\) must lie in -4\.\.3"):
        PatternSchedule((Spatial(),), dense_layers=(0, 7)).check(4, 2)
    with pytest.raises(KinemaError, match=r"is for 2 heads, .* there are: 3"):
        PatternSchedule((SlidingTile(window=((1, 1, 1), (3, 3, 3))),)).check(4, 3)
    with pytest.raises(KinemaError, match=r"`num_steps` \(=None\)"):
        PatternSchedule((Spatial(),), dense_steps=(0, 1)).at(0, 1, 0, None, GRID)


@settings(max_examples=100, deadline=None)
@given(make=st.one_of(static, dynamic))
def test_text_reads_back(make):
    pattern = make()
    assert parse_pattern(pattern_text(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("full", Full()),
        ("sliding-tile:3x3x1", SlidingTile(window=(3, 3, 1))),
        ("sliding-tile:3x3x1,tile=6x8x8", SlidingTile((6, 8, 8), (3, 3, 1))),
        ("sliding-tile:window=3x3x1/1x3x3", SlidingTile(window=((3, 3, 1), (1, 3, 3)))),
        ("radial:0.8,min_width=64", Radial(0.8, 64)),
        ("tile-top-k:32", TileTopK(k=32)),
        ("tile-top-k:share=0.1", TileTopK(share=0.1)),
        ("spatial*1", PerHead((Spatial(),))),
        ("band:spatial*2&band:temporal", PerHead((Band("spatial"), Band("spatial"), Band("temporal")))),
    ],
)
def test_text(text: str, pattern):
    assert parse_pattern(text) == pattern
    assert parse_pattern(pattern_text(pattern)) == pattern
    assert parse_patterns(f"{text}+temporal") == (pattern, Temporal())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tiles", r"`pattern` \(=tiles\) must begin with one of full, spatial, .*sliding-tile"),
        ("spatial:3", r"must have settings out of no settings, each once; not '3'"),
        ("radial:0.2,0.3", r"must have settings out of decay, min_width, tile_size, each once; not '0.3'"),
        ("radial:0.2,decay=0.3", r"each once; not 'decay=0.3'"),
        ("sliding-tile:3by3", r"must give numbers like 3x3x1 for `window`, not '3by3'"),
        ("radial:wide", r"must give a number for `decay`, not 'wide'"),
        ("sliding-tile:2x2x2", r"`window` \(=\(2, 2, 2\)\) must be odd"),
        ("tile-top-k", r"exactly one of `k`"),
        ("spatial*0", r"must give a number of heads from 1 to 1024 behind `\*`, not '0'"),
        ("spatial*1025", r"from 1 to 1024 behind `\*`, not '1025'"),
        ("spatial*2*3", r"behind `\*`, not '2\*3'"),
        ("spatial&", r"`pattern` \(=spatial&\) must begin with one of .*, not ''"),
        ("spatial*2&tiles", r"`pattern` \(=spatial\*2&tiles\) must begin with one of .*, not 'tiles'"),
        ("spatial&tile-top-k:2", r"`patterns` \(with TileTopK.*\) must be static"),
    ],
)
def test_mistakes_in_text_are_named(text: str, message: str):
    with pytest.raises(KinemaError, match=message):
        parse_pattern(text)


def test_what_has_no_text_says_so():
    class Own(Spatial):
        name = "own"

    with pytest.raises(KinemaError, match=r"`pattern` \(=.*Own.*\) must be one of"):
        pattern_text(Own())


def test_grids_as_text():
    assert parse_grid("21x45x80") == Grid(21, 45, 80)
    for text in ("21x45", "axbxc", "0x1x1"):
        with pytest.raises(KinemaError, match=r"`grid"):
            parse_grid(text)


def test_the_common_order_is_that_of_most_blocks():
    tiles = SlidingTile((2, 4, 4), (1, 1, 1))
    assert common_order(GRID, (Full(), tiles, Temporal(), tiles)) is tiles.order(GRID)
    assert common_order(GRID, (tiles, Temporal(), Temporal())) is Temporal().order(GRID)
    assert common_order(GRID, (tiles, Spatial(), Spatial())) is None, "spatial order is raster order"
    assert common_order(GRID, (Full(), Full())) is None
    ragged = SlidingTile((4, 8, 8), (1, 1, 1))
    assert common_order(Grid(5, 9, 9), (ragged,)) is None, "five slots for each token"
    assert common_order(Grid(4, 64, 65), (SlidingTile((2, 8, 13), (1, 1, 1)),)) is not None


def test_dense_steps_and_layers_are_those_of_the_model():
    with pytest.raises(KinemaError, match=r"`dense_layers` \(=9\) must be at most 8"):
        PatternSchedule((Spatial(),), dense_layers=9).check(8, 2)
    with pytest.raises(KinemaError, match=r"`dense_steps` \(=\(3, 3\)\) must be at most `num_steps` \(=4\)"):
        PatternSchedule((Spatial(),), dense_steps=(3, 3)).check(8, 2, 4)
    PatternSchedule((Spatial(),), dense_steps=(2, 2), dense_layers=8).check(8, 2, 4)
