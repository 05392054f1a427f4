"""Backends compute what the mask of a pattern says, and its gradients."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from attending import dynamic, grids, static
from kinema.errors import KinemaError
from kinema.generation.attention import (
    Band,
    BlockCausal,
    DynamicPattern,
    Full,
    Grid,
    Pattern,
    PerHead,
    Radial,
    SlidingTile,
    SlidingTileTopK,
    Spatial,
    SpatialTemporalHeads,
    StaticPattern,
    Temporal,
    TileTopK,
    Window,
    functional,
    sparse_attention,
)
from kinema.generation.attention.backends import BACKENDS, BackendFailed, flex, gather
from kinema.generation.attention.backends.flex import Flex, find_compiler
from kinema.generation.attention.backends.space import Space
from kinema.generation.attention.layout import TokenMask


def inputs(
    grid: Grid, extra: int = 0, batch: int = 2, heads: int = 3, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
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
    layout = pattern.plan(grid, tensors[0].shape[1], extra, tensors[0], tensors[1])
    names = [name for name, backend in BACKENDS.items() if name != "flex"]  # compiled: below
    return [name for name in names if BACKENDS[name].missing(layout, tensors[0]) is None]


patterns = st.one_of(static, dynamic)


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


def extra_masks(extra: int) -> st.SearchStrategy[Tensor]:
    """Which extra tokens of two clips exist."""
    row = st.lists(st.booleans(), min_size=extra, max_size=extra)
    return st.tuples(row, row).map(torch.tensor)


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


@settings(max_examples=20, deadline=None)
@given(
    grid=grids,
    make=patterns,
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    native=st.booleans(),
    data=st.data(),
)
def test_gradients_in_half_precision_stay_near(
    grid: Grid, make: Callable, dtype: torch.dtype, native: bool, data: st.DataObject
):
    pattern, extra = make(), 3
    mask = data.draw(extra_masks(extra))
    tensors: Any = [x.requires_grad_() for x in inputs(grid, extra, dtype=dtype)]
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((reference(tensors, pattern, grid, extra, mask) * weight).sum(), tensors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "computes_bf16", lambda _: native)
        out = sparse_attention(
            *tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend="gather", extra_mask=mask
        )
        grads = torch.autograd.grad((out.float() * weight).sum(), tensors)
    for grad, wanted in zip(grads, expected, strict=True):
        assert grad.dtype == dtype
        limit = (0.05 if dtype == torch.bfloat16 else 0.01) * max(1.0, wanted.abs().max().item())
        assert (grad - wanted).abs().max() <= limit


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
        plans.append(functional.plan_slots(pattern, grid, *arranged, num_extra_tokens=0, step=None))
    for plan in plans[1:]:
        assert torch.equal(plan.seen()[0], plans[0].seen()[0])


def test_autocast_changes_no_type_within():
    """A backward pass runs without autocast; the forward pass that it is the gradient of does too."""
    grid, pattern = Grid(2, 4, 4), SlidingTile((1, 2, 2), (1, 3, 1))
    tensors: Any = [x.requires_grad_() for x in inputs(grid)]
    expected = sparse_attention(*tensors, pattern=pattern, grid=grid, backend="gather")
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_attention(*tensors, pattern=pattern, grid=grid, backend="gather")
    assert torch.equal(out, expected)
    (grad,) = torch.autograd.grad(out.square().sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_per_head_patterns_on_all_heads():
    grid, tensors = Grid(4, 3, 5), inputs(Grid(4, 3, 5), 2)
    tile = (2, 2, 2)
    for pattern in (
        PerHead((SlidingTile(tile, (1, 1, 1)), BlockCausal(2, tile=tile), SlidingTile(tile, (3, 1, 3)))),
        PerHead((Band("spatial", 0.2, (2, 4)), Band("temporal", 0.2, (2, 4)), Band("spatial", 0.4, (2, 4)))),
        SlidingTile(tile, ((1, 1, 1), (1, 3, 1), (3, 3, 3))),
    ):
        expected = reference(tensors, pattern, grid, 2)
        for backend in ("gather", "masked"):
            out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=2, backend=backend)
            assert (out - expected).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "extra"),
    [
        (SlidingTile((2, 8, 8), (1, 3, 1)), 0),
        (SlidingTile((2, 8, 8), (3, 1, 1)), 70),
        (Radial(0.2, 16, 64), 5),
        (TileTopK(k=2, tile=(2, 8, 8)), 5),
        (Band("temporal", 0.1, (2, 64)), 0),
    ],
    ids=str,
)
def test_flex_is_the_reference(pattern: Pattern, extra: int):
    """On a CPU some do not compile, and some are wrong, and it says so; a result that it gives is right."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not find_compiler():
        pytest.skip("flex on a CPU needs a C++ compiler")
    grid = Grid(5, 17, 16)
    tensors = [
        torch.randn(2, 3, grid.num_tokens + extra, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)
    ]
    mask = torch.rand(2, extra, generator=torch.Generator().manual_seed(2)) > 0.4 if extra == 70 else None
    expected = reference(tensors, pattern, grid, extra, mask)
    given: Any = [x.to(device) for x in tensors]
    there = None if mask is None else mask.to(device)
    arguments: Any = dict(num_extra_tokens=extra, backend="flex", extra_mask=there)
    try:
        out = sparse_attention(*given, pattern=pattern, grid=grid, **arguments)
    except BackendFailed as error:
        if device == "cuda":
            raise
        pytest.skip(str(error))
    # TF32 products on CUDA.
    assert (out.cpu() - expected).abs().max() <= (1e-3 if device == "cuda" else 1e-5)


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


