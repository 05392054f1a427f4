"""Sparse attention in diffusers' transformers, against the stock ones and against dense masked attention."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention import (
    Full,
    Grid,
    Pattern,
    SlidingTile,
    Spatial,
    TileTopK,
    Window,
    apply_sparse_attention,
    schedule,
)
from kinema.generation.attention.plugin.ltx import grid_of_coordinates
from plugging import CASES, FIRST, PATTERNS, RAGGED, TILED, Case, assert_near, masked, plans


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(params=FIRST)
def family(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(autouse=True)
def _fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged tiles stay in order through the blocks, however many slots are empty."""
    monkeypatch.setattr(schedule, "_MAX_FILL", 100.0)


@torch.no_grad()
def test_full_pattern_is_the_stock_transformer(case: Case) -> None:
    model = case.make()
    stock = case.run(model)
    apply_sparse_attention(model, Full())
    assert torch.equal(case.run(model), stock)


@torch.no_grad()
@pytest.mark.parametrize("pattern", [Window(size=(9, 9, 9)), SlidingTile(tile=(2, 3, 3), window=(3, 3, 3))])
def test_window_over_all_is_the_stock_transformer(case: Case, pattern: Pattern) -> None:
    model = case.make()
    stock = case.run(model)
    apply_sparse_attention(model, pattern)
    assert_near(case.run(model), stock)


@torch.no_grad()
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
def test_sparse_is_dense_with_a_mask(case: Case, patterns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.make()
    stock = case.run(model)
    with masked(monkeypatch, model, patterns):
        expected = case.run(model)
    apply_sparse_attention(model, patterns)
    seen = plans(model)
    out = case.run(model)
    assert_near(out, expected)
    assert (out - stock).abs().max() > 1e-2
    # The order is that of most blocks, but for blocks that know the first frame by its place.
    is_in_order = getattr(model.config, "image_condition_type", None) != "token_replace" and patterns[0] != Spatial()
    assert (seen[0].order is not None) == is_in_order


@torch.no_grad()
def test_dynamic_pattern_that_sees_all_is_the_stock_transformer(family: Case) -> None:
    model = family.make()
    stock = family.run(model)
    apply_sparse_attention(model, TileTopK(tile=(2, 3, 4), k=100))
    assert_near(family.run(model), stock)


@torch.no_grad()
def test_order_that_would_fill_up_too_much_is_left_to_the_blocks(family: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family.make()
    apply_sparse_attention(model, RAGGED)
    seen, expected = plans(model), family.run(model)
    monkeypatch.undo()
    out = family.run(model)
    assert [plan.order is None for plan in seen] == [False, True]
    assert_near(out, expected)


def gradients(model: Any, *losses: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.stack([loss.square().mean() for loss in losses]).sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_gradient_checkpointing(family: Case) -> None:
    """Each forward is computed again by its own plan, though another one came between."""
    model = family.make().train()

    def losses() -> list[Tensor]:
        apply_sparse_attention(model, RAGGED)
        first = family.run(model)
        apply_sparse_attention(model, (TILED, Full()))
        return [first, family.run(model)]

    expected = gradients(model, *losses())
    model.enable_gradient_checkpointing()
    for a, b in zip(gradients(model, *losses()), expected, strict=True):
        assert_near(a, b)


def test_gradients_are_those_of_dense_attention_with_a_mask(family: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family.make()
    with masked(monkeypatch, model, (RAGGED,)):
        expected = gradients(model, family.run(model))
    apply_sparse_attention(model, RAGGED)
    for a, b in zip(gradients(model, family.run(model)), expected, strict=True):
        assert_near(a, b, rtol=1e-4)


def test_ltx_without_its_size_is_refused() -> None:
    case = CASES["ltx"]
    model = case.make()
    apply_sparse_attention(model, TILED)
    mistakes: list[tuple[dict[str, Any], str]] = [
        (dict(height=None), "`num_frames`, `height`"),
        (dict(height=5), "`hidden_states` .with 72"),
    ]
    for changes, named in mistakes:
        with pytest.raises(KinemaError, match=named):
            case.run(model, **changes)


def test_coordinates_out_of_order_are_refused() -> None:
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (2, 3, 4)), indexing="ij")).flatten(1).float()
    assert grid_of_coordinates(coordinates, 24) == (Grid(2, 3, 4), 0)
    with pytest.raises(KinemaError, match="raster order"):
        grid_of_coordinates(coordinates.view(3, 2, 3, 4).mT.flatten(1), 24)
    with pytest.raises(KinemaError, match="frames of"):
        grid_of_coordinates(coordinates[:, :-1], 23)
