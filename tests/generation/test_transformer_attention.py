"""The transformer with patterns: what its blocks see, in whatever order its tokens stand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attending import dynamic, static
from kinema.errors import KinemaError
from kinema.generation.attention import (
    DynamicPattern,
    Grid,
    PatternSchedule,
    SlidingTile,
    Spatial,
    StaticPattern,
    Temporal,
    TileTopK,
    coarse_attention,
    parse_patterns,
    schedule,
)
from kinema.generation.attention.grid import tile_order
from kinema.generation.transformer import layers
from kinema.generation.transformer.model import VideoTransformer

GRID = (5, 3, 4)


def randomised(**overrides: Any) -> VideoTransformer:
    torch.manual_seed(0)
    model = VideoTransformer.from_preset("tiny", **{"text_vocab_size": 11, "num_layers": 3, **overrides}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def model() -> VideoTransformer:
    return randomised()


def example(grid: tuple[int, int, int] = GRID, timestep: str = "clip") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    tokens = grid[0] * grid[1] * grid[2]
    timesteps = {
        "clip": torch.tensor([100.0, 900.0]),
        "step": torch.arange(grid[0]).repeat_interleave(tokens // grid[0]).expand(2, -1) * 100.0,
        "token": torch.rand(2, tokens, generator=generator) * 1000,
    }
    return {
        "hidden_states": torch.randn(2, 4, *grid, generator=generator),
        "timestep": timesteps[timestep],
        "encoder_hidden_states": torch.arange(10).view(2, 5),
        "encoder_attention_mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    }


def run(model: VideoTransformer, patterns: Any, **inputs: Any) -> Tensor:
    model.set_attention(patterns)
    try:
        with torch.no_grad():
            return model(**inputs).sample
    finally:
        model.set_attention(None)


def masked_run(model: VideoTransformer, masks: Sequence[Tensor | DynamicPattern], **inputs: Any) -> Tensor:
    """The stock forward pass in raster order, self-attention replaced by one with a mask for each block, or by what a
    dynamic pattern's reference makes of its queries and keys."""
    tokens = Grid(*GRID).num_tokens
    turn = iter([*masks] * 10)
    original = layers.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        if query.shape[1] != tokens or key.shape[1] != tokens:
            return original(query, key, value, mask)
        scores = torch.einsum("bqke,bmke->bkqm", query, key) * query.shape[-1] ** -0.5
        seen = next(turn)
        if isinstance(seen, DynamicPattern):
            seen = seen.mask(Grid(*GRID), query.transpose(1, 2), key.transpose(1, 2), value=value.transpose(1, 2))
        scores = scores.masked_fill(~seen, -torch.inf)
        return torch.einsum("bkqm,bmke->bqke", scores.softmax(-1), value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "attend", attend)
        return run(model, None, **inputs)


