"""The holistic tokenizer: a clip as a chosen number of ordered tokens without a grid, decoded from any first few."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers import base
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.checks import check_values, check_video
from kinema.tokenizers.holistic.linear import fit
from kinema.tokenizers.holistic.networks import TokenDecoder, TokenEncoder, TokenTrunk
from kinema.tokenizers.holistic.windows import Windows
from kinema.tokenizers.interface import TokenizerOutput
from kinema.tokenizers.streaming import StreamCache, whole_steps

# diffusers looks for the base class of a pipeline's component by this name in the component's own module.
__all__ = ["NESTED_DROPOUT", "HolisticVideoTokenizer", "ModelMixin", "prefix_lengths"]

NESTED_DROPOUT = ("powers", "uniform", "none")
"""Lengths of the prefixes in training: powers of two and the whole, any length, or always the whole."""


class HolisticVideoTokenizer(LatentTokenizer):
    """Gathers a clip into ordered tokens with learned queries (the line of LARP, arXiv 2410.21264; One-D-Piece,
    2501.10064; FlexTok, 2502.13967).

    In training the tail of the tokens is dropped at random (nested dropout, arXiv 1402.0915), so that the first tokens
    say what matters most, and any first few decode to the whole clip, better the more there are.

    A window of `num_frames` frames and `size` × `size` pixels becomes `num_tokens` tokens. Longer and larger clips are
    cut into windows side by side, in time, then rows, then columns; each is tokenised by itself (there may be seams),
    and the last ones are filled by repeating the last frame and the edges, which decoding crops. Latents are
    ``(b, z, k, 1, n)``: k windows, n tokens; indices ``(b, k, 1, n)``. Any size goes through; tiling has no effect.

    `decode` and `decode_stream` take any first n tokens of the windows. Height and width are those of a single window
    unless told. In time a row of windows is the latent step: a wanted number of frames must end in the last one, and a
    chunk of a stream holds all windows of one or more of them.

    Args (all are saved in the config):
        bottleneck: `name`, a key of `kinema.tokenizers.quantizers.BOTTLENECKS`, and the arguments of that class:
            ``{"name": "kl", "latent_channels": 16}``.
        num_frames, size: of a window; `num_frames` is 1 more than a multiple of the patches' frames.
        num_tokens: tokens of a window.
        patch: frames, rows and columns of a patch; even numbers, rows and columns equal.
        encoder_width, decoder_width: channels of a patch or token.
        encoder_depth, decoder_depth: transformer blocks.
        head_dim: channels of an attention head.
        mlp_ratio: hidden width of a block's MLP over its width.
        nested_dropout: one of `NESTED_DROPOUT`.
        latents_mean, latents_std: per channel, for `normalize`; measured on training data. None: the identity.
    """

    _repeated_blocks = ["JointBlock"]  # noqa: RUF012 (diffusers' protocol)
    has_grid = False

    encoder: TokenEncoder
    decoder: TokenDecoder

    @register_to_config
    def __init__(
        self,
        bottleneck: Mapping[str, Any],
        num_frames: int = 17,
        size: int = 64,
        num_tokens: int = 64,
        patch: Sequence[int] = (4, 8, 8),
        encoder_width: int = 384,
        encoder_depth: int = 6,
        decoder_width: int = 384,
        decoder_depth: int = 6,
        head_dim: int = 64,
        mlp_ratio: float = 4.0,
        nested_dropout: str = "powers",
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self._init_bottleneck(bottleneck, latents_mean, latents_std)
        if len(patch) != 3:
            raise KinemaError(f"`patch` (={tuple(patch)}) must be three numbers (time, height, width)")
        if num_tokens < 1:
            raise KinemaError(f"`num_tokens` (={num_tokens}) must be at least 1")
        if nested_dropout not in NESTED_DROPOUT:
            raise KinemaError(f"`nested_dropout` (={nested_dropout!r}) must be one of {', '.join(NESTED_DROPOUT)}")
        window = dict(num_frames=num_frames, size=size, num_tokens=num_tokens)
        ratio = (patch[0], patch[1], patch[2])
        encoder = TokenTrunk(width=encoder_width, depth=encoder_depth, head_dim=head_dim, mlp_ratio=mlp_ratio)
        decoder = TokenTrunk(width=decoder_width, depth=decoder_depth, head_dim=head_dim, mlp_ratio=mlp_ratio)
        z = self.quantizer.latent_channels
        self.encoder = TokenEncoder(self.quantizer.in_channels, z, ratio=ratio, trunk=encoder, **window)
        self.decoder = TokenDecoder(z, ratio=ratio, trunk=decoder, **window)
        self.num_tokens, self._nested_dropout = num_tokens, nested_dropout
        self._temporal_ratio, self._spatial_ratio = num_frames, size  # a window is one latent step

    @torch.no_grad()
    def init_linear(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Sets the linear path of encoder and decoder to the transform code of these clips, as the bottleneck passes it
        on (see `linear.fit`).

        Raises:
            KinemaError: There is no clip.
        """
        windows = (self._windows_of(video).split(video).flatten(0, 1) for video in videos)
        fit(self.encoder.linear_path, self.decoder.linear_path, self.quantizer, self.encoder.block_ratio, windows)

    # --- whole clips ---

    @apply_forward_hook
    def encode(self, video: Tensor, num_tokens: int | None = None) -> TokenizerOutput:
        """Deterministic tokens of a clip.

        Args:
            video: ``(b, 3, t, h, w)``, float in [-1, 1]; any number of frames and any size.
            num_tokens: Only the first so many tokens of each window (all unless told); they are those of all.

        Returns:
            `.latents` ``(b, z, k, 1, n)``: k windows, n tokens; the mode for KL and the code otherwise.

        Raises:
            KinemaError: The video is of another type, shape or range, or holds NaN; or there are not so many tokens.
        """
        check_video(video)
        if num_tokens is not None and not 1 <= num_tokens <= self.num_tokens:
            raise KinemaError(f"`num_tokens` (={num_tokens}) must lie in 1..{self.num_tokens}")
        hidden = self._by_slices(lambda part: self._hidden(part, num_tokens=num_tokens), video)
        return self._quantized(hidden, video.shape[2:])[0]

    def _hidden(self, video: Tensor, whole: bool = False, num_tokens: int | None = None) -> Tensor:
        windows = self._windows_of(video).split(video.to(self._type_of(self.encoder))).flatten(0, 1)
        count = self.num_tokens if num_tokens is None else num_tokens
        size = len(windows) if whole or not self.use_framewise_encoding else self._windows_per_pass
        tokens = torch.cat([self.encoder(part, count) for part in windows.split(size)])
        return rearrange(tokens, "(b k) n c -> b c k 1 n", b=len(video))

    def _decoded(
        self,
        latents: Tensor,
        num_frames: int | None,
        height: int | None,
        width: int | None,
        whole: bool = False,
        lengths: Int[Tensor, " g"] | None = None,
    ) -> Tensor:
        """The cropped video of all tokens, or of the first `lengths` tokens of each window."""
        b, z, count, one, n = latents.shape
        if one != 1 or n > self.num_tokens:
            raise KinemaError(
                f"`latents` (of shape {tuple(latents.shape)}) must be (batch, {z}, windows, 1, tokens) with at most "
                f"{self.num_tokens} tokens"
            )
        clip = num_frames, height, width
        layout = Windows.of_latents(self._temporal_ratio, self._spatial_ratio, count, clip)
        tokens = rearrange(latents, "b z k 1 n -> (b k) n z").to(self._type_of(self.decoder))
        size = len(tokens) if whole or not self.use_framewise_decoding else self._windows_per_pass
        present = [None] * len(tokens) if lengths is None else lengths.split(size)
        parts = [self.decoder(*part) for part in zip(tokens.split(size), present, strict=False)]
        video = layout.join(rearrange(torch.cat(parts), "(b k) ... -> b k ...", b=b))
        return video[:, :, :num_frames, : height or self._spatial_ratio, : width or self._spatial_ratio]

    def forward(
        self, video: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b 3 t h w"], TokenizerOutput]:
        """As `LatentTokenizer.forward`; in training mode, a random number of each window's last tokens is dropped."""
        with check_values(False):
            check_video(video)
        hidden = self._hidden(video, whole=True)
        output, latents = self._quantized(hidden, video.shape[2:], sample_posterior, generator)
        lengths = None
        if self.training and self._nested_dropout != "none":
            count = latents.shape[0] * latents.shape[2]
            lengths = prefix_lengths(count, self.num_tokens, self._nested_dropout, generator).to(latents.device)
        return self._decoded(latents, *video.shape[2:], whole=True, lengths=lengths), output

    def _hidden_pieces(self, chunks: Iterable[Tensor], cache: StreamCache) -> Iterator[Tensor]:
        frames = self._temporal_ratio
        for piece in whole_steps(chunks, frames, base.PIECE_PIXELS, first=False):
            cache.closed = bool(piece.shape[2] % frames)
            cache.first = False
            yield self._hidden(piece)

    def _decoded_pieces(
        self, latents: Tensor, height: int | None, width: int | None, cache: StreamCache
    ) -> Iterator[Tensor]:
        # Chunks may have different numbers of tokens, but windows side by side must be those of one frame.
        cache.keep_size("latents", (len(latents), height or self._spatial_ratio, width or self._spatial_ratio))
        cache.first = False
        yield self._decoded(latents, None, height, width)

    def _windows_of(self, video: Tensor) -> Windows:
        t, h, w = video.shape[2:]
        return Windows.of_clip(self._temporal_ratio, self._spatial_ratio, (t, h, w))

    @property
    def _windows_per_pass(self) -> int:
        """Windows that encoder and decoder take at once in framewise processing."""
        return max(base.PIECE_PIXELS // (self._temporal_ratio * self._spatial_ratio**2), 1)


def prefix_lengths(
    count: int, num_tokens: int, kind: str, generator: torch.Generator | None = None
) -> Int[Tensor, " g"]:
    """Random numbers of tokens that are kept, for nested dropout.

    Args:
        count: How many.
        num_tokens: The most.
        kind: "powers" draws from 1, 2, 4, ... and `num_tokens`, all alike (FlexTok, arXiv 2502.13967, section 3.1);
            "uniform" from all numbers (One-D-Piece, arXiv 2501.10064).
        generator: Of the draw.
    """
    choices = torch.arange(1, num_tokens + 1)
    if kind == "powers":
        choices = torch.tensor([*(2**k for k in range(num_tokens.bit_length()) if 2**k < num_tokens), num_tokens])
    device = "cpu" if generator is None else generator.device
    return choices[torch.randint(len(choices), (count,), generator=generator, device=device).cpu()]
