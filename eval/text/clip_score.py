"""CLIPScore (Hessel et al. 2021): how well a clip's frames match its prompt."""

import os
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from kinema.errors import KinemaError
from kinema.eval.frames.pixels import Clip, to_levels
from kinema.eval.generation.looks import ClipMeasure, Look, Networks
from kinema.eval.text.clip import CLIPEncoder, load_clip


def frame_scores(images: Float[Tensor, "t d"], text: Float[Tensor, " d"]) -> Float[Tensor, " t"]:
    """100 · cos between each frame and the prompt, in [-100, 100].

    Args:
        images: Unit vectors of frames.
        text: Unit vector of the prompt.
    """
    return 100 * images @ text


def clip_score(
    videos: Clip,
    prompts: Sequence[str],
    model: str | os.PathLike[str] | CLIPEncoder,
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " b"]:
    """CLIPScore of every clip, in [0, 100]: the mean of 100 · cos over its frames, at least 0.

    As torchmetrics computes it of the frames with the prompt repeated: the mean is clamped, not its parts. The paper's
    factor is 2.5 instead of 100. A set's score is the mean of its clips'.

    Args:
        videos: `b c t h w`, uint8 or float in [-1, 1].
        prompts: One a clip.
        model: A CLIP, or its hub id or folder.
        device: Where to compute, when the CLIP is yet to be loaded.

    Raises:
        KinemaError: The numbers of clips and prompts differ, values are out of range, or the CLIP cannot be had.
    """
    if len(prompts) != len(videos):
        raise KinemaError(f"`prompts` ({len(prompts)} of them) must be as many as the clips ({len(videos)})")
    frames = rearrange(to_levels(videos, "videos"), "b c t h w -> b t c h w")
    clip = model if isinstance(model, CLIPEncoder) else load_clip(model, device=device)
    texts = clip.text_features(prompts)
    scores = [frame_scores(clip.image_features(x), y).mean() for x, y in zip(frames, texts, strict=True)]
    return torch.stack(scores).clamp_min(0)


class CLIPScore(Metric):
    """The mean `clip_score` of all clips so far, of all processes.

    Args:
        model: A CLIP, or its hub id or folder.
        device: Where to compute, when the CLIP is yet to be loaded.

    Raises:
        KinemaError: The CLIP cannot be had.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, model: str | os.PathLike[str] | CLIPEncoder, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.clip = model if isinstance(model, CLIPEncoder) else load_clip(model, device=device)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, videos: Clip, prompts: Sequence[str]) -> None:
        """Counts clips; arguments and errors as of `clip_score`."""
        scores = clip_score(videos, prompts, self.clip)
        self.total += scores.double().sum().to(self.total.device)
        self.count += len(scores)

    def compute(self) -> Tensor:
        """The mean, a scalar.

        Raises:
            KinemaError: No clip was counted.
        """
        if not self.count:
            raise KinemaError("`videos` (=0 of them) must be at least one clip")
        return self.total / self.count


def make(networks: Networks) -> ClipMeasure:
    """Returns the metric; its curve is 100 · cos of every frame, which may be negative.

    Raises:
        KinemaError: No CLIP was named, or it cannot be had.
    """
    clip = networks.clip

    def curve(look: Look) -> Float[Tensor, " t"]:
        return frame_scores(look.clip_features, clip.text_features([look.prompt])[0])

    return ClipMeasure(curve=curve, value=lambda scores: float(scores.mean().clamp_min(0)))
