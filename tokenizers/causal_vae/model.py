"""The convolutional causal tokenizer, with any bottleneck: latent step k depends on frames up to k·ct alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.klt import fit_klt
from kinema.tokenizers.causal_vae.networks import HAAR_RATIO, Decoder, Encoder, Ratio, block_ratio

# diffusers looks for the base class of a pipeline's component by this name in the component's own module.
__all__ = ["CausalVideoTokenizer", "ModelMixin"]


class CausalVideoTokenizer(LatentTokenizer):
    """Compresses clips of any length and size into latents, and back; one frame is an image.

    Args (all are saved in the config):
        bottleneck: `name`, a key of `kinema.tokenizers.quantizers.BOTTLENECKS`, and the arguments of that class:
            ``{"name": "kl", "latent_channels": 16}``.
        ratios: (time, height, width) ratio of each downsampling that follows the 2×2×2 Haar level.
        encoder_widths, decoder_widths: channels per stage, from half resolution down to the latents' resolution.
        encoder_blocks, decoder_blocks: residual blocks per stage, in the same order.
        latents_mean, latents_std: per channel, for `normalize`; measured on training data. None: the identity.
    """

    _repeated_blocks = ["ResidualBlock"]  # noqa: RUF012 (diffusers' protocol)

    @register_to_config
    def __init__(
        self,
        bottleneck: Mapping[str, Any],
        ratios: Sequence[Sequence[int]] = ((2, 2, 2), (1, 2, 2)),
        encoder_widths: Sequence[int] = (24, 96, 192),
        encoder_blocks: Sequence[int] = (1, 1, 2),
        decoder_widths: Sequence[int] = (24, 96, 192),
        decoder_blocks: Sequence[int] = (1, 3, 3),
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self._init_bottleneck(bottleneck, latents_mean, latents_std)
        z = self.quantizer.latent_channels
        stages: list[Ratio] = [(r[0], r[1], r[2]) for r in ratios]
        self.encoder = Encoder(3, self.quantizer.in_channels, z, encoder_widths, encoder_blocks, stages)
        self.decoder = Decoder(3, z, decoder_widths, decoder_blocks, stages)
        deep = block_ratio(stages)
        self._temporal_ratio, self._spatial_ratio = HAAR_RATIO[0] * deep[0], HAAR_RATIO[1] * deep[1]

    @torch.no_grad()
    def init_linear(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Sets the linear path of encoder and decoder to the KLT of these clips, whitened (see `klt.fit_klt`)."""
        fit_klt(self.encoder, self.decoder, self.quantizer, videos)
