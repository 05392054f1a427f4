"""VidTok's checkpoints (Tang et al., arXiv 2412.13061) in a tokenizer of kinema: causal, version 1.0, KL and FSQ."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import check_input_file
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.published.vidtok_networks import Decoder, Encoder
from kinema.tokenizers.quantizers import FSQ, KL, BottleneckOutput, DiagonalGaussian

# diffusers looks for the base class of a pipeline's component by this name in the component's own module.
__all__ = ["ModelMixin", "VidTokTokenizer", "infer_options"]

TRAINING_ONLY = ("loss.", "model_ema.")
"""What names of weights begin with that the tokenizer does not need."""

LEVELS_PER_CHANNEL = 8
"""Checkpoints do not hold the levels of FSQ; all that VidTok published have 8 in every channel."""


FOUR_CHANNELS = {"name": "kl", "latent_channels": 4}
"""The bottleneck of most published KL models."""


class PublishedKL(KL):
    """A Gaussian whose log-variance is the encoder's output itself; kinema's own KL moves it."""

    def forward(
        self, h: Float[Tensor, "b c t h w"], sample: bool = False, generator: torch.Generator | None = None
    ) -> BottleneckOutput:
        dist = DiagonalGaussian(*h.float().chunk(2, dim=1))
        latents = dist.sample(generator) if sample else dist.mode()
        return BottleneckOutput(latents=latents, mode=dist.mode(), latent_dist=dist, losses={"kl": dist.kl().mean()})


class VidTokTokenizer(LatentTokenizer):
    """VidTok as a tokenizer of kinema, with its streams, statistics and files.

    VidTok returns 17 of 17 frames, 13 of 16 and 1 of 2. Here a clip is first brought to 1 + k·ct frames by repeating
    its last frame, where the original loses nothing, and cropped again: every frame comes back, and at those lengths
    the numbers are the original's. Encoding gives the mode of the posterior (the original draws a sample).

    Tiling is off by default: the attention at the lowest resolution sees whole frames.

    Args (all are saved in the config; the defaults are the KL model 4·8·8 with 4 channels):
        bottleneck: A `name`, "kl" or "fsq", and the arguments of that class, as for `CausalVideoTokenizer`.
        widths: channels of each level, from the pixels down.
        blocks: spatial and temporal blocks of a level; the decoder has one more.
        spatial_down, temporal_down: levels of the encoder that end with a halving of space, and of time.
        spatial_up, temporal_up: levels of the decoder that end with a doubling.
        latents_mean, latents_std: per channel, what `normalize` subtracts and divides by.
    """

    use_tiling = False

    @register_to_config
    def __init__(
        self,
        bottleneck: Mapping[str, Any] = FOUR_CHANNELS,
        widths: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        spatial_down: Sequence[int] = (0, 1, 2),
        temporal_down: Sequence[int] = (1, 2),
        spatial_up: Sequence[int] = (1, 2, 3),
        temporal_up: Sequence[int] = (1, 2),
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ):
        super().__init__()
        if (len(spatial_down), len(temporal_down)) != (len(spatial_up), len(temporal_up)):
            raise KinemaError(
                f"`spatial_up`, `temporal_up` (={spatial_up}, {temporal_up}) must double as often as `spatial_down`, "
                f"`temporal_down` (={spatial_down}, {temporal_down}) halve"
            )
        self._init_bottleneck(bottleneck, latents_mean, latents_std, {"kl": PublishedKL, "fsq": FSQ})
        self.encoder = Encoder(self.quantizer.in_channels, widths, blocks, spatial_down, temporal_down)
        self.decoder = Decoder(self.quantizer.latent_channels, widths, blocks, spatial_up, temporal_up)
        self._temporal_ratio, self._spatial_ratio = 2 ** len(temporal_down), 2 ** len(spatial_down)

    @classmethod
    def from_checkpoint(cls, path: str | Path, fsq_levels: Sequence[int] | None = None) -> "VidTokTokenizer":
        """The tokenizer in a checkpoint of VidTok; `save_pretrained` then makes it a folder of kinema's.

        Args:
            path: a `.ckpt` (of which only tensors are unpickled) or `.safetensors` file; sizes follow from the shapes.
            fsq_levels: levels per channel of an FSQ checkpoint, where they are not all 8.

        Raises:
            KinemaError: the file is not readable, or holds another model: not causal, version 1.1, with group norms.
        """
        path = Path(path)
        check_input_file(path, "checkpoint")
        if "v1_1" in path.name:
            raise KinemaError(
                f"`checkpoint` (={path.name!r}) must be of version 1.0: 1.1 has weights of the same names and shapes, "
                "and another architecture"
            )
        weights = {name: value.float() for name, value in _read(path).items() if not name.startswith(TRAINING_ONLY)}
        try:
            options = infer_options(weights, fsq_levels)
            model = cls(**options)
        except (KeyError, IndexError) as error:
            raise KinemaError(f"`checkpoint` (={path.name!r}) must be a causal VidTok: {error} is missing") from error
        wanted = model.state_dict()
        differing = sorted(wanted.keys() ^ weights.keys())
        differing += sorted(n for n in wanted.keys() & weights.keys() if wanted[n].shape != weights[n].shape)
        if differing:
            raise KinemaError(
                f"`checkpoint` (={path.name!r}) must hold a causal VidTok of version 1.0: {len(differing)} weights are "
                f"missing, unknown or of another shape, such as {differing[0]!r}"
            )
        model.load_state_dict(weights)
        return model.eval()


def infer_options(weights: Mapping[str, Tensor], fsq_levels: Sequence[int] | None = None) -> dict[str, Any]:
    """What `VidTokTokenizer` takes, from the names and shapes of a checkpoint's weights.

    Raises:
        KeyError: a weight is missing that every causal VidTok has.
        KinemaError: the levels do not fit.
    """
    out, z = weights["encoder.conv_out.conv.weight"].shape[0], weights["decoder.conv_in.conv.weight"].shape[1]
    levels = _numbers(weights, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    options: dict[str, Any] = {
        "widths": [weights[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in levels],
        "blocks": len(_numbers(weights, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight")),
        "spatial_down": _numbers(weights, r"encoder\.down\.(\d+)\.downsample\.conv\.weight"),
        "temporal_down": _numbers(weights, r"encoder\.down_temporal\.(\d+)\.downsample\.mix_factor"),
        "spatial_up": _numbers(weights, r"decoder\.up\.(\d+)\.upsample\.conv\.weight"),
        "temporal_up": _numbers(weights, r"decoder\.up_temporal\.(\d+)\.upsample\.mix_factor"),
    }
    if out == 2 * z and fsq_levels is None:
        return options | {"bottleneck": {"name": "kl", "latent_channels": z}}
    fsq_levels = [LEVELS_PER_CHANNEL] * z if fsq_levels is None else list(fsq_levels)
    if out != z or len(fsq_levels) != z:
        raise KinemaError(
            f"`fsq_levels` (={fsq_levels}) must be as many as the latents' channels ({z}), for an encoder with {out}"
        )
    return options | {"bottleneck": {"name": "fsq", "levels": fsq_levels}}


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted(int(found[1]) for name in weights if (found := re.fullmatch(pattern, name)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KinemaError(f"`checkpoint` (={str(path)!r}) must be a file of weights alone: {reason}") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise KinemaError(f"`checkpoint` (={str(path)!r}) must hold tensors by name, at its top or in `state_dict`")
    return weights
