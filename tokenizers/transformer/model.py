"""The transformer causal tokenizer, with any bottleneck: latent step k depends on frames up to k·ct alone."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.causal_vae.klt import fit_klt
from kinema.tokenizers.transformer.networks import Decoder, Encoder, Trunk

# diffusers looks for the base class of a pipeline's component by this name in the component's own module.
__all__ = ["ModelMixin", "TransformerVideoTokenizer"]


class TransformerVideoTokenizer(LatentTokenizer):
    """Compresses clips of any length and size into latents, and back; one frame is an image.

    Blocks of pixels are tokens. Transformer blocks alternate attention in windows of a frame, shifted every other time,
    and attention in time over a cell's own column, causal and of limited reach (the line of C-ViViT, arXiv 2210.02399;
    OmniTokenizer, 2406.09399; BSQ-ViT, 2406.07548; ViTok, 2501.09755). Positions are rotary: no length and no size is
    special. What an output depends on is bounded in time and in space, so that streams of any chunks and tiles of any
    size give what the whole clip gives, to float32 round-off: there is no seam. Tiles overlap for that by all that an
    output can depend on (19 cells in the encoder and 27 in the decoder of `vit-kl-4x8x8-c16`). With random weights
    tiles of 24 cells then differ by 0; with half of the overlap by 4e-5 of the largest value, with none by 5e-3.

    Args (all are saved in the config):
        bottleneck: `name`, a key of `kinema.tokenizers.quantizers.BOTTLENECKS`, and the arguments of that class:
            ``{"name": "kl", "latent_channels": 16}``.
        ratio: frames, rows and columns of a latent cell; even numbers, rows and columns equal.
        encoder_width, decoder_width: channels of a token.
        encoder_depth, decoder_depth: transformer blocks.
        head_dim: channels of an attention head.
        window: latent cells along either side of a window; even.
        temporal_window: latent steps that attention in time sees, the present one included.
        mlp_ratio: hidden width of a block's MLP over its width.
        latents_mean, latents_std: per channel, for `normalize`; measured on training data. None: the identity.
    """

    _repeated_blocks = ["SpaceTimeBlock"]  # noqa: RUF012 (diffusers' protocol)

    encoder: Encoder
    decoder: Decoder

    @register_to_config
    def __init__(
        self,
        bottleneck: Mapping[str, Any],
        ratio: Sequence[int] = (4, 8, 8),
        encoder_width: int = 256,
        encoder_depth: int = 4,
        decoder_width: int = 256,
        decoder_depth: int = 6,
        head_dim: int = 64,
        window: int = 8,
        temporal_window: int = 8,
        mlp_ratio: float = 4.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self._init_bottleneck(bottleneck, latents_mean, latents_std)
        z = self.quantizer.latent_channels
        if len(ratio) != 3:
            raise KinemaError(f"`ratio` (={tuple(ratio)}) must be three numbers (time, height, width)")
        of_cell = (ratio[0], ratio[1], ratio[2])
        common = dict(head_dim=head_dim, window=window, reach=temporal_window)
        encoder = Trunk(width=encoder_width, depth=encoder_depth, mlp_ratio=mlp_ratio, **common)
        decoder = Trunk(width=decoder_width, depth=decoder_depth, mlp_ratio=mlp_ratio, **common)
        self.encoder = Encoder(self.quantizer.in_channels, z, of_cell, encoder)
        self.decoder = Decoder(z, of_cell, decoder)
        self._temporal_ratio, self._spatial_ratio = of_cell[0], of_cell[1]

    @torch.no_grad()
    def init_linear(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Sets the linear path of encoder and decoder to the KLT of these clips, whitened (see `fit_klt`)."""
        fit_klt(self.encoder, self.decoder, self.quantizer, videos)
