"""Sparse attention in diffusers' transformers beside what else is done to them: steps, adapters, caches, mistakes."""

import copy
import sys
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention import (
    PatternSchedule,
    SlidingTile,
    Window,
    apply_sparse_attention,
    remove_sparse_attention,
)
from kinema.generation.attention.plugin import TRANSFORMER_FAMILIES
from kinema.generation.attention.plugin import apply as plugin_apply
from kinema.generation.attention.plugin.forward import StepCounter
from plugging import CASES, FIRST, GRID, TILED, Case, assert_near, plans


@pytest.fixture(params=FIRST)
def family(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@torch.no_grad()
def test_removing_brings_back_what_was_there(family: Case) -> None:
    model = family.make()
    processors, stock = model.attn_processors, family.run(model)
    for _ in range(2):
        apply_sparse_attention(model, TILED)
    handles = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    # One before and one behind the transformer, one before the output, and those at the entries.
    assert sum(handles) == 3 + len(TRANSFORMER_FAMILIES[type(model).__name__].entries(model))
    for _ in range(2):
        remove_sparse_attention(model)
    assert model.attn_processors == processors
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(family.run(model), stock)


@torch.no_grad()
def test_applying_again_replaces(family: Case) -> None:
    model = family.make()
    apply_sparse_attention(model, TILED)
    expected = family.run(model)
    apply_sparse_attention(model, "spatial+temporal")
    assert (family.run(model) - expected).abs().max() > 1e-2
    apply_sparse_attention(model, TILED)
    assert torch.equal(family.run(model), expected)


@torch.no_grad()
def test_copies_are_independent(family: Case) -> None:
    model = family.make()
    stock = family.run(model)
    apply_sparse_attention(model, TILED)
    sparse = family.run(model)
    other = copy.deepcopy(model)
    assert torch.equal(family.run(other), sparse)
    remove_sparse_attention(model)
    assert torch.equal(family.run(other), sparse)
    remove_sparse_attention(other)
    assert torch.equal(family.run(other), stock)


class LowRank(torch.nn.Module):
    """A linear layer with an adapter, as LoRA puts in its place."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 2)
        self.up = torch.nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@torch.no_grad()
def test_adapters_work(family: Case) -> None:
    model = family.make()
    apply_sparse_attention(model, Window(size=(9, 9, 9)))
    before = family.run(model)
    for attention in TRANSFORMER_FAMILIES[type(model).__name__].attentions(model):
        attention.to_q, attention.to_v = LowRank(attention.to_q), LowRank(attention.to_v)
    out = family.run(model)
    remove_sparse_attention(model)
    assert_near(out, family.run(model))
    assert (out - before).abs().max() > 1e-2


def bfloat16_errors(family: Case, *patterns: Any) -> list[Tensor]:
    """Distances to float32 under autocast, and with weights in bfloat16."""
    model = family.make()
    if patterns:
        apply_sparse_attention(model, patterns)
    expected = family.run(model)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = family.run(model)
    model.to(torch.bfloat16)
    torch.manual_seed(1)
    inputs = {
        name: x.bfloat16() if isinstance(x, Tensor) and x.dtype == torch.float32 and name != "timestep" else x
        for name, x in family.inputs(2).items()
    }
    stored = model(**inputs, return_dict=False)[0]
    assert stored.dtype == torch.bfloat16
    return [(out.float() - expected).std() for out in (autocast, stored)]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch: RMSNorm under autocast
def test_bfloat16_is_as_near_as_in_the_stock_transformer(family: Case) -> None:
    for sparse, stock in zip(bfloat16_errors(family, TILED), bfloat16_errors(family), strict=True):
        assert 0 < sparse < 2 * stock


@torch.no_grad()
def test_fused_projections(family: Case) -> None:
    model = family.make()
    apply_sparse_attention(model, TILED)
    expected = family.run(model)
    remove_sparse_attention(model)
    model.fuse_qkv_projections()
    fused = model.attn_processors
    apply_sparse_attention(model, TILED)
    assert_near(family.run(model), expected)
    remove_sparse_attention(model)
    assert model.attn_processors == fused


@torch.no_grad()
def test_other_processors_are_refused_at_the_next_forward() -> None:
    case = CASES["cogvideox"]
    model = case.make()
    apply_sparse_attention(model, TILED)
    model.fuse_qkv_projections()
    with pytest.raises(KinemaError, match="must be applied again"):
        case.run(model)
    apply_sparse_attention(model, TILED)
    case.run(model)


@torch.no_grad()
def test_dense_attention_keeps_its_backend() -> None:
    case = CASES["wan"]
    model = case.make()
    apply_sparse_attention(model, TILED, dense_layers=1)
    expected = case.run(model)
    model.set_attention_backend("_native_math")
    assert_near(case.run(model), expected)
    remove_sparse_attention(model)
    names = {getattr(processor._attention_backend, "value", None) for processor in model.attn_processors.values()}
    assert names == {"_native_math"}


@torch.no_grad()
def test_caches_keep_raster_order(family: Case) -> None:
    model = family.make()
    apply_sparse_attention(model, TILED, dense_steps=1)
    expected = [family.run(model, timestep=torch.full((2,), t)) for t in (900.0, 800.0)]
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    seen = plans(model)
    with model.cache_context("cond"):
        outs = [family.run(model, timestep=torch.full((2,), t)) for t in (900.0, 800.0)]
    assert [plan.order for plan in seen] == [None, None]
    assert_near(outs, expected)


@torch.no_grad()
def test_offloaded_weights(family: Case) -> None:
    """Hooks that move arguments rebuild them; the plan comes through."""
    model = family.make()
    apply_sparse_attention(model, TILED)
    expected = family.run(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert_near(family.run(model), expected)


def test_steps_are_counted_by_timesteps() -> None:
    counter = StepCounter()
    steps = [counter.step(torch.tensor([t])) for t in (999.0, 999.0, 700.0, 700.0, 5.0, 5.0, 999.0, 700.0)]
    assert steps == [0, 0, 1, 1, 2, 2, 0, 1]
    assert counter.step(3) == 2
    # Given tokens are at a low timestep; the others tell.
    assert counter.step(torch.tensor([[0, 0, 2.0, 2.0]] * 2)) == 3
    # Clips with timesteps of their own are no sampling, and do not count.
    assert counter.step(torch.tensor([900.0, 100.0])) is None
    assert counter.step(torch.tensor(1)) == 4


def at(timestep: float) -> dict[str, Any]:
    return dict(timestep=torch.full((2,), timestep))


@torch.no_grad()
def test_dense_steps_and_layers(family: Case) -> None:
    model = family.make()
    stock = [family.run(model, **at(t)) for t in (900, 600, 300)]
    apply_sparse_attention(model, TILED, dense_steps=(1, 1), num_steps=3)
    for _ in range(2):
        same = [torch.equal(family.run(model, **at(t)), out) for t, out in zip((900, 600, 300), stock, strict=True)]
        assert same == [True, False, True]
    num_layers = len(TRANSFORMER_FAMILIES[type(model).__name__].attentions(model))
    apply_sparse_attention(model, PatternSchedule((TILED,), dense_layers=tuple(range(num_layers))))
    assert torch.equal(family.run(model, **at(900)), stock[0])
    apply_sparse_attention(model, TILED, min_tokens=GRID.num_tokens + 1)
    assert torch.equal(family.run(model, **at(900)), stock[0])
    apply_sparse_attention(model, TILED, dense_steps=100)
    model.train()
    assert not torch.equal(family.run(model, **at(900)), stock[0])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"transformer": torch.nn.Linear(1, 1)}, "`transformer` .=Linear. must be one of WanTransformer3DModel, LTX"),
        ({"transformer": []}, "`transformer`"),
        ({"pattern": "sliding"}, "`pattern` .=sliding. must begin with"),
        ({"pattern": ()}, "`patterns`"),
        ({"pattern": SlidingTile(window=((1, 1, 1),) * 3)}, "is for 3 heads, .* there are: 2"),
        ({"pattern": PatternSchedule((TILED,)), "dense_layers": 1}, "`dense_layers` .=1. must be left out"),
        ({"dense_layers": (3,)}, "`dense_layers` .with 3. must lie"),
        ({"dense_steps": -1}, "`dense_steps`"),
        ({"dense_steps": (1, 1)}, "`num_steps` .=None. must be given"),
        ({"num_steps": 0}, "`num_steps` .=0. must be"),
        ({"min_tokens": -1}, "`min_tokens`"),
        ({"backend": "fast"}, "`backend` .=fast. must be one of auto"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_found_before_any_change(arguments: dict[str, Any], named: str) -> None:
    model = CASES["wan"].make()
    processors = model.attn_processors
    with pytest.raises(KinemaError, match=named):
        apply_sparse_attention(**{"transformer": model, "pattern": TILED, **arguments})
    assert model.attn_processors == processors
    assert not model._forward_pre_hooks


def test_a_family_is_added_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wan, families = CASES["wan"].make(), TRANSFORMER_FAMILIES["WanTransformer3DModel"], {}
    monkeypatch.setattr(plugin_apply, "TRANSFORMER_FAMILIES", families)
    with pytest.raises(KinemaError, match=r"`transformer` .=WanTransformer3DModel. must be one of"):
        apply_sparse_attention(model, TILED)
    families["ModelMixin"] = wan  # a base class of the model
    apply_sparse_attention(model, TILED)
    assert all(attention.processor.stock for attention in wan.attentions(model))


def test_the_plugin_imports_no_family() -> None:
    modules = [module for name, module in sys.modules.items() if name.startswith("kinema.generation.attention.plugin")]
    assert len(modules) > len(TRANSFORMER_FAMILIES)
    for module in modules:
        origins = {getattr(value, "__module__", None) or "" for value in vars(module).values()}
        assert not any(origin.startswith("diffusers") for origin in origins), module
