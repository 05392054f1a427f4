"""The causal 3D tokenizer: a KL or FSQ auto-encoder whose latent step k depends on frames up to k·ct alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float, Int
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.klt import fit_klt
from kinema.tokenizers.causal_vae.networks import HAAR_RATIO, Decoder, Encoder, Ratio, block_ratio
from kinema.tokenizers.causal_vae.presets import PRESETS
from kinema.tokenizers.interface import TokenizerOutput, pad_to_grid
from kinema.tokenizers.quantizers import BOTTLENECKS, FSQ, KL, Bottleneck


class CausalVideoTokenizer(ModelMixin, ConfigMixin):
    """Compresses clips of any length and size into latents, and back; one frame is an image.

    Args (all are saved in the config):
        bottleneck: "kl" or "fsq".
        latent_channels: channels of a KL bottleneck's latents.
        fsq_levels: levels per channel of an FSQ bottleneck.
        ratios: (time, height, width) ratio of each downsampling that follows the 2×2×2 Haar level.
        encoder_widths, decoder_widths: channels per stage, from half resolution down to the latents' resolution.
        encoder_blocks, decoder_blocks: residual blocks per stage, in the same order.
        latents_mean, latents_std: per channel, what `normalize` subtracts and divides by; measured over training data.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        bottleneck: str = "kl",
        latent_channels: int | None = None,
        fsq_levels: Sequence[int] | None = None,
        ratios: Sequence[Sequence[int]] = ((2, 2, 2), (1, 2, 2)),
        encoder_widths: Sequence[int] = (24, 96, 192),
        encoder_blocks: Sequence[int] = (1, 1, 2),
        decoder_widths: Sequence[int] = (24, 96, 192),
        decoder_blocks: Sequence[int] = (1, 3, 3),
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        self.quantizer = _make_bottleneck(bottleneck, latent_channels, fsq_levels)
        z = self.quantizer.latent_channels
        stages: list[Ratio] = [(r[0], r[1], r[2]) for r in ratios]
        self.encoder = Encoder(3, self.quantizer.in_channels, z, encoder_widths, encoder_blocks, stages)
        self.decoder = Decoder(3, z, decoder_widths, decoder_blocks, stages)
        deep = block_ratio(stages)
        self._temporal_ratio, self._spatial_ratio = HAAR_RATIO[0] * deep[0], HAAR_RATIO[1] * deep[1]

    @classmethod
    def from_preset(cls, name: str) -> "CausalVideoTokenizer":
        """An untrained tokenizer.

        Raises:
            KinemaError: there is no preset of this name.
        """
        if name not in PRESETS:
            raise KinemaError(f"`preset` (={name!r}) must be one of {', '.join(sorted(PRESETS))}")
        return cls(**PRESETS[name])

    @property
    def temporal_compression_ratio(self) -> int:
        return self._temporal_ratio

    @property
    def spatial_compression_ratio(self) -> int:
        return self._spatial_ratio

    @property
    def latent_channels(self) -> int:
        return self.quantizer.latent_channels

    @apply_forward_hook
    def encode(self, video: Float[Tensor, "b 3 t h w"]) -> TokenizerOutput:
        """Deterministic latents of a clip.

        Args:
            video: values in [-1, 1]; any number of frames and any size (padded to whole latent steps).

        Returns:
            `.latents` ``(b, z, 1 + ceil((t-1)/ct), ceil(h/cs), ceil(w/cs))``, the mode for KL and the code for FSQ.

        Raises:
            KinemaError: the video has no frame or no pixel.
        """
        return self._encode(video, sample=False, generator=None)[0]

    def _encode(self, video: Tensor, sample: bool, generator: torch.Generator | None) -> tuple[TokenizerOutput, Tensor]:
        """The output, and the latents that the decoder gets in training (a sample, where `sample` is set)."""
        t, h, w = video.shape[2:]
        padded = pad_to_grid(video, self.temporal_compression_ratio, self.spatial_compression_ratio)
        code = self.quantizer(self.encoder(padded), sample=sample, generator=generator)
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
        self,
        latents: Float[Tensor, "b z t h w"],
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> DecoderOutput:
        """Video of latents, `.sample` ``(b, 3, t, h, w)``, about [-1, 1] (not clamped).

        Args:
            latents: as from `encode`, not normalised.
            num_frames, height, width: crop the video to this size; whole latent steps unless told.

        Raises:
            KinemaError: the wanted size does not end in the last latent step.
        """
        wanted = self._wanted_size(latents, num_frames, height, width)
        video = self.decoder(latents.to(self.dtype))
        return DecoderOutput(sample=video[:, :, : wanted[0], : wanted[1], : wanted[2]])

    def _wanted_size(
        self, latents: Tensor, num_frames: int | None, height: int | None, width: int | None
    ) -> tuple[int, int, int]:
        ct, cs = self.temporal_compression_ratio, self.spatial_compression_ratio
        tl, hl, wl = latents.shape[2:]
        whole = {"num_frames": 1 + (tl - 1) * ct, "height": hl * cs, "width": wl * cs}
        given = {"num_frames": num_frames, "height": height, "width": width}
        wanted = {name: whole[name] if value is None else value for name, value in given.items()}
        for name, step in (("num_frames", ct), ("height", cs), ("width", cs)):
            least = max(whole[name] - step + 1, 1)
            if not least <= wanted[name] <= whole[name]:
                raise KinemaError(
                    f"`{name}` (={wanted[name]}) must lie in {least}..{whole[name]} for latents of shape {(tl, hl, wl)}"
                )
        return wanted["num_frames"], wanted["height"], wanted["width"]

    def reconstruct(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """``decode(encode(video))`` at the size of the input, clamped to [-1, 1]."""
        code = self.encode(video)
        return self.decode(code.latents, code.num_frames, code.height, code.width).sample.clamp(-1.0, 1.0)

    def indices_to_latents(self, indices: Int[Tensor, "b t h w"]) -> Float[Tensor, "b z t h w"]:
        """Latents of code indices.

        Raises:
            TypeError: the bottleneck is continuous.
            KinemaError: an index lies outside the codebook.
        """
        return self.quantizer.indices_to_latents(indices)

    def forward(
        self,
        video: Float[Tensor, "b 3 t h w"],
        sample_posterior: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b 3 t h w"], TokenizerOutput]:
        """Reconstruction (not clamped) and the encoder's output, for training."""
        output, latents = self._encode(video, sample_posterior, generator)
        t, h, w = video.shape[2:]
        return self.decode(latents, t, h, w).sample, output

    def normalize(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """Latents as a diffusion model wants them: `(latents - latents_mean) / latents_std`, or as they are without."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b z t h w"]:
        """The inverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def set_latent_statistics(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Stores what `normalize` subtracts and divides by in the config; measured once, after training."""
        self.register_to_config(latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config: Any = self.config
        if config.latents_mean is None:
            return torch.zeros((), device=like.device), torch.ones((), device=like.device)
        mean = torch.tensor(config.latents_mean, device=like.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
        std = torch.tensor(config.latents_std, device=like.device, dtype=torch.float32).view(1, -1, 1, 1, 1)
        return mean, std

    @torch.no_grad()
    def init_linear(self, videos: Iterable[Float[Tensor, "b 3 t h w"]]) -> None:
        """Sets the linear path of encoder and decoder to the KLT of these clips, whitened (see `klt.fit_klt`)."""
        fit_klt(self.encoder, self.decoder, videos)

    def freeze_linear(self) -> None:
        """Leaves the linear path out of training: adaptive steps would shake weights this small and well placed."""
        self.encoder.linear_path.requires_grad_(False)
        self.decoder.linear_path.requires_grad_(False)


def _make_bottleneck(name: str, latent_channels: int | None, fsq_levels: Sequence[int] | None) -> Bottleneck:
    if name not in BOTTLENECKS:
        raise KinemaError(f"`bottleneck` (={name!r}) must be one of {', '.join(BOTTLENECKS)}")
    if name == "fsq":
        if fsq_levels is None:
            raise KinemaError("`fsq_levels` (=None) must be given for the bottleneck 'fsq'")
        return FSQ(tuple(fsq_levels))
    if latent_channels is None or latent_channels < 1:
        raise KinemaError(f"`latent_channels` (={latent_channels}) must be at least 1 for the bottleneck {name!r}")
    return KL(latent_channels)
