"""A tiny pipeline whose every path is open."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY

WORDS = ["a", "red", "blue", "car", "drives", "left"]


def build(text_encoder: Any = None, **transformer_arguments: Any) -> KinemaPipeline:
    """An untrained pipeline whose every path is open."""
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(WORDS)
    text: dict[str, Any] = {"text_vocab_size": len(tokenizer)} if text_encoder is None else {"text_dim": 16}
    transformer = VideoTransformer.from_preset("tiny", **text, **transformer_arguments)
    vae = CausalVideoTokenizer(**TINY)
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *vae.parameters()):
            parameter.add_(0.08 * torch.randn_like(parameter))
    vae.set_latent_statistics(torch.tensor([0.5, -0.5, 0.1, 0.0]), torch.tensor([0.5, 2.0, 1.0, 0.7]))
    pipeline = KinemaPipeline(
        transformer.eval(),
        vae.eval(),
        tokenizer,
        FlowMatchEulerDiscreteScheduler(shift=2.0),
        text_encoder,
        sample_size=(9, 16, 24),
        sample_fps=12.0,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def make_pipeline():
    return build


@pytest.fixture(scope="session")
def pipeline():
    return build()
