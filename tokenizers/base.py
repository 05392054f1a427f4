"""What all of kinema's tokenizers share: checks, padding, streams, tiles, precision, latent statistics.

A subclass builds `quantizer`, `encoder` and `decoder` and says its ratios; how pixels become latents is theirs.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.loading import one_line, quiet_casting
from kinema.machine import inference_mode_disabled
from kinema.tokenizers.checks import (
    check_config_keys,
    check_latents,
    check_statistics,
    check_video,
    check_weights,
    checked_chunks,
    parameters_limited,
    wanted_size,
)
from kinema.tokenizers.interface import TokenizerOutput, pad_to_grid, repeat_ends
from kinema.tokenizers.quantizers import Bottleneck
from kinema.tokenizers.streaming import StreamCache, open_stream, whole_steps
from kinema.tokenizers.tiling import Tiling, run_tiled

quiet_casting()

PIECE_PIXELS = 17 * 512 * 512
"""Outside training a clip passes in pieces of at most so many pixels (frames · height · width), but one latent step."""
TILE_SIZE = 1024
"""Frames larger than this along an axis are cut into tiles, unless tiling is disabled."""

AnyTokenizer = TypeVar("AnyTokenizer", bound="LatentTokenizer")


class LatentTokenizer(ModelMixin, ConfigMixin):
    """A causal video tokenizer: clips of any length and size to latents, and back; one frame is an image.

    A subclass sets in `__init__`:
        quantizer: The bottleneck.
        encoder: ``(video (b, 3, t, h, w), cache) -> (b, c, t', h', w')`` float32, whole latent steps; with an attribute
            `context`, the latent cells that an output can depend on to either side, and `grain` if it has windows.
        decoder: ``(latents (b, z, t', h', w'), cache) -> (b, 3, t, h, w)``, likewise.
        _temporal_ratio, _spatial_ratio: Frames of a latent step, pixels of a latent cell.

    One whose latents are no grid overrides `_hidden`, `_hidden_pieces`, `_decoded` and `_decoded_pieces`.

    Attributes:
        presets: The class's arguments by preset; a subclass names its table here.
        has_grid: Whether latents are a grid in time and space, which a diffusion model over them needs.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = True
    has_grid = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    quantizer: Bottleneck
    encoder: Any
    decoder: Any
    _temporal_ratio: int
    _spatial_ratio: int
    _tile_size: int | None = TILE_SIZE
    _statistics_on: tuple[Any, Tensor] | None = None

    @classmethod
    def from_preset(cls: type[AnyTokenizer], name: str) -> AnyTokenizer:
        """An untrained tokenizer.

        Raises:
            KinemaError: There is no preset of this name.
        """
        if name not in cls.presets:
            known = ", ".join(sorted(cls.presets)) or f"those of {cls.__name__}, which has none"
            raise KinemaError(f"`preset` (={name!r}) must be one of {known}")
        return cls(**cls.presets[name])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """A saved tokenizer, from a folder or a hub.

        Raises:
            KinemaError: The folder's weights are not those of its config, it holds a tokenizer of another class, or the
                config has a key that is no argument of this one.
        """
        folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        if (folder / "config.json").is_file():
            config: Any = cls.load_config(folder)
            name = config.get("_class_name")
            if name != cls.__name__:
                raise KinemaError(f"`{folder}` (of class {name}) must hold a {cls.__name__}")
            check_config_keys(config, cls.__init__, folder)
        try:
            with parameters_limited(folder) if folder.is_dir() else nullcontext():
                model: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except KinemaError:
            raise
        except Exception as error:  # a config may lead to any kind
            raise KinemaError(f"`{folder}` cannot be loaded as a {cls.__name__}: {one_line(error)}") from error
        if folder.is_dir():
            check_weights(model, folder)
        check_statistics(model.config.latents_mean, model.config.latents_std, model.latent_channels, folder)
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
        """Deterministic latents of a clip.

        Args:
            video: ``(b, 3, t, h, w)``, float in [-1, 1]; any number of frames and any size (padded to whole latent
                cells). Where no gradient is computed (`torch.no_grad`), a long clip passes in pieces and a large frame
                in tiles, so that memory grows with the latents only.

        Returns:
            `.latents` ``(b, z, 1 + ceil((t-1)/ct), ceil(h/cs), ceil(w/cs))``, the mode for KL and the code otherwise.

        Raises:
            KinemaError: The video is of another type, shape or range, or holds NaN.
        """
        check_video(video)
        return self._quantized(self._hidden(video), video.shape[2:])[0]

    def _hidden(self, video: Tensor) -> Tensor:
        """What the encoder makes of a whole clip."""
        padded = pad_to_grid(video, self._temporal_ratio, self._spatial_ratio)
        if torch.is_grad_enabled():
            return self.encoder(padded.to(self._type_of(self.encoder)))
        return torch.cat(list(self._hidden_pieces([padded], StreamCache())), dim=2)

    def _quantized(
        self, hidden: Tensor, size: tuple[int, ...], sample: bool = False, generator: torch.Generator | None = None
    ) -> tuple[TokenizerOutput, Tensor]:
        """The output of a clip of this size, and the latents that the decoder gets (drawn, where `sample` is set)."""
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
        """Video of latents, `.sample` ``(b, 3, t, h, w)``, about [-1, 1] (not clamped).

        Args:
            latents: ``(b, z, t', h', w')``, as from `encode`, not normalised.
            num_frames, height, width: Crop the video to this size; whole latent cells unless told.

        Raises:
            KinemaError: The latents are not of this tokenizer, or the wanted size does not end in the last latent cell.
        """
        check_latents(latents, self.latent_channels)
        return DecoderOutput(sample=self._decoded(latents, num_frames, height, width))

    def _decoded(self, latents: Tensor, num_frames: int | None, height: int | None, width: int | None) -> Tensor:
        t, h, w = wanted_size(
            latents.shape[2:],
            self._temporal_ratio,
            self._spatial_ratio,
            num_frames=num_frames,
            height=height,
            width=width,
        )
        if torch.is_grad_enabled():
            video = self.decoder(latents.to(self._type_of(self.decoder)))
        else:
            video = torch.cat(list(self._decoded_pieces(latents, h, w, StreamCache())), dim=2)
        return video[:, :, :t, :h, :w]

    @torch.no_grad()
    def reconstruct(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """``decode(encode(video))`` at the size of the input, clamped to [-1, 1]."""
        code = self.encode(video)
        return self.decode(code.latents, code.num_frames, code.height, code.width).sample.clamp(-1.0, 1.0)

    def indices_to_latents(self, indices: Tensor) -> Float[Tensor, "b z t h w"]:
        """Latents of code indices ``(b, t', h', w')``.

        Raises:
            KinemaError: The bottleneck is continuous, an index lies outside the codebook, or they are no integers.
        """
        return self.quantizer.indices_to_latents(indices)

    def forward(
        self,
        video: Float[Tensor, "b 3 t h w"],
        sample_posterior: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b 3 t h w"], TokenizerOutput]:
        """Reconstruction (not clamped) and the encoder's output, for training; the video is not checked."""
        output, latents = self._quantized(self._hidden(video), video.shape[2:], sample_posterior, generator)
        return self._decoded(latents, *video.shape[2:]), output

    def freeze_linear(self) -> None:
        """Leaves the linear path out of training: adaptive steps would shake weights this small and well placed."""
        self.encoder.linear_path.requires_grad_(False)
        self.decoder.linear_path.requires_grad_(False)

    # --- streams ---

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor], cache: StreamCache | None = None) -> Iterator[Tensor]:
        """Latents of a clip that comes in chunks, as soon as their latent steps are whole; equal to the whole clip's.

        Args:
            chunks: ``(b, 3, t, h, w)`` in [-1, 1], of any numbers of frames; taken one at a time, when needed.
            cache: State of the stream (a new one unless given); with it a later call goes on where this one stops, as
                long as the last latent step was whole.

        Yields:
            Latents as of `encode`; the last latent step is padded like that of a whole clip.

        Raises:
            KinemaError: A chunk is not a video, or not of the stream's batch and size; the cache's stream has ended.
        """
        cache = open_stream(cache)
        for hidden in self._hidden_pieces(checked_chunks(chunks, cache), cache):
            yield self.quantizer(hidden).mode

    def _hidden_pieces(self, chunks: Iterable[Tensor], cache: StreamCache) -> Iterator[Tensor]:
        """What the encoder makes of the next chunks of a stream; an incomplete latent step is padded and ends it."""
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
        """Video of latents that come in chunks; equal to decoding them all at once.

        Args:
            latents: Chunks of latents as of `encode`, of any numbers of steps; taken one at a time, when needed.
            num_frames: Crop the whole video to so many frames. It ends there: this must lie in the last latent step.
            height, width: Crop the frames; as for `decode` unless told.
            cache: State of the stream (a new one unless given); with it a later call goes on where this one stops.
                `num_frames` is then that of all calls together, and need not be reached in this one; once it is, the
                stream has ended.

        Yields:
            ``(b, 3, t, h, w)``, about [-1, 1] (not clamped); all that the latent steps hold that have come.

        Raises:
            KinemaError: A chunk is not of this tokenizer, or not of the stream's batch and size; the wanted size does
                not end in the last latent cell; there is no chunk, and frames are wanted; the cache's stream has ended.
        """
        may_go_on = cache is not None
        cache = open_stream(cache)
        for chunk in latents:
            check_latents(chunk, self.latent_channels)
            for video in self._decoded_pieces(chunk, height, width, cache):
                yield cache.crop(video, num_frames, self._temporal_ratio)
        if num_frames is not None and not (cache.closed or may_go_on):
            if cache.first:
                raise KinemaError(f"`latents` (=no chunk) must hold latents of `num_frames` (={num_frames}) frames")
            least, most = max(cache.num_frames - self._temporal_ratio, 0) + 1, cache.num_frames
            raise KinemaError(f"`num_frames` (={num_frames}) must lie in {least}..{most}, the last latent step")

    def _decoded_pieces(
        self, latents: Tensor, height: int | None, width: int | None, cache: StreamCache
    ) -> Iterator[Tensor]:
        """Video of the next latents of a stream, all frames of their steps."""
        batch, _, _, rows, columns = latents.shape
        cache.keep_size("latents", (batch, rows, columns))
        _, h, w = wanted_size(latents.shape[2:], 1, self._spatial_ratio, height=height, width=width)
        for part in latents.split(self._piece_steps(rows, columns), dim=2):
            yield self._pass(self.decoder, part, cache)[..., :h, :w]

    def _pass(self, network: nn.Module, x: Tensor, cache: StreamCache) -> Tensor:
        """The next piece of a stream through encoder or decoder, in tiles where the frame is large."""
        cell = self._spatial_ratio
        cell_in, cell_out = (cell, 1) if network is self.encoder else (1, cell)
        x = x.to(self._type_of(network))
        height, width = x.shape[3] // cell_in * cell, x.shape[4] // cell_in * cell
        if self._tile_size is not None and max(height, width) > self._tile_size:
            y = run_tiled(network, x, self._tiling(network), cell_in, cell_out, cache)
        else:
            y = network(x, cache)
        cache.first = False
        return y

    def _piece_steps(self, height: int, width: int) -> int:
        cells = height * width * self._spatial_ratio**2
        return max(PIECE_PIXELS // (cells * self._temporal_ratio), 1)

    # --- tiles and precision ---

    def enable_tiling(self, tile_size: int = TILE_SIZE) -> None:
        """Cuts frames larger than `tile_size` pixels along an axis into tiles of at most that size (the default).

        Tiles are read with their surroundings. Where the network's context is covered by them, as in the convolutional
        tokenizers, the result is that of the whole frame to float32 round-off. Where gradients are computed, frames
        pass whole.

        Raises:
            KinemaError: `tile_size` is below the smallest part of a frame: a latent cell, or a window of attention.
        """
        grains: list[int] = [getattr(network, "grain", 1) for network in (self.encoder, self.decoder)]
        least = self._spatial_ratio * max(grains)
        if tile_size < least:
            raise KinemaError(f"`tile_size` (={tile_size}) must be at least {least}, the smallest part of a frame")
        self._tile_size = tile_size

    def disable_tiling(self) -> None:
        """Passes frames of any size whole."""
        self._tile_size = None

    def _tiling(self, network: nn.Module) -> Tiling:
        assert self._tile_size is not None
        context: Any = network.context
        grain: Any = getattr(network, "grain", 1)
        return Tiling(self._tile_size // self._spatial_ratio, context, grain)

    def set_precision(
        self, encode: torch.dtype = torch.float32, decode: torch.dtype = torch.float32
    ) -> "LatentTokenizer":
        """Types that encoder and decoder compute in; latents stay float32.

        Decoding stands bfloat16 well; encoding drifts, and what is trained on the latents with it.
        """
        self.encoder.to(encode)
        self.decoder.to(decode)
        return self

    @staticmethod
    def _type_of(network: nn.Module) -> torch.dtype:
        return next(network.parameters()).dtype

    # --- latent statistics ---

    def normalize(self, latents: Tensor) -> Float[Tensor, "b z t h w"]:
        """Latents ``(b, z, t, h, w)`` as a diffusion model wants them.

        That is `(latents - latents_mean) / latents_std`, or the latents as they are where nothing was measured.

        Raises:
            KinemaError: The latents have other dimensions or channels.
        """
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`, which see."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def set_latent_statistics(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Stores what `normalize` subtracts and divides by in the config; measured once, after training."""
        self.register_to_config(latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config: Any = self.config
        if like.ndim != 5 or like.shape[1] != self.latent_channels:  # one channel would spread over all of them
            shape, channels = tuple(like.shape), self.latent_channels
            raise KinemaError(f"`latents` (of shape {shape}) must be (batch, {channels}, frames, height, width)")
        if config.latents_mean is None:
            return torch.zeros((), device=like.device), torch.ones((), device=like.device)
        key = (tuple(config.latents_mean), tuple(config.latents_std), like.device)
        if self._statistics_on is None or self._statistics_on[0] != key:
            # Kept: to copy them to a device in each call would make the host wait.
            with inference_mode_disabled():
                both = torch.tensor([config.latents_mean, config.latents_std], device=like.device, dtype=torch.float32)
            self._statistics_on = (key, both.view(2, 1, -1, 1, 1, 1))
        mean, std = self._statistics_on[1]
        return mean, std
