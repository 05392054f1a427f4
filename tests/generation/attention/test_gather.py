"""Gathering: what it costs, what it keeps in memory, and what its backward pass needs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attending import extra_masks, grids, inputs, patterns, reference
from kinema.flops import FlopCounter
from kinema.generation.attention import (
    Band,
    Grid,
    Radial,
    SlidingTile,
    StaticPattern,
    sparse_attention,
)
from kinema.generation.attention.backends import gather
from kinema.generation.attention.backends.rows import rows_of
from kinema.generation.attention.backends.token_rows import Buffers, TokenRows
from kinema.generation.attention.layout import TokenMask


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


def test_cost_is_the_density():
    """Products counted: those of the tiles that are seen, and no others."""
    grid, pattern = Grid(8, 16, 16), SlidingTile((2, 8, 8), (1, 1, 1))
    tensors = inputs(grid, batch=1, heads=1)
    counts = {}
    for backend in ("gather", "masked"):
        with FlopCounter() as counter:
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

    def watched(bias: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        assert key.shape[2] % 32 == 3  # tiles of keys, and the extra tokens
        largest.append(key.numel())
        return original(bias, query, key, value)

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


def strided(kind: str, x: Tensor) -> Tensor:
    """The same numbers, standing otherwise in memory."""
    wide = torch.zeros(*x.shape[:2], x.shape[2] + 3, 3 * x.shape[3])
    views = {
        "tokens first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "part of a projection": wide[:, :, 2:-1, x.shape[3] : -x.shape[3]],
        "off by one": wide[:, :, 2:-1, 1 : 1 + x.shape[3]],
        "width first": x.transpose(1, 3).contiguous().transpose(1, 3),
    }
    return views[kind].copy_(x)


KINDS = ("tokens first", "part of a projection", "off by one", "width first")


@pytest.mark.parametrize("kinds", [*zip(KINDS, KINDS, KINDS, strict=True), KINDS[:3], KINDS[1:]], ids=str)
@pytest.mark.parametrize("heads", [1, 3])
def test_tensors_are_read_as_they_stand(kinds: tuple[str, str, str], heads: int):
    grid, pattern = Grid(3, 5, 4), SlidingTile((2, 2, 3), (1, 3, 1))
    tensors: Any = [x.requires_grad_() for x in inputs(grid, 2, heads=heads)]
    given: Any = [strided(kind, x.detach()).requires_grad_() for kind, x in zip(kinds, tensors, strict=True)]
    results: list[Tensor] = []
    for own in (tensors, given):
        out = sparse_attention(*own, pattern=pattern, grid=grid, num_extra_tokens=2, backend="gather")
        results += [out, *torch.autograd.grad(out.square().sum(), own)]
    for one, other in zip(results[:4], results[4:], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_keys_that_all_heads_share_are_not_copied_for_each():
    grid, pattern = Grid(3, 5, 4), SlidingTile((2, 2, 3), (1, 3, 1))
    query, key, value = inputs(grid)
    shared = [x[:, :1].expand(-1, 3, -1, -1) for x in (key, value)]
    assert TokenRows.of(shared[0]).rows.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
    expected = reference((query, *(x.contiguous() for x in shared)), pattern, grid, 0)
    out = sparse_attention(query, *shared, pattern=pattern, grid=grid, backend="gather")
    assert (out - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("pattern", "size"), [(Radial(0.2), 2), (Band("spatial", 0.2), 6), (Band("temporal", 0.2), 2)], ids=str
)
def test_neighbours_are_joined_where_that_is_faster(pattern: StaticPattern, size: int):
    """At the size of a published model: kernels are slow with few queries, and neighbours see nearly the same."""
    layout = pattern.plan(Grid(21, 20, 36), 12)
    seen, whole = (x[0, 0] for x in layout.seen())
    queries = torch.zeros(len(seen), dtype=torch.long)
    sizes: set[int] = set()
    for row, away in rows_of(layout, 2, 12, torch.device("cpu")):
        assert torch.equal(away, torch.arange(24))
        sizes.add(row.query_tiles.shape[1])
        for own, keys, full in zip(
            row.query_tiles, row.key_tiles, row.full if row.full is not None else [None], strict=True
        ):
            queries[own] += 1
            assert torch.equal(seen[own].any(0).nonzero()[:, 0], keys.sort().values)
            assert full is None or whole[own][:, keys[:full]].all()
    assert (queries == 1).all()
    assert max(sizes) == size


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches of calls whose rows were worked out anew."""
    batches: list[int] = []
    original = gather._Work._make_chunks

    def watched(work: Any, width: int) -> Any:
        batches.append(work.batch)
        return original(work, width)

    monkeypatch.setattr(gather._Work, "_make_chunks", watched)
    return batches


