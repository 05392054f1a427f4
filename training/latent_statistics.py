"""Mean and scale of a tokenizer's latents, as a diffusion model shall see them.

Unit variance for every channel would make a detail that moves few pixels as loud as the mean colour of a block, and a
diffusion model would settle both at the same noise level. Channels are instead left part of their weight in pixels, so
that the coarse picture comes first, as it does in pixel space (Dieleman 2024, "Diffusion is spectral autoregression").
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.files import atomic_path
from kinema.tokenizers.base import LatentTokenizer

_STEP = 0.5  # of a channel's deviation: small beside the latents, large beside float32 round-off


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """What was measured, per channel.

    Attributes:
        mean: of the latents.
        std: their standard deviation.
        weight: how much the channel moves the pixels, see `pixel_weights`.
        scale: what centred latents are divided by, see `balanced_scale`.
    """

    mean: list[float]
    std: list[float]
    weight: list[float]
    scale: list[float]

    def as_dict(self) -> dict[str, list[float]]:
        """For JSON."""
        return asdict(self)


@torch.no_grad()
def measure_latents(
    tokenizer: LatentTokenizer,
    videos: Sequence[Float[Tensor, "_ 3 _ _ _"]],
    balance: float,
    generator: torch.Generator,
) -> LatentStatistics:
    """Measures the statistics over clips and stores them in the tokenizer's config.

    Args:
        tokenizer: trained.
        videos: clips like those of the training, at least one batch.
        balance: see `balanced_scale`.
        generator: of the changes that measure a channel's weight.
    """
    mean, std = latent_moments(tokenizer, videos)
    latents = tokenizer.encode(videos[0].to(tokenizer.device)).latents
    weights = pixel_weights(lambda z: tokenizer.decode(z).sample.float(), latents, std, generator)
    scale = balanced_scale(std, weights, balance)
    tokenizer.set_latent_statistics(mean, scale)
    return LatentStatistics(mean=mean.tolist(), std=std.tolist(), weight=weights.tolist(), scale=scale.tolist())


def store_statistics(folder: Path, statistics: LatentStatistics) -> None:
    """Writes mean and scale into the `config.json` of a tokenizer's folder, whole or not at all; the rest stays."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | {"latents_mean": statistics.mean, "latents_std": statistics.scale}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def latent_moments(
    tokenizer: LatentTokenizer, videos: Iterable[Float[Tensor, "_ 3 _ _ _"]]
) -> tuple[Float[Tensor, " z"], Float[Tensor, " z"]]:
    """Mean and standard deviation of each latent channel over clips."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for video in videos:
        latents = tokenizer.encode(video.to(tokenizer.device)).latents.double().cpu()
        total = total + latents.sum(dim=(0, 2, 3, 4))
        squares = squares + latents.square().sum(dim=(0, 2, 3, 4))
        count += latents[:, 0].numel()
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp_min(1e-12).sqrt().float()


@torch.no_grad()
def pixel_weights(
    decode: Callable[[Tensor], Tensor],
    latents: Float[Tensor, "b z t h w"],
    std: Float[Tensor, " z"],
    generator: torch.Generator,
) -> Float[Tensor, " z"]:
    """How much a channel moves the pixels: root mean square change for a random change of one deviation.

    Args:
        decode: latents to video.
        latents: of some clips.
        std: deviation of each channel.
        generator: of the random changes.
    """
    base = decode(latents)
    weights = []
    for channel, deviation in enumerate(std.tolist()):
        moved = latents.clone()
        noise = torch.randn(latents[:, channel].shape, generator=generator).to(latents.device)
        moved[:, channel] += _STEP * deviation * noise
        weights.append((decode(moved) - base).square().mean().sqrt() / _STEP)
    return torch.stack(weights).cpu()


def balanced_scale(std: Float[Tensor, " z"], weights: Float[Tensor, " z"], balance: float) -> Float[Tensor, " z"]:
    """What to divide centred latents by: their variance becomes proportional to weight^(2 · balance), 1 on average.

    Args:
        std: deviation of each channel.
        weights: from `pixel_weights`.
        balance: 0 gives every channel unit variance, 1 its variance in pixels.
    """
    loudness = weights.clamp_min(1e-8) ** balance
    return std / (loudness / loudness.square().mean().sqrt())
