"""FlexAttention: its block masks, and what is done where its kernels are wrong, missing or slow."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention

from attending import extra_masks, grids, inputs, patterns, reference
from kinema.errors import KinemaError
from kinema.generation.attention import (
    Band,
    Grid,
    Pattern,
    Radial,
    SlidingTile,
    TileTopK,
    sparse_attention,
)
from kinema.generation.attention.backends import BackendFailed, flex
from kinema.machine import missing_compiler


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
    if device == "cpu" and missing_compiler(torch.device("cpu")):
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
        patch.setattr(flex, "missing_compiler", lambda _: None)
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
        monkeypatch.setattr(flex, "missing_compiler", lambda _: None)
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
