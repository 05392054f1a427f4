"""What a pattern is said to save: by hand, by torch's counter on models, and by Amdahl; and the picture of it."""

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from attending import dynamic, grids, static
from kinema.errors import KinemaError
from kinema.flops import FlopCounter
from kinema.generation.attention import (
    Band,
    BlockCausal,
    Full,
    Grid,
    PatternSchedule,
    PerHead,
    Radial,
    ShiftedWindow,
    SlidingTile,
    Spatial,
    SpatialTemporalHeads,
    StaticPattern,
    Temporal,
    TileTopK,
)
from kinema.generation.attention.architectures import Architecture, find_architecture
from kinema.generation.attention.picture import draw_masks, head_views
from kinema.generation.attention.report import attention_report

GRID = Grid(2, 2, 2)
SMALL = Architecture(dim=8, num_layers=2, num_heads=2, ffn_dim=16, text_tokens=3)
# Of a block on 8 tokens. Scores and sums: 2 · 2 · 8² · 8 FLOPs. Self-attention's four 8 × 8 matrices and two 8 × 16 for
# 8 tokens; two 8 × 8 for 8 tokens and two for 3 of text; cross-attention of 8 tokens to 3.
ATTENTION = 2 * 2 * 8**2 * 8
OTHER = 2 * 8 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 8 * 8 * (8 + 3) + 2 * 2 * 8 * 3 * 8


def test_dense_attention_by_hand():
    report = attention_report(Full(), GRID, SMALL)
    assert (report.tokens, report.density, report.tile_density, report.is_exact) == (8, 1.0, 1.0, True)
    assert (report.attention_flops, report.sparse_attention_flops) == (2 * ATTENTION, 2 * ATTENTION)
    assert (report.other_flops, report.flops_saved, report.speedup) == (2 * OTHER, 0, 1.0)
    assert report.attention_share == pytest.approx(ATTENTION / (ATTENTION + OTHER))
    assert report.max_speedup == pytest.approx((ATTENTION + OTHER) / OTHER)


def test_text_within_self_attention():
    """Pairs with text are computed whatever the pattern."""
    joint = replace(SMALL, is_joint=True)
    assert joint.attention_flops(8) == 2 * 2 * (8 + 3) ** 2 * 8
    assert joint.attention_flops(8, 0.5) == 2 * 2 * ((8 + 3) ** 2 - 32) * 8
    assert joint.other_flops(8) == 2 * (8 + 3) * (4 * 8 * 8 + 2 * 8 * 16)


def test_dense_layers_and_steps_count():
    """Spatial attention sees half; it runs in one of two layers, and in two of four steps."""
    report = attention_report(
        PatternSchedule((Spatial(),), dense_layers=1, dense_steps=(1, 1)), GRID, SMALL, num_steps=4, efficiency=0.5
    )
    assert (report.density, report.dense_layers, report.dense_steps) == (0.5, 1, 2)
    assert report.sparse_attention_flops == 2 * ATTENTION * (6 / 8 + 2 / 8 / 2)
    assert report.flops_saved == report.attention_flops - report.sparse_attention_flops
    # At half the speed half of the pairs take as long as all of them.
    assert report.speedup == pytest.approx(1.0)
    by_number = attention_report(PatternSchedule((Spatial(),), dense_layers=(-1, 1)), GRID, SMALL)
    assert by_number.dense_layers == 1


def test_blocks_take_patterns_in_turns():
    report = attention_report([Spatial(), Full()], GRID, SMALL)
    assert report.density == 0.75
    assert [text for text, _ in report.patterns] == ["spatial", "full"]
    changing = PatternSchedule((Full(),), by_step=((1, (Spatial(),)),))
    assert attention_report(changing, GRID, SMALL, num_steps=4).density == pytest.approx((1 + 3 * 0.5) / 4)
    short = PatternSchedule((Spatial(),), min_tokens=9)
    assert attention_report(short, GRID, SMALL).speedup == 1.0


@settings(max_examples=50, deadline=None)
@given(grid=grids, make=static, efficiency=st.floats(0.1, 2.0))
def test_gain_is_amdahls(grid: Grid, make: Callable, efficiency: float):
    pattern = make()
    report = attention_report(pattern, grid, SMALL, efficiency=efficiency)
    a, d = report.attention_share, report.tile_density
    efficiency = 1 if isinstance(pattern, Full) else efficiency
    assert report.speedup == pytest.approx(1 / (1 - a + a * d / efficiency))
    assert report.density == pytest.approx(pattern.density(grid))
    assert report.sparse_attention_flops == pytest.approx(d * report.attention_flops)


