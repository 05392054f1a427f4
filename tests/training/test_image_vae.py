"""Latents of single frames held to an image VAE's, here a tiny untrained one."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.accelerator import make_accelerator
from kinema.training.config import TokenizerTrainingConfig
from kinema.training.losses.image_vae import ImageVAE
from kinema.training.tokenizer import TokenizerTask


def save_vae(folder: Path, channels: int = 4, levels: int = 4) -> Path:
    torch.manual_seed(1)
    settings: Any = dict(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels,
    )
    vae = AutoencoderKL(**settings, norm_num_groups=2, latent_channels=channels)
    vae.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", num_frames=12, height=24, width=32)
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16",
        data=(str(tmp_path / "data"),),
        cache_dir=tmp_path / "cache",
        output=tmp_path / "run",
        shapes=("5x16x20", "1x16x20"),
        validation_clips=1,
        batch_size=2,
        image_vae=str(save_vae(tmp_path / "image")),
        image_vae_weight=2.0,
        image_decode_weight=0.5,
        cpu=True,
    )


@pytest.mark.parametrize("frames", [1, 5])
def test_terms_of_the_first_frame(config, frames):
    torch.manual_seed(0)
    task = TokenizerTask(config, make_accelerator(config), CausalVideoTokenizer(**TINY))
    batch = torch.rand(2, 3, frames, 16, 20) * 2 - 1
    total, terms, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
    vae: Any = AutoencoderKL.from_pretrained(config.image_vae)
    image = torch.cat([batch[:, :, 0], batch[:, :, 0, :, -1:].expand(-1, -1, -1, 4)], dim=3)  # to whole latents
    with torch.no_grad():
        mine = task.model.encode(batch).latents[:, :, 0]
        assert torch.allclose(mine, task.model.encode(batch[:, :, :1]).latents[:, :, 0], atol=1e-6)
        latents = (mine - vae.encode(image).latent_dist.mode()).square().mean()
        decoded = (vae.decode(mine).sample - image).square().mean()
    assert terms["image_vae"].item() == pytest.approx(latents.item(), rel=1e-4)
    assert terms["image_decode"].item() == pytest.approx(decoded.item(), rel=1e-4)
    expected = terms["mse"] + 1e-6 * terms["kl"] + 2.0 * terms["image_vae"] + 0.5 * terms["image_decode"]
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert task.image_vae is not None
    assert not any(p.requires_grad for p in task.image_vae.vae.parameters())


def test_training_brings_the_latents_nearer(config):
    torch.manual_seed(0)
    config = dataclasses.replace(config, image_decode_weight=0.0, mse_weight=0.0)
    task = TokenizerTask(config, make_accelerator(config), CausalVideoTokenizer(**TINY))
    optimizer = torch.optim.Adam(task.model.encoder.parameters(), lr=1e-2)
    values = []
    for _ in range(12):
        batch = task.batch(0)
        loss, terms, _ = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(terms["image_vae"].item())
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(("channels", "levels"), [(3, 4), (4, 3)])
def test_another_shape_of_latents_is_refused(tmp_path, channels, levels):
    folder = save_vae(tmp_path / "other", channels, levels)
    with pytest.raises(KinemaError, match=rf"`image_vae` .*it has {channels} channels, each {2 ** (levels - 1)} pix"):
        ImageVAE(str(folder), 4, 8, torch.device("cpu"))


def test_what_is_no_image_vae_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(KinemaError, match="`image_vae`"):
        ImageVAE(str(tmp_path), 4, 8, torch.device("cpu"))


def test_a_frozen_encoder_cannot_follow(config):
    with pytest.raises(KinemaError, match="`image_vae`"):
        dataclasses.replace(config, freeze_encoder=True)


def test_vae_of_a_pipeline(tmp_path):
    save_vae(tmp_path / "pipeline/vae")
    assert ImageVAE(str(tmp_path / "pipeline"), 4, 8, torch.device("cpu")).vae.config.latent_channels == 4
