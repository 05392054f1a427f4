"""Sparse attention in tiny random pipelines of diffusers: steps are counted right, and nothing else changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from kinema.generation.attention import Full, apply_sparse_attention, remove_sparse_attention
from plugging import CASES, GRID, TILED, assert_near, plans

STEPS = 3
NONE: Any = None
"""A part that a pipeline does without: embeddings are given, and latents returned."""


def embeddings(number: int = 7) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    names = "prompt_embeds", "negative_prompt_embeds"
    return {name: torch.randn(1, number, 12, generator=generator) for name in names}


def masks(number: int = 7) -> dict[str, Any]:
    mask = (torch.arange(number) < 5).long()[None]
    return dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask)


def flow(**settings: Any) -> Any:
    return FlowMatchEulerDiscreteScheduler(**settings)


def make_wan(**settings: Any) -> Any:
    return WanPipeline(
        tokenizer=NONE,
        text_encoder=NONE,
        vae=NONE,
        scheduler=flow(shift=3.0),
        transformer=CASES["wan"].make(),
        **settings,
    )


def make_ltx() -> Any:
    return LTXPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=NONE,
        text_encoder=NONE,
        tokenizer=NONE,
        transformer=CASES["ltx"].make(),
    )


def make_cogvideox() -> Any:
    return CogVideoXPipeline(
        tokenizer=NONE,
        text_encoder=NONE,
        vae=NONE,
        scheduler=CogVideoXDDIMScheduler(),
        transformer=CASES["cogvideox"].make(),
    )


def make_hunyuan() -> Any:
    return HunyuanVideoPipeline(
        text_encoder=NONE,
        tokenizer=NONE,
        vae=NONE,
        scheduler=flow(),
        text_encoder_2=NONE,
        tokenizer_2=NONE,
        transformer=CASES["hunyuan"].make(),
    )


def pooled() -> dict[str, Any]:
    return dict(pooled_prompt_embeds=torch.ones(1, 10), negative_pooled_prompt_embeds=torch.zeros(1, 10))


@dataclass(frozen=True)
class Way:
    """A pipeline, what it takes, and the steps that its transformer should see."""

    make: Callable[[], Any]
    arguments: dict[str, Any]
    steps: tuple[int, ...]

    def run(self, pipe: Any) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        # Sizes for `GRID`, where there is no VAE that would say its own.
        sizes = dict(num_frames=4 * GRID.t - 3, height=16 * GRID.h, width=16 * GRID.w)
        generator = torch.Generator().manual_seed(3)
        call = {**sizes, "num_inference_steps": STEPS, "output_type": "latent", **self.arguments}
        return pipe(**call, generator=generator, return_dict=False)[0]


TWICE, ONCE = (0, 0, 1, 1, 2, 2), (0, 1, 2)
WAYS = {
    "wan": Way(make_wan, dict(**embeddings(), guidance_scale=3.0), TWICE),
    "wan-without-guidance": Way(make_wan, dict(**embeddings(), guidance_scale=1.0), ONCE),
    "wan-token-timesteps": Way(
        lambda: make_wan(expand_timesteps=True), dict(**embeddings(), guidance_scale=3.0), TWICE
    ),
    "ltx": Way(
        make_ltx,
        dict(**embeddings(), **masks(), num_frames=8 * GRID.t - 7, height=32 * GRID.h, width=32 * GRID.w),
        ONCE,
    ),
    "cogvideox": Way(make_cogvideox, dict(**embeddings(), guidance_scale=3.0), ONCE),
    "hunyuan": Way(make_hunyuan, dict(**embeddings(), **masks(), **pooled(), true_cfg_scale=2.0), TWICE),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def test_pipelines(way: Way) -> None:
    pipe = way.make()
    dense = way.run(pipe)
    apply_sparse_attention(pipe.transformer, Full())
    assert_near(way.run(pipe), dense)
    apply_sparse_attention(pipe.transformer, TILED)
    seen, sparse = plans(pipe.transformer), way.run(pipe)
    assert sparse.isfinite().all()
    assert (sparse - dense).abs().max() > 1e-2
    assert tuple(plan.step for plan in seen) == way.steps
    assert {plan.grid for plan in seen} == {GRID}
    assert torch.equal(way.run(pipe), sparse)
    assert tuple(plan.step for plan in seen) == way.steps * 2
    apply_sparse_attention(pipe.transformer, TILED, dense_steps=STEPS)
    assert torch.equal(way.run(pipe), dense)
    remove_sparse_attention(pipe.transformer)
    assert torch.equal(way.run(pipe), dense)


def test_two_transformers_share_a_schedule() -> None:
    """Wan 2.2: one transformer for high noise, another for low; the steps go on."""
    way = WAYS["wan"]
    pipe = make_wan(transformer_2=CASES["wan"].make(num_layers=2), boundary_ratio=0.8)
    dense = way.run(pipe)
    both = pipe.transformer, pipe.transformer_2
    apply_sparse_attention(both, TILED, dense_steps=2)
    seen = [plans(transformer) for transformer in both]
    sparse = way.run(pipe)
    assert [[plan.step for plan in own] for own in seen] == [[0, 0], [1, 1, 2, 2]]
    assert (sparse - dense).abs().max() > 1e-3
    apply_sparse_attention(both, TILED, dense_steps=STEPS)
    assert torch.equal(way.run(pipe), dense)
    remove_sparse_attention(both)
    assert torch.equal(way.run(pipe), dense)