def test_cost_is_the_density():
    """Products counted: those of the tiles that are seen, and no others."""
    grid, pattern = Grid(8, 16, 16), SlidingTile((2, 8, 8), (1, 1, 1))
    tensors = inputs(grid, batch=1, heads=1)
    counts = {}
    for backend in ("gather", "masked"):
        with FlopCounterMode(display=False) as counter:
            sparse_attention(*tensors, pattern=pattern, grid=grid, backend=backend)
        counts[backend] = counter.get_total_flops()
    assert pattern.density(grid) == 1 / 16
    assert counts["gather"] == counts["masked"] / 16 == 4 * 2048 * 128 * 8


def test_gathered_keys_keep_within_the_limit(monkeypatch: pytest.MonkeyPatch):
    grid, pattern = Grid(8, 8, 8), SlidingTile((2, 4, 4), (3, 3, 1))
    tensors = inputs(grid, 3)
    expected = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=3, backend="gather")
    largest: list[int] = []
    original = gather._attend

    def watched(chunk: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert key.shape[1] % 32 == 3  # tiles of keys, and the extra tokens
        largest.append(key.numel())
        return original(chunk, query, key, value)

    monkeypatch.setattr(gather, "_attend", watched)
    monkeypatch.setattr(gather, "_CHUNK_CPU", 10_000)
    out = sparse_attention(*tensors, pattern=pattern, grid=grid, num_extra_tokens=3, backend="gather")
    assert torch.allclose(out, expected, atol=1e-6)
    assert len(largest) > 3
    assert max(largest) <= 10_000 * torch.get_num_threads()


@pytest.mark.parametrize("budget", [1, 10_000, 2**20])
def test_heads_and_clips_share_a_mask(budget: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gather, "_CHUNK_CPU", budget)
    grid, looked_at = Grid(3, 4, 5), []

    @dataclass(frozen=True)
    class Watched(Radial):
        def sees(self, grid: Grid) -> TokenMask:
            sees = super().sees(grid)

            def watched(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = sees(head, query, key)
                looked_at.append(seen.numel())
                return seen

            return watched

    pattern = Watched(0.1, min_width=3, tile_size=4)
    pairs: list[int] = []
    for batch, heads in ((1, 1), (2, 5)):
        looked_at.clear()
        tensors = inputs(grid, batch=batch, heads=heads)
        out = sparse_attention(*tensors, pattern=pattern, grid=grid, backend="gather")
        pairs.append(sum(looked_at))
        assert (out - reference(tensors, pattern, grid, 0)).abs().max() <= 1e-5
    assert pairs[0] == pairs[1] > 0
    # Tiles that all see wholly are not looked at token by token.
    layout = pattern.plan(grid, 1)
    assert pairs[0] < layout.counts.sum().item() * layout.order.tile_size**2


def test_space_is_used_again_and_gives_what_is_asked():
    space, x = Space(), torch.arange(12.0).view(3, 2, 2)
    first = space.select("key", x, torch.tensor([2, 0]))
    assert torch.equal(first, x[[2, 0]])
    again = space.select("key", x, torch.tensor([1]))
    assert torch.equal(again, x[[1]])
    assert again.data_ptr() == first.data_ptr()
    larger = space.select("key", x, torch.tensor([1, 1, 0]))
    assert torch.equal(larger, x[[1, 1, 0]])
    assert torch.equal(space.cat("both", x, x[:, :1]), torch.cat((x, x[:, :1]), dim=1))
    wide = space.to("wide", x.bfloat16(), torch.float32)
    assert torch.equal(wide, x)
    assert wide.dtype == torch.float32
    assert space.to("wide", x, torch.float32) is x


def test_auto_takes_the_fastest_and_says_why_once(caplog: pytest.LogCaptureFixture):
    functional._say.cache_clear()  # other tests have made it speak
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
    assert "flex: gathering needs no compilation" in caplog.text


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
        ({"pattern": SlidingTile((1, 2, 2), ((1, 1, 1), (3, 1, 1)))}, r"`num_heads` \(=3\) must be 2"),
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


def by_block_mask(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, **_: Any) -> Tensor:
    """What a kernel of FlexAttention should do: full tiles whole, partial ones under the mask function."""
    sizes = (*query.shape[:2], query.shape[2], key.shape[2])
    seen = block_mask.mask_mod(*torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))
    shape = (*sizes[:2], sizes[2] // block_mask.BLOCK_SIZE[0], sizes[3] // block_mask.BLOCK_SIZE[1])

    def tiles(counts: Tensor, indices: Tensor) -> Tensor:
        listed = torch.arange(shape[3]) < counts[..., None]
        table = torch.zeros(shape, dtype=torch.long)
        table.scatter_add_(3, indices.long().expand(shape), listed.long().expand(shape))
        assert table.max() <= 1, "a tile is listed twice"
        return table.bool().repeat_interleave(sizes[2] // shape[2], 2).repeat_interleave(sizes[3] // shape[3], 3)

    full = tiles(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    partial = tiles(block_mask.kv_num_blocks, block_mask.kv_indices)
    assert not (full & partial).any()
    return scaled_dot_product_attention(query, key, value, attn_mask=full | (partial & seen))


@settings(max_examples=60, deadline=None)
@given(grid=grids, make=patterns, extra=st.integers(0, 4), data=st.data())
def test_block_mask_is_the_pattern(grid: Grid, make: Callable, extra: int, data: st.DataObject):
    pattern = make()
    tensors = inputs(grid, extra)
    mask = data.draw(extra_masks(extra)) if extra and data.draw(st.booleans()) else None
    expected = reference(tensors, pattern, grid, extra, mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "_compiled", lambda: by_block_mask)
        patch.setattr(flex, "find_compiler", lambda: "c++")
        patch.setattr(flex, "_checked", {})
        out = sparse_attention(
            *tensors, pattern=pattern, grid=grid, num_extra_tokens=extra, backend="flex", extra_mask=mask
        )
    assert (out - expected).abs().max() <= 1e-5


@pytest.fixture
def compiled_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Makes the compiled kernel a dense reference that is off by some error; gives the list of its calls."""

    def change(error: float) -> list[int]:
        calls: list[int] = []

        def kernel(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, **_: Any) -> Tensor:
            calls.append(query.shape[2])
            return by_block_mask(query, key, value, block_mask) + error

        monkeypatch.setattr(flex, "_compiled", lambda: kernel)
        monkeypatch.setattr(flex, "find_compiler", lambda: "c++")
        monkeypatch.setattr(flex, "_checked", {})
        return calls

    return change


FLEX: dict[str, Any] = dict(pattern=SlidingTile((1, 8, 8), (1, 1, 3)), backend="flex")


def test_flex_on_a_cpu_is_checked_once_a_shape(compiled_to: Callable[[float], list[int]]):
    calls = compiled_to(0.0)
    grid = Grid(4, 16, 24)
    tensors = inputs(grid)
    expected = reference(tensors, FLEX["pattern"], grid, 0)
    for _ in range(2):
        out = sparse_attention(*tensors, grid=grid, **FLEX)
        assert (out - expected).abs().max() <= 1e-5
    assert len(calls) == 2
    assert len(flex._checked) == 1


def test_flex_on_a_cpu_that_is_wrong_is_found_out(compiled_to: Callable[[float], list[int]]):
    calls = compiled_to(0.01)
    grid = Grid(4, 16, 24)
    for _ in range(2):
        with pytest.raises(
            BackendFailed,
            match=r"`backend` \(=flex\) gives wrong results .* differ from those of gather by 0\.00\d+ of",
        ):
            sparse_attention(*inputs(grid), grid=grid, **FLEX)
    assert len(calls) == 1, "it is not asked again"


def test_flex_on_a_cpu_has_no_backward_pass(compiled_to: Callable[[float], list[int]]):
    calls = compiled_to(0.0)
    grid = Grid(4, 16, 24)
    tensors: Any = [x.requires_grad_() for x in inputs(grid)]
    message = r"`backend` \(=flex\) cannot run this: its CPU kernels have no backward pass; auto would use gather"
    with pytest.raises(KinemaError, match=message):
        sparse_attention(*tensors, grid=grid, **FLEX)
    with pytest.raises(BackendFailed, match="no backward pass"):
        sparse_attention(tensors[0].detach(), *tensors[1:], grid=grid, **FLEX)
    assert not calls
    with torch.no_grad():
        sparse_attention(*tensors, grid=grid, **FLEX)
    assert len(calls) == 1


def test_faster_kernels_that_fail_are_left(compiled_to: Callable[[float], list[int]], monkeypatch: pytest.MonkeyPatch):
    compiled_to(0.0)
    plain, tried = flex._compiled(), []

    def kernel(*tensors: Tensor, kernel_options: dict[str, Any], **arguments: Any) -> Tensor:
        tried.append(kernel_options)
        if kernel_options:
            raise RuntimeError("not for this device")
        return plain(*tensors, **arguments)

    monkeypatch.setattr(flex, "_compiled", lambda: kernel)
    monkeypatch.setattr(flex, "kernel_options", lambda _: [{"BACKEND": "FLASH"}, {}])
    grid = Grid(4, 16, 24)
    tensors = inputs(grid)
    out = sparse_attention(*tensors, grid=grid, **FLEX)
    assert (out - reference(tensors, FLEX["pattern"], grid, 0)).abs().max() <= 1e-5
    assert tried == [{"BACKEND": "FLASH"}, {}]


def test_flex_on_a_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    grid = Grid(4, 16, 24)
    with pytest.raises(KinemaError, match=r"\(=flex\) cannot run this: .* C\+\+ compiler .*; auto would use gather"):
        sparse_attention(*inputs(grid), grid=grid, **FLEX)