def test_what_is_worked_out_for_a_layout_is_kept(made: list[int], monkeypatch: pytest.MonkeyPatch):
    grid, pattern = Grid(4, 9, 7), SlidingTile((2, 3, 4), (1, 3, 1))
    options: Any = dict(pattern=pattern, grid=grid, num_extra_tokens=2, backend="gather")
    kept = gather._kept._kept.setdefault(pattern.plan(grid, 3, 2), {})
    order = pattern.order(grid)
    for turn in range(2):
        for batch in range(1, 8):
            tensors = inputs(grid, 2, batch, seed=turn)
            expected = reference(tensors, pattern, grid, 2)
            assert (sparse_attention(*tensors, **options) - expected).abs().max() <= 1e-5
            arranged: Any = [order.arrange(x, 2) for x in tensors]
            out = order.restore(sparse_attention(*arranged, order="tile", **options), 2)
            assert (out - expected).abs().max() <= 1e-5
            before = len(made)
            assert (sparse_attention(*tensors, **options) - expected).abs().max() <= 1e-5
            assert len(made) == before
            assert len(kept) <= gather._MAX_CALLS
    tensors = inputs(grid, 2)
    for masks in (torch.tensor([[True, False], [True, True]]), torch.tensor([[False, False], [False, True]])):
        expected = reference(tensors, pattern, grid, 2, masks)
        assert (sparse_attention(*tensors, extra_mask=masks, **options) - expected).abs().max() <= 1e-5
    monkeypatch.setattr(gather, "_MAX_KEPT", 100)
    kept.clear()
    sparse_attention(*tensors, **options)
    assert not kept


def test_a_mask_of_extra_tokens_is_known_again(made: list[int]):
    grid, pattern = Grid(4, 9, 7), SlidingTile((2, 3, 4), (1, 3, 1))
    options: Any = dict(pattern=pattern, grid=grid, num_extra_tokens=2, backend="gather")
    tensors = inputs(grid, 2)
    longer = torch.tensor([[[True, True, False]], [[True, True, True]]])

    def is_right(mask: torch.Tensor) -> int:
        expected = reference(tensors, pattern, grid, 2, mask)
        assert (sparse_attention(*tensors, extra_mask=mask, **options) - expected).abs().max() <= 1e-5
        return len(made)

    before = is_right(longer[:, 0, 1:])
    assert is_right(longer[:, 0, 1:]) == before  # sliced anew, as the blocks of a transformer do
    assert is_right(longer[:, 0, :2]) == before + 1  # another part of it
    assert is_right(longer[:, 0, :2]) == before + 1
    longer[0, 0, 0] = False
    assert is_right(longer[:, 0, :2]) == before + 2  # written to
    assert is_right(longer[:, 0, :2].clone()) == before + 3
    with torch.inference_mode():
        mask = torch.tensor([[True, False], [True, True]])
        assert is_right(mask) == before + 4
        mask[0, 1] = True
        assert is_right(mask) == before + 5


def test_space_is_used_again_and_gives_what_is_asked():
    space, x = Buffers(), torch.arange(12.0).view(3, 2, 2)
    first = space.select("key", x, torch.tensor([2, 0]))
    assert torch.equal(first, x[[2, 0]])
    again = space.select("key", x, torch.tensor([1]))
    assert torch.equal(again, x[[1]])
    assert again.data_ptr() == first.data_ptr()
    larger = space.select("key", x, torch.tensor([1, 1, 0]))
    assert torch.equal(larger, x[[1, 1, 0]])
    wide = space.to("wide", x.bfloat16(), torch.float32)
    assert torch.equal(wide, x)
    assert wide.dtype == torch.float32
    assert space.to("wide", x, torch.float32) is x
