"""Token reduction in diffusers' transformers, against the same reduction put into the stock attention."""

from typing import Any

import pytest
import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention import TokenReduction, apply_sparse_attention, remove_sparse_attention
from kinema.generation.attention.plugin import TRANSFORMER_FAMILIES
from plugging import CASES, FIRST, GRID, Case, assert_near, has_leading, replaced


@pytest.fixture(params=FIRST)
def family(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def reduced(reduction: TokenReduction, model: Any) -> Any:
    """The reduction as the attention of blocks, with extra tokens where the model has them."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        extra = key.shape[2] - GRID.num_tokens
        shift = extra if has_leading(model) else 0
        query, key, value = (x.roll(-shift, 2) for x in (query, key, value))
        there = None if mask is None else mask[:, 0, 0, -extra:]
        return reduction(query, key, value, GRID, num_extra_tokens=extra, extra_mask=there, layer=layer).roll(shift, 2)

    return attend


@torch.no_grad()
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reduction_is_that_of_the_stock_attention(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model = case.make()
    stock = case.run(model)
    reduction = TokenReduction(0.3, 0.5)
    with replaced(monkeypatch, model, reduced(reduction, model)):
        expected = case.run(model)
    apply_sparse_attention(model, reduction)
    out = case.run(model)
    assert_near(out, expected)
    assert (out - stock).abs().max() > 1e-2
    remove_sparse_attention(model)
    assert torch.equal(case.run(model), stock)


@torch.no_grad()
def test_nothing_merged_is_the_stock_transformer(family: Case) -> None:
    model = family.make()
    stock = family.run(model)
    apply_sparse_attention(model, TokenReduction(0.0, 0.0))
    assert_near(family.run(model), stock)


@torch.no_grad()
def test_dense_steps_and_layers_are_not_reduced(family: Case) -> None:
    model = family.make()
    num_layers = len(TRANSFORMER_FAMILIES[type(model).__name__].attentions(model))
    stock = [family.run(model, timestep=torch.full((2,), t)) for t in (900, 700)]
    apply_sparse_attention(model, TokenReduction(), dense_steps=1)
    assert_near(family.run(model, timestep=torch.full((2,), 900)), stock[0])
    assert (family.run(model, timestep=torch.full((2,), 700)) - stock[1]).abs().max() > 1e-2
    apply_sparse_attention(model, TokenReduction(), dense_layers=num_layers)
    assert torch.equal(family.run(model, timestep=torch.full((2,), 900)), stock[0])


@torch.no_grad()
def test_matchings_are_kept_for_some_steps_of_a_sampling(family: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance asks twice a step; another sampling begins anew; two transformers have matchings of their own."""
    made: list[int] = []
    original = TokenReduction._matching

    def watched(self: TokenReduction, *arguments: Any) -> Any:
        before = dict(self._cache)
        matching = original(self, *arguments)
        made.append(self._cache != before)
        return matching

    monkeypatch.setattr(TokenReduction, "_matching", watched)
    reduction = TokenReduction(keep_for=2)
    models = [family.make(), family.make()]
    apply_sparse_attention(models, reduction)
    per_step: list[int] = []
    for timestep, model in ((900, 0), (900, 0), (700, 0), (600, 0), (500, 1), (900, 0), (900, 0)):
        made.clear()
        family.run(models[model], timestep=torch.full((2,), timestep))
        assert all(made) or not any(made)
        per_step.append(all(made))
    assert per_step == [True, False, False, True, True, True, False]
    assert not reduction._cache, "what the user holds is not written to"


@torch.no_grad()
def test_samplings_of_one_step_begin_anew(family: Case) -> None:
    model = family.make()
    apply_sparse_attention(model, TokenReduction(), num_steps=1)
    changed = {name: x.roll(1, 0) if name == "hidden_states" else x for name, x in family.inputs(2).items()}
    expected = family.run(model, **changed)
    apply_sparse_attention(model, TokenReduction(), num_steps=1)
    family.run(model)
    assert torch.equal(family.run(model, **changed), expected)


def test_rates_leave_the_tokens_of_the_stride() -> None:
    with pytest.raises(KinemaError, match=r"`key_rate` \(=0.5\) must be at most 0.000: `stride` \(=\(1, 1, 1\)\)"):
        TokenReduction(0.0, 0.5, stride=(1, 1, 1))