def test_heads_have_a_row_each():
    pattern = PerHead((SlidingTile((1, 1, 1), (1, 1, 1)), SlidingTile((1, 1, 1), (3, 3, 3))))
    report = attention_report(pattern, GRID, SMALL)
    ((text, rows),) = report.patterns
    name = "sliding-tile:1x1x1,tile=1x1x1&sliding-tile:3x3x3,tile=1x1x1"
    assert (text, [row.heads for row in rows]) == (name, ["0", "1"])
    assert [row.density for row in rows] == [1 / 8, 1.0]
    assert report.density == pytest.approx((1 / 8 + 1) / 2)
    head, *table = report.table().splitlines()
    assert head.split() == ["pattern", "heads", "density", "computed"]
    cut = f"{name[:53]}..."
    assert [line.split() for line in table[:2]] == [[cut, "0", "0.1250", "0.1250"], [cut, "1", "1.0000", "1.0000"]]


def test_what_queries_decide_is_a_bound():
    exact = attention_report(TileTopK(k=1, tile=(1, 2, 2)), GRID, SMALL)
    assert (exact.density, exact.is_exact) == (0.5, True)
    bound = attention_report(TileTopK(k=1, tile=(2, 2, 2)), Grid(3, 2, 2), SMALL)
    assert (bound.density, bound.is_exact) == (pytest.approx(2 / 3), False)
    assert "<= 0.6667" in bound.table()
    assert "at least" in bound.table()
    assert "at least" not in exact.table()


def test_report_as_json():
    report = attention_report(Radial(), Grid(5, 6, 7))
    facts = json.loads(json.dumps(report.as_dict()))
    keys = "grid model tokens num_layers num_heads dense_layers dense_steps num_steps efficiency density tile_density"
    keys += " is_exact attention_flops sparse_attention_flops other_flops flops_saved attention_share speedup"
    assert list(facts) == [*keys.split(), "max_speedup", "patterns"]
    assert (facts["grid"], facts["model"], facts["tokens"]) == ([5, 6, 7], "wan-1.3b", 210)
    assert facts["patterns"][0]["pattern"] == "radial:0.2"
    assert list(facts["patterns"][0]["heads"][0]) == ["heads", "density", "tile_density", "is_exact"]


def test_wan_at_720p():
    """81 frames of 720p: 75,600 tokens; about 80 % of Wan 1.3B's work is self-attention."""
    grid = find_architecture("wan-1.3b").grid(81, 720, 1280)
    assert grid == Grid(21, 45, 80)
    report = attention_report(SlidingTile((2, 8, 8), (3, 3, 3)), grid)
    assert report.attention_flops == 30 * 4 * 1536 * 75600**2
    assert report.attention_share == pytest.approx(0.843, abs=1e-3)
    # 11 × 6 × 10 tiles of 128 slots, of which each sees 27.
    assert report.tile_density == pytest.approx(660 * 27 * 128**2 / 75600**2)


@pytest.mark.parametrize(
    ("model", "clip", "grid"),
    [
        ("wan-14b", (81, 480, 832), Grid(21, 30, 52)),
        ("wan-5b", (121, 704, 1280), Grid(31, 22, 40)),
        ("hunyuan-video", (129, 720, 1280), Grid(33, 45, 80)),
        ("ltx-video", (121, 512, 768), Grid(16, 16, 24)),
        ("cogvideox-5b", (49, 480, 720), Grid(13, 30, 45)),
        ("wan-1.3b", (1, 8, 17), Grid(1, 1, 2)),
    ],
)
def test_tokens_of_clips(model: str, clip: tuple[int, int, int], grid: Grid):
    assert find_architecture(model).grid(*clip) == grid


def counted(model: nn.Module, blocks: dict[str, int], **inputs: Any) -> int:
    """FLOPs of a model's blocks without those of modulation."""
    with FlopCounter() as counter, torch.no_grad():
        model(**inputs)
    counts, total = counter.get_flop_counts(), 0
    for name, number in blocks.items():
        for index in range(number):
            block = f"{type(model).__name__}.{name}.{index}"
            names = [block, *(other for other in counts if other.startswith(f"{block}.norm") and ".linear" in other)]
            flops = [sum(counts[other].values()) for other in names]
            total += flops[0] - sum(flops[1:])
    return total


