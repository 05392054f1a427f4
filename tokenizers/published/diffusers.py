"""Auto-encoders of diffusers as tokenizers of kinema: one line of `FAMILIES` for each class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.checks import check_latents, check_video, wanted_size
from kinema.tokenizers.interface import TokenizerOutput, pad_to_grid
from kinema.tokenizers.quantizers import DiagonalGaussian

Normalization = tuple[Tensor | float, Tensor | float]
"""Mean and scale: a diffusion model sees ``(latents - mean) * scale``."""


def _by_factor(model: Any, num_steps: int) -> Normalization:
    """`scaling_factor`, after `shift_factor` where there is one: CogVideoX, HunyuanVideo, the image pipelines."""
    config = model.config
    return config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0


def _by_channel(model: Any, num_steps: int) -> Normalization:
    """`latents_mean`, `latents_std` of the config and `scaling_factor` where there is one: Wan, Qwen-Image, Mochi."""
    config = model.config
    factor = config.get("scaling_factor") or 1.0
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return 0.0, factor
    mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, factor / std


def _by_buffer(model: Any, num_steps: int) -> Normalization:
    """`latents_mean`, `latents_std` are buffers, as `scaling_factor` in the config: LTX."""
    mean, std = (buffer.float().view(1, -1, 1, 1, 1) for buffer in (model.latents_mean, model.latents_std))
    return mean, model.config.scaling_factor / std


def _by_channel_and_step(model: Any, num_steps: int) -> Normalization:
    """`latents_mean`, `latents_std` for every channel and latent step (Cosmos 1.0); its pipeline's sigma_data is 1."""
    config = model.config
    if config.latents_mean is None:
        return 0.0, 1.0
    mean, std = (torch.tensor(config[n]).view(1, config.latent_channels, -1, 1, 1) for n in _STATISTICS)
    if mean.shape[2] not in (1, *range(num_steps, mean.shape[2] + 1)):
        raise KinemaError(
            f"`latents` (of {num_steps} steps) must have at most {mean.shape[2]} steps: those that "
            f"{type(model).__name__} has statistics for"
        )
    return mean[:, :, :num_steps], 1.0 / std[:, :, :num_steps]


_STATISTICS = ("latents_mean", "latents_std")


def _of_config(model: Any) -> tuple[int, int]:
    return model.config.temporal_compression_ratio, model.config.spatial_compression_ratio


def _of_attributes(model: Any) -> tuple[int, int]:
    return model.temporal_compression_ratio, model.spatial_compression_ratio


