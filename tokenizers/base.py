"""What all of kinema's tokenizers share: loading, encoding and decoding of whole clips and of streams, precision.

A subclass builds `quantizer`, `encoder` and `decoder` and sets its compression ratios.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.loading import one_line, quiet_casting
from kinema.tokenizers.checks import (
    check_config_keys,
    check_latents,
    check_values,
    check_video,
    check_weights,
    checked_chunks,
    parameters_limited,
    wanted_size,
)
from kinema.tokenizers.interface import TokenizerOutput, pad_to_grid, repeat_ends
from kinema.tokenizers.normalization import NormalizedLatents, Statistic
from kinema.tokenizers.quantizers import BOTTLENECKS, Bottleneck, make_bottleneck, nested_bottleneck
from kinema.tokenizers.streaming import StreamCache, open_stream, whole_steps
from kinema.tokenizers.tiling import Tiling, run_tiled

quiet_casting()

PIECE_PIXELS = 17 * 512 * 512
"""Most pixels (frames · height · width) of a piece in framewise encoding and decoding; at least one latent step."""
TILE_SIZE = 1024
"""Default of `tile_size`, in pixels."""


class LatentTokenizer(NormalizedLatents, AutoencoderMixin):
    """A causal video tokenizer: clips of any length and size to latents, and back; one frame is an image.

    A subclass sets in `__init__`:
        quantizer: The bottleneck, by `_init_bottleneck`.
        encoder: ``(video (b, 3, t, h, w), cache) -> (b, c, t', h', w')`` float32, whole latent steps. Its attribute
            `context` is the spatial receptive field of an output to either side, in latent cells; `grain` is the size
            of its windows, if it has any.
        decoder: ``(latents (b, z, t', h', w'), cache) -> (b, 3, t, h, w)``, likewise.
        _temporal_ratio, _spatial_ratio: The compression ratios, in frames and pixels.

    A subclass whose latents are not a grid overrides `_hidden`, `_hidden_pieces`, `_decoded` and `_decoded_pieces`.

    Attributes:
        has_grid: Whether latents are a grid in time and space, as a diffusion model needs them.
        use_framewise_encoding, use_framewise_decoding: Process clips of more than `PIECE_PIXELS` in pieces along time,
            as a stream, so that memory does not grow with their length. On by default.
        use_tiling, tile_size: Divide frames of more than `tile_size` pixels along an axis into tiles of at most that
            size. On by default, with 1024 pixels.
        use_slicing: Process the clips of a batch one by one. Off by default.

    The flags apply to `encode` and `decode`, with gradients or without. `forward` ignores them: in training, pieces
    save no memory.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    has_grid = True
    use_framewise_encoding = True
    use_framewise_decoding = True
    use_tiling = True
    tile_size = TILE_SIZE
    use_slicing = False

    quantizer: Bottleneck
    encoder: Any
    decoder: Any
    _temporal_ratio: int
    _spatial_ratio: int

    def _init_bottleneck(
        self,
        bottleneck: Mapping[str, Any],
        latents_mean: Statistic,
        latents_std: Statistic,
        classes: Mapping[str, type[Bottleneck]] = BOTTLENECKS,
    ) -> None:
        """Build the bottleneck, and set the statistics of its latents."""
        self.quantizer = make_bottleneck(bottleneck, classes)
        self._set_statistics(latents_mean, latents_std)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Build an untrained tokenizer from a config, also from one in the form before 0.2 (`nested_bottleneck`)."""
        return super().from_config(nested_bottleneck(config), return_unused_kwargs, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load a saved tokenizer from a folder or a hub.

        Raises:
            KinemaError: The weights do not fit the config, the folder holds a tokenizer of another class, or a key of
                the config is unknown.
        """
        folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        if (folder / "config.json").is_file():
            config: Any = cls.load_config(folder)
            name = config.get("_class_name")
            if name != cls.__name__:
                raise KinemaError(f"`{folder}` (of class {name}) must hold a {cls.__name__}")
            check_config_keys(nested_bottleneck(config), cls.__init__, folder)
        try:
            with parameters_limited(folder) if folder.is_dir() else nullcontext():
                model: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except KinemaError:
            raise
        except Exception as error:  # damaged configs cause errors of any type
            raise KinemaError(f"`{folder}` cannot be loaded as a {cls.__name__}: {one_line(error)}") from error
        if folder.is_dir():
            check_weights(model, folder)
        return model

    @property
    def temporal_compression_ratio(self) -> int:
        return self._temporal_ratio

    @property
    def spatial_compression_ratio(self) -> int:
        return self._spatial_ratio

    @property
    def latent_channels(self) -> int:
        return self.quantizer.latent_channels

    # --- whole clips ---

    @apply_forward_hook
    def encode(self, video: Tensor) -> TokenizerOutput:
        """Encode a clip to deterministic latents.

        Args:
            video: ``(b, 3, t, h, w)``, float in [-1, 1]; any number of frames and any size (padded to whole latent
                cells).

        Returns:
            `.latents` ``(b, z, 1 + ceil((t-1)/ct), ceil(h/cs), ceil(w/cs))``: the mode for KL, else the code.

        Raises:
            KinemaError: Shape, type or range of the video is wrong, or it holds NaN.
        """
        check_video(video)
        return self._quantized(self._by_slices(self._hidden, video), video.shape[2:])[0]

    def _by_slices(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        return torch.cat([function(part) for part in batch.split(1)]) if self.use_slicing else function(batch)

    def _hidden(self, video: Tensor, whole: bool = False) -> Tensor:
        """The encoder's output for a clip; `whole` ignores the flags."""
        padded = pad_to_grid(video, self._temporal_ratio, self._spatial_ratio)
        if whole:
            return self.encoder(padded.to(self._type_of(self.encoder)))
        if self.use_framewise_encoding:
            return torch.cat(list(self._hidden_pieces([padded], StreamCache())), dim=2)
        return self._pass(self.encoder, padded)

    def _quantized(
        self, hidden: Tensor, size: tuple[int, ...], sample: bool = False, generator: torch.Generator | None = None
    ) -> tuple[TokenizerOutput, Tensor]:
        """The output for a clip of this size, and the decoder's input (a sample, if `sample` is set)."""
        code = self.quantizer(hidden, sample=sample, generator=generator)
        t, h, w = size
        output = TokenizerOutput(
            latents=code.mode,
            latent_dist=code.latent_dist,
            indices=code.indices,
            losses=code.losses,
            num_frames=t,
            height=h,
            width=w,
        )
        return output, code.latents

    @apply_forward_hook
    def decode(
        self, latents: Tensor, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> DecoderOutput:
        """Decode latents to video, `.sample` ``(b, 3, t, h, w)``, about [-1, 1] (not clamped).

        Args:
            latents: ``(b, z, t', h', w')``, as from `encode`, not normalised.
            num_frames, height, width: Crop the video to this size; by default, whole latent cells.

        Raises:
            KinemaError: Shape, type or values of the latents are wrong, or the size does not end in the last latent
                cell.
        """
        check_latents(latents, self.latent_channels)
        video = self._by_slices(lambda part: self._decoded(part, num_frames, height, width), latents)
        return DecoderOutput(sample=video)

    def _decoded(
        self, latents: Tensor, num_frames: int | None, height: int | None, width: int | None, whole: bool = False
    ) -> Tensor:
        """The cropped video; `whole` ignores the flags."""
        t, h, w = wanted_size(
            latents.shape[2:],
            self._temporal_ratio,
            self._spatial_ratio,
            num_frames=num_frames,
            height=height,
            width=width,
        )
        if whole:
            video = self.decoder(latents.to(self._type_of(self.decoder)))
        elif self.use_framewise_decoding:
            video = torch.cat(list(self._decoded_pieces(latents, h, w, StreamCache())), dim=2)
        else:
            video = self._pass(self.decoder, latents)
        return video[:, :, :t, :h, :w]

    @torch.no_grad()
    def reconstruct(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """``decode(encode(video))`` at the size of the input, clamped to [-1, 1]."""
        code = self.encode(video)
        return self.decode(code.latents, code.num_frames, code.height, code.width).sample.clamp(-1.0, 1.0)

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """Look up the latents of code indices ``(b, t', h', w')``, see `Bottleneck.indices_to_latents`."""
        return self.quantizer.indices_to_latents(indices)

    def forward(
        self, video: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b 3 t h w"], TokenizerOutput]:
        """Encode and decode in one pass, for training.

        Args:
            video: As for `encode`.
            sample_posterior: Decode a sample of the posterior instead of its mode (KL only).
            generator: Of the sample.

        Returns:
            The reconstruction, not clamped, and the output of the encoder.

        Raises:
            KinemaError: Shape or type of the video is wrong. Its values are not checked.
        """
        with check_values(False):
            check_video(video)
        hidden = self._hidden(video, whole=True)
        output, latents = self._quantized(hidden, video.shape[2:], sample_posterior, generator)
        return self._decoded(latents, *video.shape[2:], whole=True), output

    def freeze_linear(self) -> None:
        """Exclude the linear path from training: steps of an adaptive optimizer would be too large for its weights."""
        self.encoder.linear_path.requires_grad_(False)
        self.decoder.linear_path.requires_grad_(False)

    # --- streams ---

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor], cache: StreamCache | None = None) -> Iterator[Tensor]:
        """Encode a clip that arrives in chunks; equal to `encode` of the whole clip.

        Args:
            chunks: ``(b, 3, t, h, w)`` in [-1, 1], any numbers of frames; consumed lazily.
            cache: State of the stream; by default, a new one. A later call with the same cache continues the stream
                if it ended with a whole latent step.

        Yields:
            Latents as from `encode`, as soon as a latent step is complete; the last one is padded as in `encode`.

        Raises:
            KinemaError: A chunk is not a video, or of another batch or size; or the cache's stream has ended.
        """
        cache = open_stream(cache)
        for hidden in self._hidden_pieces(checked_chunks(chunks, cache), cache):
            yield self.quantizer(hidden).mode

    def _hidden_pieces(self, chunks: Iterable[Tensor], cache: StreamCache) -> Iterator[Tensor]:
        """The encoder's output for the next chunks of a stream; an incomplete latent step is padded and ends it."""
        for piece in whole_steps(chunks, self._temporal_ratio, PIECE_PIXELS, cache.first):
            t, h, w = piece.shape[2:]
            missing = -(t - int(cache.first)) % self._temporal_ratio
            cache.closed = missing > 0
            padded = repeat_ends(piece, (missing, -h % self._spatial_ratio, -w % self._spatial_ratio))
            yield self._pass(self.encoder, padded, cache)

    @torch.no_grad()
    def decode_stream(
        self,
        latents: Iterable[Tensor],
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        cache: StreamCache | None = None,
    ) -> Iterator[Tensor]:
        """Decode latents that arrive in chunks; equal to `decode` of all of them.

        Args:
            latents: Chunks of latents as from `encode`, any numbers of latent steps; consumed lazily.
            num_frames: Length of the whole video, which must end in the last latent step; by default, whole latent
                steps.
            height, width: Crop the frames, as in `decode`.
            cache: State of the stream; by default, a new one. A later call with the same cache continues the stream.
                `num_frames` counts the frames of all calls; when it is reached, the stream has ended.

        Yields:
            ``(b, 3, t, h, w)``, about [-1, 1] (not clamped): all frames of the latent steps so far.

        Raises:
            KinemaError: A chunk is not latents of this tokenizer, or of another batch or size; the size does not end
                in the last latent cell; there is no chunk although `num_frames` is set; or the cache's stream has
                ended.
        """
        continues = cache is not None
        cache = open_stream(cache)
        for chunk in latents:
            check_latents(chunk, self.latent_channels)
            for video in self._decoded_pieces(chunk, height, width, cache):
                yield cache.crop(video, num_frames, self._temporal_ratio)
        if num_frames is not None and not (cache.closed or continues):
            if cache.first:
                raise KinemaError(f"`latents` (=no chunk) must hold latents of `num_frames` (={num_frames}) frames")
            least, most = max(cache.num_frames - self._temporal_ratio, 0) + 1, cache.num_frames
            raise KinemaError(f"`num_frames` (={num_frames}) must lie in {least}..{most}, the last latent step")

    def _decoded_pieces(
        self, latents: Tensor, height: int | None, width: int | None, cache: StreamCache
    ) -> Iterator[Tensor]:
        """All frames of the next latents of a stream."""
        batch, _, _, rows, columns = latents.shape
        cache.keep_size("latents", (batch, rows, columns))
        _, h, w = wanted_size(latents.shape[2:], 1, self._spatial_ratio, height=height, width=width)
        for part in latents.split(self._piece_steps(rows, columns), dim=2):
            yield self._pass(self.decoder, part, cache)[..., :h, :w]

    def _pass(self, network: nn.Module, x: Tensor, cache: StreamCache | None = None) -> Tensor:
        """Encoder or decoder on a clip, or on the next piece of a stream; in tiles if the frames are large."""
        cell = self._spatial_ratio
        cell_in, cell_out = (cell, 1) if network is self.encoder else (1, cell)
        x = x.to(self._type_of(network))
        height, width = x.shape[3] // cell_in * cell, x.shape[4] // cell_in * cell
        if self.use_tiling and max(height, width) > self.tile_size:
            context: Any = network.context
            tiling = Tiling(self.tile_size // cell, context, getattr(network, "grain", 1))
            y = run_tiled(network, x, tiling, cell_in, cell_out, cache)
        else:
            y = network(x, cache)
        if cache is not None:
            cache.first = False
        return y

    def _piece_steps(self, height: int, width: int) -> int:
        cells = height * width * self._spatial_ratio**2
        return max(PIECE_PIXELS // (cells * self._temporal_ratio), 1)

    # --- tiles and precision ---

    def enable_tiling(self, tile_size: int = TILE_SIZE) -> None:
        """Divide frames larger than `tile_size` pixels along an axis into tiles of at most that size (the default).

        Tiles are read with a margin. If it covers the network's receptive field, as in the convolutional tokenizers,
        the result equals that of the whole frame to float32 round-off.

        Raises:
            KinemaError: `tile_size` is smaller than a latent cell, or than a window of attention.
        """
        grains: list[int] = [getattr(network, "grain", 1) for network in (self.encoder, self.decoder)]
        least = self._spatial_ratio * max(grains)
        if tile_size < least:
            raise KinemaError(f"`tile_size` (={tile_size}) must be at least {least}, the smallest part of a frame")
        self.use_tiling, self.tile_size = True, tile_size

    def set_precision(
        self, encode: torch.dtype = torch.float32, decode: torch.dtype = torch.float32
    ) -> "LatentTokenizer":
        """Set the types in which encoder and decoder compute; latents stay float32.

        Decoding in bfloat16 changes little. Encoding in bfloat16 changes the latents, and so models trained on them.
        """
        self.encoder.to(encode)
        self.decoder.to(decode)
        return self

    @staticmethod
    def _type_of(network: nn.Module) -> torch.dtype:
        return next(network.parameters()).dtype
