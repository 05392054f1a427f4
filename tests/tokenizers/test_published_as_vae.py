"""A KL tokenizer of kinema as the auto-encoder of diffusers' pipelines, each run end to end at a tiny size."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.published.as_vae import AsVAE

diffusers: Any = import_module("diffusers")


@pytest.fixture(scope="module")
def vae() -> AsVAE:
    """A tiny tokenizer, 4·8·8 with 4 channels, every weight random, with statistics far from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = CausalVideoTokenizer(**TINY).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    tokenizer.set_latent_statistics(torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor([2.0, 0.5, 3.0, 0.2]))
    return AsVAE(tokenizer)


def clip(frames: int = 5, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, 32, 64, generator=torch.Generator().manual_seed(frames)) * 2 - 1


class Harmless:
    """Stands for Cosmos' safety checker, which needs a package of its own."""

    def to(self, device: Any) -> None: ...

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def wan(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts: Any = dict(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    return diffusers.WanPipeline(**parts), {"prompt_embeds": torch.randn(1, 7, 8), "guidance_scale": 1.0}


def wan_image(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts: Any = dict(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    inputs = {"image": torch.rand(1, 3, 32, 64), "prompt_embeds": torch.randn(1, 7, 8), "guidance_scale": 1.0}
    return diffusers.WanImageToVideoPipeline(**parts), inputs


def _ltx_parts(vae: AsVAE) -> dict[str, Any]:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=1, caption_channels=8,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return dict(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)


_LTX_TEXT: dict[str, Any] = {"prompt_attention_mask": torch.ones(1, 7), "guidance_scale": 1.0}


def ltx(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    return diffusers.LTXPipeline(**_ltx_parts(vae)), _LTX_TEXT | {"prompt_embeds": torch.randn(1, 7, 8)}


def ltx_image(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    inputs = _LTX_TEXT | {"prompt_embeds": torch.randn(1, 7, 8), "image": torch.rand(1, 3, 32, 64)}
    return diffusers.LTXImageToVideoPipeline(**_ltx_parts(vae)), inputs


def cosmos(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, mlp_ratio=2,
        text_embed_dim=8, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2), rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True, extra_pos_embed_type="learnable",
    )  # fmt: skip
    scheduler = diffusers.EDMEulerScheduler(sigma_data=1.0)
    parts: Any = dict(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    pipeline = diffusers.CosmosTextToWorldPipeline(**parts, safety_checker=Harmless())
    return pipeline, {"prompt_embeds": torch.randn(1, 7, 8), "guidance_scale": 1.0}


def cogvideox(vae: AsVAE) -> tuple[Any, dict[str, Any]]:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=4, text_embed_dim=8,
        num_layers=1, sample_width=8, sample_height=4, sample_frames=5, patch_size=2, temporal_compression_ratio=4,
        max_text_seq_length=7,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler()
    parts: Any = dict(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    return diffusers.CogVideoXPipeline(**parts), {"prompt_embeds": torch.randn(1, 7, 8), "guidance_scale": 1.0}


PIPELINES = [wan, wan_image, ltx, ltx_image, cosmos, cogvideox]


@torch.no_grad()
@pytest.mark.parametrize("make", PIPELINES, ids=lambda make: make.__name__)
def test_pipelines_run_to_the_end(make: Callable[[AsVAE], tuple[Any, dict[str, Any]]], vae: AsVAE):
    """Two steps to a video, which is the tokenizer's own of the latents that the pipeline ended with."""
    torch.manual_seed(0)
    pipeline, inputs = make(vae)
    pipeline.set_progress_bar_config(disable=True)
    options = dict(num_frames=5, height=32, width=64, num_inference_steps=2) | inputs
    outputs = {
        kind: pipeline(**options, generator=torch.Generator().manual_seed(1), output_type=kind).frames
        for kind in ("pt", "latent")
    }
    latents: Tensor = outputs["latent"]
    if make in (ltx, ltx_image):  # their latents come as tokens
        latents = latents.transpose(1, 2).unflatten(2, (2, 4, 8))
    if make is cogvideox:
        latents = latents.transpose(1, 2)
    video = vae.tokenizer.decode(vae.tokenizer.denormalize(latents)).sample
    assert outputs["pt"].shape == (1, 5, 3, 32, 64)
    # Cosmos' safety checker takes levels of 1/255, rounded down.
    error = 1 / 255 if make is cosmos else 0.0
    wanted = (video.transpose(1, 2) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(outputs["pt"], wanted, rtol=0, atol=error + 1e-5)
    assert outputs["pt"].std() > 1e-2


@torch.no_grad()
def test_encode_gives_the_normalised_posterior(vae: AsVAE):
    code = vae.tokenizer.encode(clip())
    posterior = vae.encode(clip()).latent_dist
    mean, std = torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor([2.0, 0.5, 3.0, 0.2])
    mean, std = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(posterior.mode(), (code.latents - mean) / std)
    torch.testing.assert_close(posterior.std, code.latent_dist.std / std)
    (same,) = vae.encode(clip(), return_dict=False)
    assert torch.equal(same.mode(), posterior.mode())


@torch.no_grad()
def test_there_and_back_is_the_tokenizers(vae: AsVAE):
    video = clip(batch=2)
    wanted = vae.tokenizer.decode(vae.tokenizer.encode(video).latents).sample
    torch.testing.assert_close(vae(video).sample, wanted, rtol=1e-5, atol=1e-5)
    vae.enable_slicing()
    (sliced,) = vae(video, return_dict=False)
    vae.disable_slicing()
    torch.testing.assert_close(sliced, wanted, rtol=1e-5, atol=1e-5)
    vae.enable_tiling(16)
    tiled = vae(video).sample
    vae.disable_tiling()
    torch.testing.assert_close(tiled, wanted, rtol=1e-4, atol=1e-4)


def test_names_that_pipelines_read(vae: AsVAE):
    config = vae.config
    assert (config.scale_factor_temporal, config.scale_factor_spatial, config.z_dim) == (4, 8, 4)
    assert (config.temporal_compression_ratio, config.spatial_compression_ratio, config.latent_channels) == (4, 8, 4)
    assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == (4, 8)
    assert 2 ** (len(config.block_out_channels) - 1) == 8
    assert vae.latents_mean.tolist() == config.latents_mean == [0.0] * 4
    assert vae.latents_std.tolist() == config.latents_std == [1.0] * 4
    assert (vae.dtype, vae.device.type) == (torch.float32, "cpu")


def test_mistakes(vae: AsVAE):
    with pytest.raises(KinemaError, match=r"`x` \(of 6 frames of 32x64\) must have 1 \+ k·4 frames"):
        vae.encode(clip(6))
    with pytest.raises(KinemaError, match=r"`x` \(of shape \(3, 5, 8, 8\)\)"):
        vae.encode(torch.zeros(3, 5, 8, 8))
    with pytest.raises(KinemaError, match="`latents`"):
        vae.decode(torch.zeros(1, 5, 2, 4, 6))
    fsq = CausalVideoTokenizer(**{**TINY, "bottleneck": {"name": "fsq", "levels": (8, 8)}})
    with pytest.raises(KinemaError, match="with the bottleneck FSQ"):
        AsVAE(fsq)