def expected(sizes: Architecture, num_tokens: int) -> float:
    return sizes.num_layers * (sizes.attention_flops(num_tokens) + sizes.other_flops(num_tokens))


def test_wan_costs_what_it_costs():
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16,
        ffn_dim=40, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    inputs = {"hidden_states": torch.zeros(1, 4, 3, 8, 4), "timestep": torch.ones(1)}
    flops = counted(model, {"blocks": 2}, **inputs, encoder_hidden_states=torch.zeros(1, 7, 10))
    assert flops == expected(Architecture(24, 2, 2, 40, 7), 3 * 4 * 2)


def test_ltx_costs_what_it_costs():
    from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=2, caption_channels=10,
    )  # fmt: skip
    inputs = {"hidden_states": torch.zeros(1, 24, 4), "timestep": torch.ones(1), "num_frames": 3, "height": 4}
    text = {"encoder_hidden_states": torch.zeros(1, 7, 10), "encoder_attention_mask": torch.ones(1, 7)}
    flops = counted(model, {"transformer_blocks": 2}, **inputs, width=2, **text)
    assert flops == expected(Architecture(16, 2, 2, 64, 7), 24)


def test_cogvideox_costs_what_it_costs():
    from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=4,
        text_embed_dim=10, num_layers=2, sample_width=4, sample_height=8, sample_frames=9, max_text_seq_length=7,
    )  # fmt: skip
    inputs = {"hidden_states": torch.zeros(1, 3, 4, 8, 4), "timestep": torch.ones(1)}
    flops = counted(model, {"transformer_blocks": 2}, **inputs, encoder_hidden_states=torch.zeros(1, 7, 10))
    assert flops == expected(Architecture(16, 2, 2, 64, 7, is_joint=True), 3 * 4 * 2)


def test_hunyuan_video_costs_what_it_costs():
    """Blocks of two streams and of one cost the same."""
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=2, num_refiner_layers=1, text_embed_dim=10, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    inputs = {"hidden_states": torch.zeros(1, 4, 3, 8, 4), "timestep": torch.ones(1), "guidance": torch.ones(1)}
    text = {"encoder_hidden_states": torch.zeros(1, 7, 10), "encoder_attention_mask": torch.ones(1, 7)}
    blocks = {"transformer_blocks": 1, "single_transformer_blocks": 2}
    flops = counted(model, blocks, **inputs, **text, pooled_projections=torch.zeros(1, 8))
    assert flops == expected(Architecture(20, 3, 2, 80, 7, is_joint=True), 3 * 4 * 2)


def test_kinemas_transformer_costs_what_it_costs():
    from kinema.generation.transformer.model import VideoTransformer

    model = VideoTransformer.from_preset("tiny", text_vocab_size=9)
    text = torch.zeros(1, 24, dtype=torch.long)
    latents = torch.zeros(1, 4, 2, 3, 4)
    flops = counted(model, {"blocks": 2}, hidden_states=latents, timestep=torch.ones(1), encoder_hidden_states=text)
    assert flops == expected(find_architecture("tiny"), 24)