def _of_image_blocks(model: Any) -> tuple[int, int]:
    config = model.config
    widths = config["block_out_channels" if "block_out_channels" in config else "encoder_block_out_channels"]
    return 1, 2 ** (len(widths) - 1)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What must be known of a class of auto-encoders.

    Attributes:
        ratios: from the model to its temporal and spatial compression ratio.
        normalization: from the model and a number of latent steps to what diffusers' pipelines for it apply.
        channels: the config's name for the number of latent channels.
        images: it takes single images, and codes a clip frame by frame.
        pad: how a clip of 1 + k·ct frames becomes one that the model decodes to as many frames.
            "last": it does so by itself. "odd": it decodes only odd numbers of latent steps to 1 + k·ct frames, so an
            even number gets its last step twice. "first": it wants (k + 1)·ct frames, the first one ct times.
        timestep: `decode` takes a timestep where the config's `timestep_conditioning` is set.
        one_by_one: it fails on more than one clip (the attention mask of HunyuanVideo 1.5), which go one by one.
    """

    ratios: Callable[[Any], tuple[int, int]]
    normalization: Callable[[Any, int], Normalization]
    channels: str = "latent_channels"
    images: bool = False
    pad: Literal["last", "odd", "first"] = "last"
    timestep: bool = False
    one_by_one: bool = False


def _wan(model: Any) -> tuple[int, int]:
    return model.config.scale_factor_temporal, model.config.scale_factor_spatial


def _qwen_image(model: Any) -> tuple[int, int]:
    return 2 ** sum(model.temperal_downsample), model.spatial_compression_ratio


def _cogvideox(model: Any) -> tuple[int, int]:
    return int(model.config.temporal_compression_ratio), 2 ** (len(model.config.block_out_channels) - 1)


def _vidtok(model: Any) -> tuple[int, int]:
    if not model.config.is_causal:
        raise KinemaError("`model` (=AutoencoderVidTok) must be a causal one: others drop frames")
    return model.temporal_compression_ratio, 2 ** len(model.encoder.spatial_ds)


FAMILIES: dict[str, Family] = {
    "AutoencoderKLWan": Family(ratios=_wan, normalization=_by_channel, channels="z_dim"),
    "AutoencoderKLQwenImage": Family(ratios=_qwen_image, normalization=_by_channel, channels="z_dim"),
    "AutoencoderKLCogVideoX": Family(ratios=_cogvideox, normalization=_by_factor, pad="odd"),
    "AutoencoderKLHunyuanVideo": Family(ratios=_of_config, normalization=_by_factor),
    "AutoencoderKLHunyuanVideo15": Family(ratios=_of_config, normalization=_by_factor, one_by_one=True),
    "AutoencoderKLLTXVideo": Family(ratios=_of_attributes, normalization=_by_buffer, timestep=True),
    "AutoencoderKLLTX2Video": Family(ratios=_of_attributes, normalization=_by_buffer, timestep=True),
    "AutoencoderKLCosmos": Family(ratios=_of_config, normalization=_by_channel_and_step),
    "AutoencoderKLMochi": Family(ratios=_of_attributes, normalization=_by_channel),
    "AutoencoderVidTok": Family(ratios=_vidtok, normalization=_by_factor, channels="z_channels", pad="first"),
    "AutoencoderKL": Family(ratios=_of_image_blocks, normalization=_by_factor, images=True),
    "AutoencoderTiny": Family(ratios=_of_image_blocks, normalization=_by_factor, images=True),
    "AutoencoderDC": Family(ratios=_of_image_blocks, normalization=_by_factor, images=True),
}


class DiffusersTokenizer(nn.Module):
    """An auto-encoder of diffusers as a `VideoTokenizer`: any number of frames and any size, nothing is lost.

    A clip is padded to 1 + k·ct frames and whole latent cells, and the padding is cropped after decoding.

    Args:
        model: an instance of a class in `FAMILIES`, or of one derived from it.
        decode_timestep: the timestep that decoders with `timestep_conditioning` (LTX) get; no noise is added.

    Raises:
        KinemaError: the class is not known, or the model drops frames.
    """

    def __init__(self, model: nn.Module, decode_timestep: float = 0.0):
        super().__init__()
        family = next((FAMILIES[c.__name__] for c in type(model).__mro__ if c.__name__ in FAMILIES), None)
        if family is None:
            raise KinemaError(f"`model` (={type(model).__name__}) must be one of {', '.join(FAMILIES)}")
        self.model: Any = model
        self.family = family
        self.decode_timestep = decode_timestep
        if family.one_by_one:
            self.model.enable_slicing()
        self.temporal_compression_ratio, self.spatial_compression_ratio = family.ratios(model)
        self.latent_channels: int = self.model.config[family.channels]

    @classmethod
    def from_pretrained(
        cls, place: str | Path, subfolder: str | None = None, dtype: torch.dtype = torch.float32
    ) -> "DiffusersTokenizer":
        """The auto-encoder in a folder or at a hub, by the class that its config names.

        Raises:
            KinemaError: the class is not known, or weights are missing.
            OSError: there is none.
        """
        options: dict[str, Any] = {"subfolder": subfolder} if subfolder else {}
        config: Any = AutoencoderKL.load_config(str(place), **options)
        name = config.get("_class_name")
        if name not in FAMILIES:
            raise KinemaError(f"`_class_name` (={name!r}) in the config must be one of {', '.join(FAMILIES)}")
        model, info = getattr(diffusers, name).from_pretrained(
            str(place), torch_dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
        if info["missing_keys"]:
            raise KinemaError(f"{len(info['missing_keys'])} weights are missing, such as {info['missing_keys'][0]!r}")
        return cls(model).eval()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def encode(self, video: Tensor) -> TokenizerOutput:
        """Latents of a clip, the mode of the posterior, float32, not normalised.

        Args:
            video: ``(b, 3, t, h, w)``, float in [-1, 1], any number of frames and any size.

        Raises:
            KinemaError: the video is not such a tensor.
        """
        check_video(video)
        t, h, w = video.shape[2:]
        padded = pad_to_grid(video.to(self.dtype), self.temporal_compression_ratio, self.spatial_compression_ratio)
        if self.family.pad == "first":
            padded = torch.cat([padded[:, :, :1]] * (self.temporal_compression_ratio - 1) + [padded], dim=2)
        if self.family.images:
            padded = rearrange(padded, "b c t h w -> (b t) c h w")
        latents, dist, indices = self._read(self.model.encode(padded), batch=video.shape[0])
        losses = {} if dist is None else {"kl": dist.kl().mean()}
        return TokenizerOutput(
            latents=latents, latent_dist=dist, indices=indices, losses=losses, num_frames=t, height=h, width=w
        )

    def _read(self, code: Any, batch: int) -> tuple[Tensor, DiagonalGaussian | None, Tensor | None]:
        """Latents, posterior and indices of what `encode` of the model gave."""

        def clips(value: Tensor) -> Tensor:
            value = value.float()
            return rearrange(value, "(b t) c h w -> b c t h w", b=batch) if self.family.images else value

        if isinstance(code, tuple):  # AutoencoderVidTok with FSQ
            return clips(code[0]), None, code[1].long()
        dist = getattr(code, "latent_dist", None)
        if isinstance(dist, DiagonalGaussianDistribution):
            posterior = DiagonalGaussian(clips(dist.mean), clips(dist.logvar))
            return posterior.mode(), posterior, None
        if dist is not None:  # Cosmos: a distribution without a spread
            return clips(dist.mode()), None, None
        return clips(code.latent if hasattr(code, "latent") else code.latents), None, None

    def decode(
        self,
        latents: Tensor,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> DecoderOutput:
        """Video of latents, `.sample` ``(b, 3, t, h, w)``, float32.

        Args:
            latents: ``(b, z, t', h', w')``, as from `encode`, not normalised.
            num_frames, height, width: crop the video to this size; whole latent steps unless told.

        Raises:
            KinemaError: the latents have another shape, or the wanted size does not end in the last latent step.
        """
        check_latents(latents, self.latent_channels)
        ct, cs = self.temporal_compression_ratio, self.spatial_compression_ratio
        t, h, w = wanted_size(latents.shape[2:], ct, cs, num_frames=num_frames, height=height, width=width)
        z, batch = latents.to(self.dtype), latents.shape[0]
        whole = 1 + (z.shape[2] - 1) * ct
        if self.family.images:
            z = rearrange(z, "b c t h w -> (b t) c h w")
        elif self.family.pad == "odd" and z.shape[2] % 2 == 0:
            z = torch.cat([z, z[:, :, -1:]], dim=2)
        timestep: tuple[Tensor, ...] = ()
        if self.family.timestep and self.model.config.timestep_conditioning:
            timestep = (torch.full((batch,), self.decode_timestep, device=z.device, dtype=z.dtype),)
        decoded = self.model.decode(z, *timestep)
        video = (decoded if isinstance(decoded, Tensor) else decoded.sample).float()
        if self.family.images:
            video = rearrange(video, "(b t) c h w -> b c t h w", b=batch)
        assert video.shape[2] >= whole, f"{type(self.model).__name__} decodes {video.shape[2]} of {whole} frames"
        return DecoderOutput(sample=video[:, :, :t, :h, :w])

    @torch.no_grad()
    def reconstruct(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """``decode(encode(video))`` at the size of the input, clamped to [-1, 1]."""
        code = self.encode(video)
        return self.decode(code.latents, code.num_frames, code.height, code.width).sample.clamp(-1.0, 1.0)

    def normalize(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """Latents as the diffusion models that diffusers runs on this auto-encoder see them.

        Raises:
            KinemaError: the latents have another shape, or more steps than the model has statistics for.
        """
        mean, scale = self._normalization(latents)
        return (latents - mean) * scale

    def denormalize(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        mean, scale = self._normalization(latents)
        return latents / scale + mean

    def _normalization(self, latents: Tensor) -> Normalization:
        check_latents(latents, self.latent_channels)
        mean, scale = self.family.normalization(self.model, latents.shape[2])
        mean = mean.to(latents.device) if isinstance(mean, Tensor) else mean
        scale = scale.to(latents.device) if isinstance(scale, Tensor) else scale
        return mean, scale