@settings(max_examples=25, deadline=None)
@given(make=static, other=static, timestep=st.sampled_from(["clip", "step", "token"]))
def test_blocks_see_what_their_patterns_say(model: VideoTransformer, make: Callable, other: Callable, timestep: str):
    """Tokens stand in the order of the first pattern, whose tiles may be ragged; the second has another."""
    patterns: list[StaticPattern] = [make(), other()]
    inputs = example(timestep=timestep)
    masks = [patterns[i % 2].mask(Grid(*GRID)) for i in range(3)]
    expected = masked_run(model, masks, **inputs)
    assert (run(model, patterns, **inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=10, deadline=None)
@given(make=dynamic)
def test_dynamic_patterns_run_in_any_order(model: VideoTransformer, make: Callable):
    """In the pattern's own order and, behind a pattern of another order, out of it."""
    pattern, other, inputs = make(), SlidingTile((2, 2, 2), (1, 1, 1)), example()
    for patterns, masks in (([pattern], [pattern]), ([other, pattern], [other.mask(Grid(*GRID)), pattern])):
        expected = masked_run(model, [masks[i % len(masks)] for i in range(3)], **inputs)
        assert (run(model, patterns, **inputs) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("timestep", ["clip", "step", "token"])
def test_density_one_is_the_model_itself(model: VideoTransformer, timestep: str):
    inputs = example(timestep=timestep)
    dense = run(model, None, **inputs)
    for patterns in ("full", "sliding-tile:9x9x9,tile=2x2x3", "tile-top-k:99,tile=2x2x3", "window:5x3x4"):
        assert (run(model, patterns, **inputs) - dense).abs().max() <= 1e-5 * dense.abs().max()
    assert (run(model, "spatial+temporal", **inputs) - dense).abs().max() > 1e-3


@pytest.mark.parametrize("fill", [0.0, 100.0], ids=["raster", "filled-up"])
@pytest.mark.parametrize("patterns", [None, "tile-top-k:2,tile=2x2x2", "sliding-tile:1x1x1,tile=1x2x2", "temporal"])
def test_the_coarse_branch_is_added_in_any_order(patterns: str | None, fill: float, monkeypatch: pytest.MonkeyPatch):
    """Beside any pattern, the gated attention of tiles' means is the same; as a dense reference has it."""
    monkeypatch.setattr(schedule, "_MAX_FILL", fill)
    gated = randomised(coarse_tile=(2, 2, 2), num_layers=1)
    inputs = example()
    seen: list[Tensor] = []
    attention: Any = gated.blocks[0].self_attention
    attention.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def summed(gate: float) -> Tensor:
        linear = attention.coarse_gate
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.fill_(gate)
        run(gated, patterns, **inputs)
        return seen.pop()

    added = summed(1.0) - summed(0.0)
    order = tile_order(Grid(*GRID), (2, 2, 2))
    stock: list[Tensor] = []
    original = layers.attend

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        if query.shape[1] == key.shape[1] == 60:
            arranged: Any = (order.arrange(x.transpose(1, 2), 2) for x in (query, key, value))
            stock.append(order.restore(coarse_attention(*arranged, order=order), 2).transpose(1, 2).flatten(2))
        return original(query, key, value, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "attend", attend)
        run(gated, None, **inputs)
    own = None if patterns is None else schedule.common_order(Grid(*GRID), parse_patterns(patterns))
    added = added if own is None else own.restore(added, 1)
    assert (added - stock[0]).abs().max() <= 1e-5


def test_a_new_gate_is_closed():
    """A dense model gets the branch later: zero gates change nothing at first."""
    model = VideoTransformer.from_preset("tiny", text_vocab_size=11, coarse_tile=(2, 2, 2))
    assert all((block.self_attention.coarse_gate.weight == 0).all() for block in model.blocks)  # pyright: ignore
    with pytest.raises(KinemaError, match=r"`coarse_tile` \(=\(2, 0, 2\)\)"):
        VideoTransformer.from_preset("tiny", text_vocab_size=11, coarse_tile=(2, 0, 2))


def test_gradients_flow_through_tiles_and_checkpoints():
    grads = []
    for patterns, checkpoints in (
        (None, False),
        ("tile-top-k:99,tile=2x2x3", False),
        ("sliding-tile:9x9x9,tile=2x2x3", True),
    ):
        model = randomised(attention=patterns).train()
        if checkpoints:
            model.enable_gradient_checkpointing()
        model(**example()).sample.square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for others in grads[1:]:
        for grad, dense in zip(others, grads[0], strict=True):
            assert dense is not None
            assert grad is not None
            assert (grad - dense).abs().max() <= 1e-4 * max(1.0, dense.abs().max().item())


def test_steps_and_layers_that_are_dense(model: VideoTransformer):
    inputs = example()
    sparse = SlidingTile((2, 2, 2), (1, 1, 1))
    schedule = PatternSchedule((sparse,), dense_steps=(1, 1), dense_layers=(0,))
    dense = run(model, None, **inputs)
    masks = [torch.ones(60, 60, dtype=torch.bool), *[sparse.mask(Grid(*GRID))] * 2]
    expected = masked_run(model, masks, **inputs)
    for step, wanted in ((0, dense), (1, expected), (4, dense)):
        assert (run(model, schedule, **inputs, step=step, num_steps=5) - wanted).abs().max() <= 1e-5
    with pytest.raises(KinemaError, match="`num_steps`"):
        run(model, schedule, **inputs, step=1)


def test_a_model_keeps_its_attention_when_saved(tmp_path):
    model = randomised(attention="spatial+temporal")
    inputs = example()
    with torch.no_grad():
        expected = model(**inputs).sample
        model.save_pretrained(tmp_path)
        loaded = VideoTransformer.from_pretrained(tmp_path)
        assert torch.equal(loaded(**inputs).sample, expected)
    assert loaded.config["attention"] == "spatial+temporal"
    stock = randomised()
    stock.load_state_dict(model.state_dict())
    assert (run(stock, [Spatial(), Temporal()], **inputs) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("tiles", "`pattern`"),
        (SlidingTile(window=((1, 1, 1), (1, 1, 1), (1, 1, 1))), r"is for 3 heads, .* there are: 2"),
        (PatternSchedule((Spatial(),), dense_layers=(3,)), r"`dense_layers` \(with 3\)"),
        ([], r"`patterns` \(=\(\)\)"),
    ],
)
def test_mistakes_are_named_when_set(model: VideoTransformer, patterns: Any, message: str):
    with pytest.raises(KinemaError, match=message):
        model.set_attention(patterns)
    with pytest.raises(KinemaError, match=r"`backend` \(=fast\)"):
        model.set_attention(Spatial(), backend="fast")


def test_the_pipeline_counts_steps(make_pipeline):
    pipeline = make_pipeline(num_layers=1)
    seen: list[tuple[int, int]] = []
    original = pipeline.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["step"], kwargs["num_steps"]))
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.transformer, "forward", forward)
        pipeline(["a red car"], num_inference_steps=3, guidance_scale=2.0, output_type="latent")
    assert seen == [(0, 3), (0, 3), (1, 3), (1, 3), (2, 3), (2, 3)]


def test_pipelines_generate_with_patterns(make_pipeline):
    pipeline = make_pipeline()
    options = {"num_inference_steps": 2, "output_type": "latent"}

    def generate(patterns: Any) -> Tensor:
        pipeline.transformer.set_attention(patterns)
        return pipeline(["a red car"], generator=torch.Generator().manual_seed(0), **options).frames

    dense = generate(None)
    assert torch.allclose(generate(TileTopK(share=1.0, tile=(2, 2, 2))), dense, atol=1e-5)
    assert (generate(parse_patterns("spatial+temporal")) - dense).abs().max() > 1e-3