def test_sizes_are_those_of_diffusers():
    """The classes' defaults are those of the largest Wan, of HunyuanVideo, LTX and the small CogVideoX."""
    from diffusers.models import transformers as models

    def defaults(name: str) -> dict[str, Any]:
        return {key: each.default for key, each in inspect.signature(getattr(models, name)).parameters.items()}

    for model, name in (
        ("wan-14b", "WanTransformer3DModel"),
        ("hunyuan-video", "HunyuanVideoTransformer3DModel"),
        ("ltx-video", "LTXVideoTransformer3DModel"),
        ("cogvideox-2b", "CogVideoXTransformer3DModel"),
    ):
        sizes, own = find_architecture(model), defaults(name)
        assert sizes.num_heads == own["num_attention_heads"]
        assert sizes.dim == own["num_attention_heads"] * own["attention_head_dim"]
        assert sizes.num_layers == own["num_layers"] + own.get("num_single_layers", 0)
        assert sizes.ffn_dim == own.get("ffn_dim", 4 * sizes.dim)
        assert sizes.text_tokens == own.get("max_text_seq_length", sizes.text_tokens)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_report(Full(), GRID, "wan-2b"), r"`model` \(='wan-2b'\) must be one of wan-1.3b, "),
        (lambda: attention_report(Full(), GRID, num_steps=0), r"`num_steps` \(=0\) must be at least 1"),
        (lambda: attention_report(Full(), GRID, efficiency=0.0), r"`efficiency` \(=0\) must be above 0"),
        (lambda: attention_report(Full(), GRID, efficiency=float("nan")), r"`efficiency` \(=nan\)"),
        (
            lambda: attention_report(PatternSchedule((Full(),), dense_layers=31), GRID),
            r"`dense_layers` \(=31\) must be at most 30, the layers of the model",
        ),
        (
            lambda: attention_report(PatternSchedule((Full(),), dense_steps=(40, 11)), GRID),
            r"`dense_steps` \(=\(40, 11\)\) must be at most `num_steps` \(=50\)",
        ),
        (
            lambda: attention_report(PerHead((Spatial(),)), GRID),
            r"`pattern` \(=spatial\*1\) is for 1 heads, and must be for as many as there are: 12",
        ),
        (lambda: attention_report(Full(), Grid(1, 3000, 3000)), r"`grid` \(=1x3000x3000\) must have at most 4,194,304"),
        (
            lambda: attention_report(Temporal(), Grid(1, 100, 100)),
            r"`pattern` \(=temporal\) must cut `grid` \(=1x100x100\) into at most 8,192 tiles, not 10,000",
        ),
        (lambda: find_architecture("wan-14b").grid(0, 8, 8), r"`num_frames` \(=0\) must be at least 1"),
        (lambda: find_architecture("tiny").grid(1, 8, 8), r"`compression` \(=None\)"),
    ],
)
def test_mistakes_are_named(call: Callable, message: str):
    with pytest.raises(KinemaError, match=message):
        call()


@settings(max_examples=60, deadline=None)
@given(grid=grids, make=st.one_of(static, dynamic))
def test_views_are_of_the_mask(grid: Grid, make: Callable):
    pattern = make()
    for view in head_views([pattern], grid):
        own = view.queries.flatten()
        assert own.any()
        assert view.share.shape == grid.sizes
        assert 0 <= view.tiles.min() <= view.tiles.max() <= 2
        if isinstance(pattern, StaticPattern):
            assert torch.allclose(view.share.flatten(), pattern.mask(grid)[own].float().mean(0))


def test_heads_that_see_the_same_are_drawn_once():
    pattern = SlidingTile((2, 2, 2), ((1, 1, 1), (3, 1, 1), (1, 1, 1)))
    titles = [view.title for view in head_views([pattern, pattern], Grid(6, 4, 4))]
    assert [title.split(", ")[1:] for title in titles] == [
        ["heads 0", "2: density 0.0833"],
        ["head 1: density 0.25"],
    ]
    kinds = [view.title for view in head_views([SpatialTemporalHeads(), TileTopK(k=3)], Grid(6, 4, 4))]
    assert [any(word in title for title in kinds) for word in ("spatial heads", "temporal heads", "random")] == [
        True
    ] * 3


def test_picture_shows_something(tmp_path: Path):
    patterns = (Radial(0.2, 2, 4), Band(), BlockCausal(), ShiftedWindow(), Temporal(), Full(), TileTopK(k=2))
    draw_masks(patterns, Grid(40, 5, 7), tmp_path / "new" / "masks.png")
    with Image.open(tmp_path / "new" / "masks.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] > 7 * 300
    height = len(pixels) // 7
    for row in range(7):  # each has text, what is seen and what looks
        colours = {tuple(colour) for colour in pixels[row * height : (row + 1) * height].reshape(-1, 3).tolist()}
        assert len(colours) > 20
        assert (0xD1, 0x49, 0x5B) in colours
    assert [path.name for path in tmp_path.rglob("*.png")] == ["masks.png"]


def test_heads_that_are_alike_share_a_line():
    pattern = PerHead((*(Band("spatial", tile=(1, 4)),) * 2, *(Band("temporal", 0.3, tile=(1, 4)),) * 2))
    report = attention_report(pattern, Grid(5, 4, 4), replace(SMALL, num_heads=4))
    heads = [line.split()[1] for line in report.table().split("\n\n")[0].splitlines()]
    assert heads == ["heads", "0-1", "2-3"]
    assert len(report.as_dict()["patterns"][0]["heads"]) == 4
