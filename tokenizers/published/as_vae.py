"""kinema's KL tokenizers where diffusers expects an auto-encoder: `WanPipeline(..., vae=AsVAE(tokenizer))`."""

from math import log2
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.checks import check_latents
from kinema.tokenizers.quantizers import KL, DiagonalGaussian


class AsVAE(nn.Module):
    """A tokenizer with the attributes and calls of diffusers' video auto-encoders.

    Pipelines normalise latents in different ways, some of them by one number for all channels. So the latents on this
    side are the normalised ones already (`tokenizer.normalize`), and the config says mean 0, standard deviation 1,
    factor 1, which each pipeline's own formula leaves as it is. Sizes must be whole: 1 + k·ct frames, multiples of cs;
    a pipeline could not crop what was padded.

    A pipeline with it is built in code; `tokenizer.save_pretrained` saves the tokenizer.

    Args:
        tokenizer: with a KL bottleneck.

    Raises:
        KinemaError: the bottleneck is another.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, tokenizer: LatentTokenizer):
        super().__init__()
        if not isinstance(tokenizer.quantizer, KL):
            kind = type(tokenizer.quantizer).__name__
            raise KinemaError(f"`tokenizer` (with the bottleneck {kind}) must have KL: pipelines expect a posterior")
        if not tokenizer.has_grid:
            raise KinemaError(f"`tokenizer` (a {type(tokenizer).__name__}) must have latents on a grid")
        self.tokenizer: Any = tokenizer
        ct, cs = tokenizer.temporal_compression_ratio, tokenizer.spatial_compression_ratio
        z = tokenizer.latent_channels
        self.temporal_compression_ratio, self.spatial_compression_ratio = ct, cs
        # LTX reads tensors here, the others the config.
        self.register_buffer("latents_mean", torch.zeros(z), persistent=False)
        self.register_buffer("latents_std", torch.ones(z), persistent=False)
        self.config: Any = FrozenDict(
            z_dim=z,
            latent_channels=z,
            scale_factor_temporal=ct,
            scale_factor_spatial=cs,
            temporal_compression_ratio=ct,
            spatial_compression_ratio=cs,
            latents_mean=[0.0] * z,
            latents_std=[1.0] * z,
            scaling_factor=1.0,
            shift_factor=None,
            timestep_conditioning=False,
            invert_scale_latents=False,
            block_out_channels=[0] * (round(log2(cs)) + 1),  # CogVideoX counts them; the widths mean nothing
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.tokenizer.dtype

    @property
    def device(self) -> torch.device:
        return self.tokenizer.device

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The posterior of a clip, in normalised latents.

        Args:
            x: ``(b, 3, t, h, w)``, float in [-1, 1], of a whole size.
            return_dict: an `AutoencoderKLOutput` with `.latent_dist`, or else a tuple.

        Raises:
            KinemaError: the clip is no video, or its size is not whole.
        """
        self._check_whole(x)
        code = self.tokenizer.encode(x).latent_dist
        # Normalisation is affine: its slope, from where it takes 1 and 0, scales the spread.
        one = torch.ones_like(code.mean[:1, :, :1, :1, :1])
        slope = self.tokenizer.normalize(one) - self.tokenizer.normalize(torch.zeros_like(one))
        posterior: Any = DiagonalGaussian(self.tokenizer.normalize(code.mean), code.logvar + 2 * slope.log())
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, timestep: Tensor | None = None, return_dict: bool = True) -> Any:
        """Video of normalised latents, about [-1, 1], in the tokenizer's type.

        Args:
            z: ``(b, z, t', h', w')``, as from `encode`, or from a diffusion model.
            timestep: not used; LTX's pipelines give one.
            return_dict: a `DecoderOutput` with `.sample`, or else a tuple.

        Raises:
            KinemaError: the latents are not of this tokenizer.
        """
        check_latents(z, self.config.latent_channels)
        video = self.tokenizer.decode(self.tokenizer.denormalize(z.float())).sample.to(self.dtype)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, sample: Float[Tensor, "b 3 t h w"], return_dict: bool = True) -> Any:
        """A clip there and back."""
        (posterior,) = self.encode(sample, return_dict=False)
        return self.decode(posterior.mode(), return_dict=return_dict)

    def enable_slicing(self) -> None:
        """As the tokenizer's `enable_slicing`."""
        self.tokenizer.enable_slicing()

    def disable_slicing(self) -> None:
        """As the tokenizer's `disable_slicing`."""
        self.tokenizer.disable_slicing()

    def enable_tiling(self, *args: Any, **options: Any) -> None:
        """As the tokenizer's `enable_tiling`."""
        self.tokenizer.enable_tiling(*args, **options)

    def disable_tiling(self) -> None:
        """As the tokenizer's `disable_tiling`."""
        self.tokenizer.disable_tiling()

    def _check_whole(self, video: Tensor) -> None:
        if video.ndim != 5:
            raise KinemaError(f"`x` (of shape {tuple(video.shape)}) must be (batch, 3, frames, height, width)")
        t, h, w = video.shape[2:]
        ct, cs = self.temporal_compression_ratio, self.spatial_compression_ratio
        if (t - 1) % ct or h % cs or w % cs:
            raise KinemaError(
                f"`x` (of {t} frames of {h}x{w}) must have 1 + k·{ct} frames, and sides in multiples of {cs}"
            )
