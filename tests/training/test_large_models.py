"""Models of GPU size take a training step, on the meta device: shapes and types fit, nothing is read."""

from typing import Any

import pytest
import torch
from torch import nn

from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.presets import PRESETS
from kinema.tokenizers.registry import make_tokenizer
from kinema.training.config import TrainingConfig
from kinema.training.ema import EMA
from kinema.training.muon import Muon
from kinema.training.optimization import make_optimizer


def take_step(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters() if p.requires_grad)
    optimizer = make_optimizer(model, TrainingConfig(preset="x"))
    assert isinstance(optimizer, Muon)
    optimizer.found_inf = torch.zeros((), device="meta")
    optimizer.step()
    assert all(optimizer.state[p] for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("name", ["large", "xlarge"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_of_a_transformer(name, checkpointing):
    with torch.device("meta"):
        model: Any = VideoTransformer.from_preset(name, text_dim=64).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        clean = torch.empty(2, 16, 5, 16, 24)
        output = model(clean, torch.empty(2, 5), torch.empty(2, 12, 64)).sample
        assert output.shape == clean.shape
        take_step(model, (output - clean).square().mean())
    expected = {"large": 1.1e9, "xlarge": 5e9}[name]
    assert model.num_parameters() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-large")])
def test_a_step_of_a_tokenizer(name):
    with torch.device("meta"):
        model: Any = make_tokenizer(name).train()
        video = torch.empty(1, 3, 17, 64, 64)
        hidden = model.quantizer(model.encoder(video))
        output = model.decoder(hidden.latents)
        assert output.shape == video.shape
        take_step(model, (output - video).square().mean() + sum(hidden.losses.values()))
        EMA(model, 0.99).update(model, torch.ones((), device="meta"))
    assert model.num_parameters() == pytest.approx(1e8, rel=0.1)
