"""Backends compute what the mask of a pattern says, and its gradients."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attending import extra_masks, grids, inputs, patterns, reference, usable
from kinema.errors import KinemaError
from kinema.generation.attention import (
    Band,
    BlockCausal,
    DynamicPattern,
    Full,
    Grid,
    PerHead,
    SlidingTile,
    SlidingTileTopK,
    Spatial,
    SpatialTemporalHeads,
    Temporal,
    TileTopK,
    Window,
    functional,
    sparse_attention,
)
from kinema.generation.attention.backends import BACKENDS, BackendFailed, gather
from kinema.generation.attention.backends.flex import Flex
from kinema.generation.attention.grid import token_order
from kinema.generation.attention.patterns import base


@settings(max_examples=100, deadline=None)
@given(grid=grids, make=patterns, extra=st.integers(0, 5), batch=st.integers(1, 2), heads=st.integers(1, 3))
def test_backends_are_the_reference(grid: Grid, make: Callable, extra: int, batch: int, heads: int):
    pattern = make()
    tensors = inputs(grid, extra, batch, heads)
    expected = reference(tensors, pattern, grid, extra)
    for backend in usable(pattern, grid, tensors, extra):
        out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend)
        assert out.dtype == torch.float32
        assert (out - expected).abs().max() <= 1e-5, backend


@settings(max_examples=40, deadline=None)
@given(grid=grids, make=patterns, extra=st.integers(0, 4), budget=st.sampled_from([1, 200, 2**20]))
def test_gradients_are_the_reference(grid: Grid, make: Callable, extra: int, budget: int):
    pattern = make()
    tensors: Any = [x.requires_grad_() for x in inputs(grid, extra)]
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((reference(tensors, pattern, grid, extra) * weight).sum(), tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "_CHUNK_CPU", budget)
        for backend in usable(pattern, grid, tensors, extra):
            out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend)
            grads = torch.autograd.grad((out * weight).sum(), tensors)
            for grad, wanted in zip(grads, expected, strict=True):
                assert (grad - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max().item()), backend


@settings(max_examples=30, deadline=None)
@given(grid=grids, make=patterns, extra=st.integers(1, 5), data=st.data())
def test_padding_of_extra_tokens_is_not_seen(grid: Grid, make: Callable, extra: int, data: st.DataObject):
    pattern = make()
    tensors = inputs(grid, extra)
    mask = data.draw(extra_masks(extra))
    expected = reference(tensors, pattern, grid, extra, mask)
    for backend in usable(pattern, grid, tensors, extra):
        out = sparse_attention(
            *tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend, extra_mask=mask
        )
        assert (out - expected).abs().max() <= 1e-5, backend


@settings(max_examples=30, deadline=None)
@given(grid=grids, make=patterns, extra=st.integers(0, 3))
def test_tile_order_is_raster_order_arranged(grid: Grid, make: Callable, extra: int):
    pattern = make()
    tensors = inputs(grid, extra)
    expected = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=extra)
    order = pattern.order(grid)
    arranged: Any = [order.arrange(x, 2) for x in tensors]
    out = sparse_attention(*arranged, pattern=pattern, grid=grid, num_extra_tokens=extra, order="tile")
    assert out.isfinite().all()
    assert (order.restore(out, 2) - expected).abs().max() <= 1e-5


@settings(max_examples=40, deadline=None)
@given(grid=grids, make=patterns, other=patterns, extra=st.integers(0, 3))
def test_tokens_come_in_another_patterns_order(grid: Grid, make: Callable, other: Callable, extra: int):
    """As in blocks of a transformer that are given several patterns; empty slots have no part in gradients."""
    pattern, order = make(), other().order(grid)
    tensors: Any = [x.requires_grad_() for x in inputs(grid, extra)]
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    expected = reference(tensors, pattern, grid, extra)
    wanted = torch.autograd.grad((expected * weight).sum(), tensors)
    for backend in usable(pattern, grid, tensors, extra):
        arranged: Any = [order.arrange(x, 2) for x in tensors]
        out = sparse_attention(
            *arranged, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend, order=order
        )
        assert out.isfinite().all(), backend
        out = order.restore(out, 2)
        assert (out - expected).abs().max() <= 1e-5, backend
        for grad, own in zip(torch.autograd.grad((out * weight).sum(), tensors), wanted, strict=True):
            assert (grad - own).abs().max() <= 1e-5 * max(1.0, own.abs().max().item()), backend


@settings(max_examples=20, deadline=None)
@given(
    grid=grids,
    make=patterns,
    extra=st.integers(0, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    native=st.booleans(),
)
def test_half_precision_stays_near(grid: Grid, make: Callable, extra: int, dtype: torch.dtype, native: bool):
    pattern = make()
    tensors = inputs(grid, extra, dtype=dtype)
    expected = reference(tensors, pattern, grid, extra)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "computes_bf16", lambda _: native)
        for backend in usable(pattern, grid, tensors, extra):
            out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend)
            assert out.dtype == dtype
            assert (out - expected).abs().max() <= (0.04 if dtype == torch.bfloat16 else 0.006), backend


@settings(max_examples=30)
@given(grid=grids, make=patterns, order=st.sampled_from(["raster", "tile"]))
def test_what_inference_keeps_can_be_trained_with(grid: Grid, make: Callable, order: str):
    """Orders, plans and masks are kept for the next call, which may have gradients."""
    pattern = make()
    token_order.cache_clear()
    base._static_plan.cache_clear()
    tensors = inputs(grid)

    def run(tensors: Any) -> Tensor:
        if order == "tile":
            tensors = [pattern.order(grid).arrange(x, 2) for x in tensors]
        return sparse_attention(*tensors, pattern=pattern, grid=grid, order=order)

    with torch.inference_mode():
        first = run([x.clone() for x in tensors])
    out = run([x.requires_grad_() for x in tensors])
    assert torch.equal(out, first)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum(), tensors))


@pytest.mark.parametrize(
    "pattern",
    [
        TileTopK(k=3, tile=(1, 2, 2)),
        SlidingTileTopK(k=2, tile=(1, 2, 2), window=(1, 1, 1)),
        SpatialTemporalHeads(tile=(1, 4)),
    ],
    ids=lambda x: x.name,
)
def test_autocast_changes_no_choice(pattern: DynamicPattern):
    """Scores in bfloat16 have ties: training would choose other tiles than sampling."""
    grid = Grid(4, 8, 8)
    query, key, value = inputs(grid)
    plans = [pattern.plan(grid, 3, 0, query, key, value=value)]
    with torch.autocast("cpu", torch.bfloat16):
        plans.append(pattern.plan(grid, 3, 0, query, key, value=value))
        order = pattern.order(grid)
        arranged: Any = (order.arrange(x, 2) for x in (query, key, value))
        plans.append(functional._plan(pattern, grid, *arranged, num_extra_tokens=0, step=None, input_order=order))
    for plan in plans[1:]:
        assert torch.equal(plan.seen()[0], plans[0].seen()[0])


def test_per_head_patterns_on_all_heads():
    grid, tensors = Grid(4, 3, 5), inputs(Grid(4, 3, 5), 2)
    tile = (2, 2, 2)
    for pattern in (
        PerHead((SlidingTile(tile, (1, 1, 1)), BlockCausal(2, tile=tile), SlidingTile(tile, (3, 1, 3)))),
        PerHead((Band("spatial", 0.2, (2, 4)), Band("temporal", 0.2, (2, 4)), Band("spatial", 0.4, (2, 4)))),
        SlidingTile(tile, ((1, 1, 1), (1, 3, 1), (3, 3, 3))),
        PerHead((Spatial(), Temporal(), SlidingTile(tile, (1, 1, 3)))),
        PerHead((Temporal(), Spatial(), Temporal())),
    ):
        expected = reference(tensors, pattern, grid, 2)
        for backend in ("gather", "masked", "auto"):
            out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=2, backend=backend)
            assert (out - expected).abs().max() <= 1e-5
            order = pattern.order(grid)
            arranged: Any = [order.arrange(x, 2) for x in tensors]
            out = sparse_attention(
                *arranged, pattern=pattern, grid=grid, num_extra_tokens=2, backend=backend, order="tile"
            )
            assert (order.restore(out, 2) - expected).abs().max() <= 1e-5


def test_what_fails_is_run_by_another_that_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> Tensor:
        raise BackendFailed("`backend` (=flex) could not be compiled for this: no luck")

    monkeypatch.setattr(Flex, "missing", lambda *_: None)
    monkeypatch.setattr(Flex, "slower", lambda *_: None)
    monkeypatch.setattr(Flex, "run", fail)
    grid, pattern = Grid(2, 4, 3), SlidingTile((1, 2, 2), (1, 1, 3))
    tensors = inputs(grid)
    with caplog.at_level(logging.WARNING):
        out = sparse_attention(*tensors, pattern=pattern, grid=grid)
    assert (out - reference(tensors, pattern, grid, 0)).abs().max() <= 1e-5
    assert "attention backend flex failed, gather runs instead: `backend` (=flex) could not be compiled" in caplog.text
    with pytest.raises(BackendFailed, match="no luck"):
        sparse_attention(*tensors, pattern=pattern, grid=grid, backend="flex")


def test_auto_takes_the_fastest_and_says_why_once(caplog: pytest.LogCaptureFixture):
    functional._log_once.cache_clear()  # other tests have made it speak
    grid = Grid(2, 4, 3)
    tensors: Any = [x.requires_grad_() for x in inputs(grid)]
    with caplog.at_level(logging.INFO):
        for pattern, name in (
            (Full(), "dense"),
            (Spatial(), "parts"),
            (Temporal(), "parts"),
            (Window((2, 2, 2)), "parts"),
        ):
            caplog.clear()
            sparse_attention(*tensors, pattern=pattern, grid=grid)
            sparse_attention(*tensors, pattern=pattern, grid=grid)
            assert [f"attention backend {name} on cpu" in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()
        sparse_attention(*tensors, pattern=SlidingTile((1, 2, 3), (1, 3, 1)), grid=grid)
    assert "attention backend gather on cpu, torch.float32, tiles of 6 tokens" in caplog.text
    assert "flex: its CPU kernels have no backward pass" in caplog.text
    with caplog.at_level(logging.INFO), torch.no_grad():
        sparse_attention(*tensors, pattern=SlidingTile((1, 2, 3), (1, 3, 1)), grid=grid)
    assert "flex: on a CPU, gather needs no compilation" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "tiles"}, r"`order` \(=tiles\) must be one of raster, tile"),
        ({"backend": "cuda"}, r"`backend` \(=cuda\) must be one of auto, dense, parts, flex, gather, masked"),
        ({"backend": "parts"}, r"`backend` \(=parts\) cannot run this: .*; auto would use (flex|gather)"),
        ({"num_extra_tokens": -1}, r"`num_extra_tokens` \(=-1\)"),
        (
            {"num_extra_tokens": 2},
            r"`query` \(of shape \(2, 3, 24, 8\)\) must be \(b, heads, 26 tokens, d\): grid 2x4x3",
        ),
        ({"grid": Grid(2, 4, 4)}, r"must be \(b, heads, 32 tokens, d\)"),
        ({"key": torch.zeros(2, 2, 24, 8)}, r"`key` \(of shape \(2, 2, 24, 8\)\) must fit `query`"),
        ({"key": torch.zeros(2, 3, 24, 4)}, r"`key` .* must fit `query`"),
        ({"value": torch.zeros(2, 3, 24, 16)}, r"`value` \(of shape \(2, 3, 24, 16\)\) must fit `query`"),
        ({"extra_mask": torch.ones(2, 0)}, r"`extra_mask` \(of torch.float32\) must be of torch.bool"),
        (
            {"value": torch.zeros(2, 3, 24, 8, dtype=torch.float64)},
            r"`value` \(=torch.float64 on cpu\) must be torch.float32",
        ),
        (
            {"extra_mask": torch.ones(2, 1, dtype=torch.bool)},
            r"`extra_mask` \(of shape \(2, 1\)\) must be \(2 clips, 0",
        ),
        ({"pattern": SlidingTile((1, 2, 2), ((1, 1, 1), (3, 1, 1)))}, r"is for 2 heads, .* there are: 3"),
    ],
    ids=str,
)
def test_mistakes_are_named_before_any_work(change: dict, message: str, monkeypatch: pytest.MonkeyPatch):
    grid = Grid(2, 4, 3)
    query, key, value = inputs(grid)
    arguments = {"query": query, "key": key, "value": value, "pattern": SlidingTile((1, 2, 2), (1, 1, 3)), "grid": grid}
    for backend in BACKENDS.values():
        monkeypatch.setattr(type(backend), "run", lambda *_: pytest.fail("work was done"))
    with pytest.raises(KinemaError, match=message):
        sparse_attention(**(arguments | change))
