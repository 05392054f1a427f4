"""Auto-encoders of diffusers behind kinema's interface: shapes, normalisation as the pipelines compute it, errors."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.interface import VideoTokenizer, latent_shape, pad_to_grid
from kinema.tokenizers.published.diffusers import FAMILIES, DiffusersTokenizer

diffusers: Any = import_module("diffusers")

_FOUR = (8, 8, 8, 8)
_STATISTICS: dict[str, Any] = dict(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[2.0, 0.5, 1.5, 3.0])
_WAN: dict[str, Any] = dict(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **_STATISTICS)
_LTX: dict[str, Any] = dict(
    latent_channels=8, block_out_channels=_FOUR, decoder_block_out_channels=_FOUR, layers_per_block=(1,) * 5,
    decoder_layers_per_block=(1,) * 5,
)  # fmt: skip
_COSMOS: dict[str, Any] = dict(
    latent_channels=4, encoder_block_out_channels=_FOUR, decode_block_out_channels=_FOUR, num_layers=1, resolution=64
)
_STEPS = 6  # latent steps that the tiny Cosmos has statistics for
_STEPWISE: dict[str, Any] = dict(
    latents_mean=[0.01 * i for i in range(4 * _STEPS)], latents_std=[1 + 0.05 * i for i in range(4 * _STEPS)]
)

# Class, its arguments at a tiny size, and the temporal and spatial ratios.
TINY: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "wan-2.1": ("AutoencoderKLWan", _WAN, (4, 8)),
    "wan-2.2": (
        "AutoencoderKLWan",
        _WAN | dict(is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16),
        (4, 16),
    ),
    "qwen-image": (
        "AutoencoderKLQwenImage",
        dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **_STATISTICS),
        (4, 8),
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        dict(block_out_channels=_FOUR, latent_channels=4, layers_per_block=1, norm_num_groups=2),
        (4, 8),
    ),
    "hunyuan": (
        "AutoencoderKLHunyuanVideo",
        dict(block_out_channels=_FOUR, latent_channels=4, layers_per_block=1, norm_num_groups=2),
        (4, 8),
    ),
    "hunyuan-1.5": (
        "AutoencoderKLHunyuanVideo15",
        dict(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1),
        (4, 16),
    ),
    "ltx": ("AutoencoderKLLTXVideo", _LTX, (8, 32)),
    "ltx-0.9.1": (
        "AutoencoderKLLTXVideo",
        _LTX | dict(timestep_conditioning=True, decoder_inject_noise=(False,) * 5, scaling_factor=0.5),
        (8, 32),
    ),
    "ltx-2": (
        "AutoencoderKLLTX2Video",
        dict(
            latent_channels=8, block_out_channels=_FOUR, decoder_block_out_channels=(16, 32, 64),
            layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, spatial_compression_ratio=32,
            temporal_compression_ratio=8, decoder_causal=False,
        ),
        (8, 32),
    ),
    "cosmos": ("AutoencoderKLCosmos", _COSMOS | _STEPWISE, (8, 8)),
    "cosmos-4x8x8": (
        "AutoencoderKLCosmos",
        _COSMOS | dict(temporal_compression_ratio=4, latents_mean=None, latents_std=None),
        (4, 8),
    ),
    "mochi": (
        "AutoencoderKLMochi",
        dict(
            latent_channels=4, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
            layers_per_block=(1,) * 5, scaling_factor=0.7, **_STATISTICS,
        ),
        (6, 8),
    ),
    "vidtok": ("AutoencoderVidTok", dict(ch=32, ch_mult=[1, 1, 1, 1], z_channels=4, num_res_blocks=1), (4, 8)),
    "vidtok-fsq": (
        "AutoencoderVidTok",
        dict(
            ch=32, ch_mult=[1, 1, 1, 1], z_channels=4, num_res_blocks=1, double_z=False, regularizer="fsq",
            codebook_size=4096,
        ),
        (4, 8),
    ),
    "image-kl": (
        "AutoencoderKL",
        dict(
            block_out_channels=(8, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.1,
        ),
        (1, 2),
    ),
    "image-dc": (
        "AutoencoderDC",
        dict(
            latent_channels=4, attention_head_dim=2, encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), scaling_factor=0.4,
        ),
        (1, 2),
    ),
    "image-tiny": (
        "AutoencoderTiny",
        dict(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        (1, 2),
    ),
}  # fmt: skip


def build(name: str) -> Any:
    """A tiny model with every weight random, and LTX's buffers off their 0 and 1."""
    kind, arguments, _ = TINY[name]
    torch.manual_seed(0)
    model: Any = getattr(diffusers, kind)(**arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        if name.startswith("ltx"):
            model.latents_mean.copy_(torch.linspace(-1, 1, 8))
            model.latents_std.copy_(torch.linspace(0.5, 2, 8))
    return model


@pytest.fixture(scope="module")
def models() -> Callable[[str], DiffusersTokenizer]:
    built: dict[str, DiffusersTokenizer] = {}

    def get(name: str) -> DiffusersTokenizer:
        if name not in built:
            built[name] = DiffusersTokenizer(build(name)).requires_grad_(False)
        return built[name]

    return get


def clip(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(frames)) * 2 - 1


def test_every_family_is_tested():
    assert {kind for kind, _, _ in TINY.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", TINY)
def test_ratios_and_interface(name: str, models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models(name)
    assert isinstance(tokenizer, VideoTokenizer)
    assert (tokenizer.temporal_compression_ratio, tokenizer.spatial_compression_ratio) == TINY[name][2]
    assert (tokenizer.device.type, tokenizer.dtype) == ("cpu", torch.float32)


@pytest.mark.parametrize("name", TINY)
def test_any_length_and_size_comes_back_whole(name: str, models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models(name)
    ct, cs = TINY[name][2]
    side = max(2 * cs, 16)
    for frames, height, width in ((1, side, side - 3), (2, side, side), (5, side - 1, side), (16, side, side)):
        video = clip(frames, height, width, batch=1 + (frames == 2))
        code = tokenizer.encode(video)
        assert code.latents.shape[1:] == (tokenizer.latent_channels, *latent_shape(frames, height, width, ct, cs))
        assert code.latents.dtype == torch.float32
        assert tokenizer.decode(code.latents, frames, height, width).sample.shape == video.shape
        assert tokenizer.decode(code.latents).sample.shape[2] == 1 + (code.latents.shape[2] - 1) * ct
        assert (code.latent_dist is None) == (not code.losses)
    video = clip(17, side, side)
    reconstruction = tokenizer.reconstruct(video)
    assert reconstruction.shape == video.shape
    assert reconstruction.abs().max() <= 1


def direct(name: str, model: Any, video: Tensor) -> tuple[Tensor, Tensor]:
    """Latents and reconstruction as diffusers' own calls give them, at a length where these lose nothing."""
    if name.startswith("image"):
        images = video[0].transpose(0, 1)
        code = model.encode(images)
        latents = next(
            getattr(code, n) for n in ("latent", "latents", "latent_dist") if getattr(code, n, None) is not None
        )
        latents = latents if isinstance(latents, Tensor) else latents.mode()
        return latents.transpose(0, 1)[None], model.decode(latents).sample.transpose(0, 1)[None]
    if name.startswith("vidtok"):
        code = model.encode(torch.cat([video[:, :, :1]] * 3 + [video], dim=2))
        latents = code[0] if isinstance(code, tuple) else code.latent_dist.mode()
        return latents, model.decode(latents)
    latents = model.encode(video).latent_dist.mode()
    timestep = (torch.zeros(1),) if name == "ltx-0.9.1" else ()
    return latents, model.decode(latents, *timestep).sample


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_encode_and_decode_are_the_models_own(name: str, models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models(name)
    ct, cs = TINY[name][2]
    video = clip(1 + 2 * ct, 2 * cs, 2 * cs)  # three latent steps: an odd number, for CogVideoX
    latents, decoded = direct(name, tokenizer.model, video)
    code = tokenizer.encode(video)
    torch.testing.assert_close(code.latents, latents, rtol=0, atol=0)
    torch.testing.assert_close(tokenizer.decode(code.latents).sample, decoded, rtol=0, atol=0)
    if name != "vidtok-fsq":
        assert tokenizer.decode(code.latents).sample.std() > 1e-4  # nothing is switched off


@torch.no_grad()
def test_cropped_frames_are_those_of_the_padded_clip(models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models("wan-2.1")
    video = clip(16, 15, 13)
    whole = tokenizer.reconstruct(pad_to_grid(video, 4, 8))
    torch.testing.assert_close(tokenizer.reconstruct(video), whole[:, :, :16, :15, :13], rtol=0, atol=0)


def pipelines_way(name: str, model: Any, latents: Tensor) -> Tensor:
    """What the pipelines of diffusers 0.42 for each family do before the transformer; the formulas as they stand there.

    Wan: `(z - mean) * (1 / std)`; CogVideoX, HunyuanVideo: `z * scaling_factor`; LTX: `(z - mean) * factor / std` of
    buffers; Cosmos: per channel and step, `(z - mean) * sigma_data / std` with sigma_data 1; Mochi decodes
    `z * std / factor + mean`; Flux and SD3: `(z - shift) * factor`.
    """
    config = model.config
    if name.startswith(("wan", "qwen", "mochi")):
        mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        std = 1.0 / torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)
        return (latents - mean) * std * (config.scaling_factor if name == "mochi" else 1.0)
    if name.startswith("ltx"):
        mean, std = model.latents_mean.view(1, -1, 1, 1, 1), model.latents_std.view(1, -1, 1, 1, 1)
        return (latents - mean) * config.scaling_factor / std
    if name == "cosmos":
        mean = torch.tensor(config.latents_mean).view(1, 4, -1, 1, 1)[:, :, : latents.size(2)]
        std = torch.tensor(config.latents_std).view(1, 4, -1, 1, 1)[:, :, : latents.size(2)]
        return (latents - mean) * 1.0 / std
    if name == "image-kl":
        return (latents - config.shift_factor) * config.scaling_factor
    if name.startswith(("cosmos", "vidtok")):
        return latents
    return latents * config.scaling_factor


@pytest.mark.parametrize("name", TINY)
def test_normalisation_is_that_of_the_pipelines(name: str, models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models(name)
    latents = torch.randn(2, tokenizer.latent_channels, 3, 4, 5)
    wanted = pipelines_way(name, tokenizer.model, latents)
    got = tokenizer.normalize(latents)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tokenizer.denormalize(got), latents, rtol=1e-5, atol=1e-5)
    assert torch.equal(got, latents) == name.startswith(("cosmos-4", "vidtok", "image-tiny"))


def test_posterior_is_the_models_own(models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models("hunyuan")
    video = clip(5, 16, 16)
    code, theirs = tokenizer.encode(video), tokenizer.model.encode(video).latent_dist
    seeds = [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.testing.assert_close(code.latent_dist.sample(seeds[0]), theirs.sample(seeds[1]))
    torch.testing.assert_close(code.losses["kl"] * code.latents.numel(), theirs.kl().sum())


def test_codes_of_vidtok(models: Callable[[str], DiffusersTokenizer]):
    code = models("vidtok-fsq").encode(clip(5, 16, 16))
    assert code.indices is not None
    assert code.indices.shape == (1, 2, 2, 2)
    assert 0 <= int(code.indices.min()) <= int(code.indices.max()) < 4096


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 4, 5, 16, 16), "of shape (1, 4, 5, 16, 16)"),
        (torch.zeros(3, 5, 16, 16), "of shape (3, 5, 16, 16)"),
        (torch.zeros(1, 3, 0, 16, 16), "frames of at least 1"),
        (torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 3, 1, 16, 16), 255.0), "[255, 255]"),
        (torch.full((1, 3, 1, 16, 16), torch.nan), "NaN"),
    ],
)
def test_bad_clips(video: Tensor, message: str, models: Callable[[str], DiffusersTokenizer]):
    with pytest.raises(KinemaError) as caught:
        models("wan-2.1").encode(video)
    assert message in str(caught.value)


def test_bad_latents_and_sizes(models: Callable[[str], DiffusersTokenizer]):
    tokenizer = models("cosmos")
    with pytest.raises(KinemaError, match=r"`latents` \(of shape \(1, 5, 2, 2, 2\)\)"):
        tokenizer.decode(torch.zeros(1, 5, 2, 2, 2))
    with pytest.raises(KinemaError, match=r"`num_frames` \(=1\) must lie in 2\.\.9"):
        tokenizer.decode(torch.zeros(1, 4, 2, 2, 2), num_frames=1)
    with pytest.raises(KinemaError, match=r"`latents` \(of 7 steps\) must have at most 6 steps"):
        tokenizer.normalize(torch.zeros(1, 4, 7, 2, 2))


def test_unknown_models():
    with pytest.raises(KinemaError, match=r"`model` \(=Linear\) must be one of AutoencoderKLWan, "):
        DiffusersTokenizer(nn.Linear(1, 1))
    model = diffusers.AutoencoderVidTok(ch=32, ch_mult=[1, 1, 1, 1], num_res_blocks=1, is_causal=False)
    with pytest.raises(KinemaError, match="causal"):
        DiffusersTokenizer(model)
