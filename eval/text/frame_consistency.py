"""Frame consistency: how alike a network finds the frames of a clip."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from kinema.errors import KinemaError
from kinema.eval.generation.looks import ClipMeasure, Look, Networks, mean_of_defined


def frame_consistency(
    features: Float[Tensor, "b t d"], first: Float[Tensor, "b 1 d"] | None = None
) -> Float[Tensor, "b t"]:
    """Of every frame after the first, the mean of its cosines with the frame before and the first, each at least 0.

    The subject and background consistency of VBench (Huang et al. 2024), which differ in the features: DINO and CLIP.
    A clip's score is the mean of its frames'. The first frame is NaN.

    Args:
        features: Vectors of frames, of any length above 0.
        first: Vector of the clip's first frame, where the others are a later part of it.

    Raises:
        KinemaError: Fewer than two frames.
    """
    if features.shape[1] < 2:
        raise KinemaError(f"`clip` (of {features.shape[1]} frames) must have at least 2 frames for frame consistency")
    x = features.double()
    previous = cosine_similarity(x[:, 1:], x[:, :-1], dim=-1).clamp_min(0)
    to_first = cosine_similarity(x[:, 1:], x[:, :1] if first is None else first.double(), dim=-1).clamp_min(0)
    scores = (previous + to_first) / 2
    return torch.cat([scores.new_full((len(scores), 1), float("nan")), scores], dim=1).float()


def make(networks: Networks) -> ClipMeasure:
    """Returns the metric.

    The features are those of the frame network, if one was named, else of the CLIP, if one was named, else of
    EfficientNet-lite0; the report says which.

    Raises:
        KinemaError: The network cannot be had.
    """
    features = networks.use_consistency_features()

    def curve(look: Look) -> Float[Tensor, " t"]:
        return frame_consistency(features(look)[None], features(look.opening)[None, :1])[0]

    return ClipMeasure(curve=curve, value=mean_of_defined, before=1)
