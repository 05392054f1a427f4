"""Inception score: classifications that are sure one by one and varied together (Salimans et al. 2016)."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError


def inception_score(logits: Float[Tensor, "n k"], *, splits: int = 1) -> tuple[float, float]:
    """`exp E KL(p(y|x) | p(y))`, between 1 and the number of classes.

    With I3D's logits the classes are the 400 of Kinetics: not to be compared with scores of C3D on UCF-101.

    Args:
        logits: Before the softmax.
        splits: Parts that are scored one by one; the order of the logits decides which part one is in.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        KinemaError: Fewer logits than parts, or values that are not finite.
    """
    if not 1 <= splits <= logits.shape[0]:
        raise KinemaError(f"`splits` (={splits}) must be >= 1 and <= {logits.shape[0]}, the number of clips")
    if not torch.isfinite(logits).all():
        raise KinemaError("`logits` (some are NaN or infinite) must be finite")
    scores: list[Tensor] = []
    for part in logits.double().log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - torch.tensor(float(part.shape[0]), dtype=part.dtype).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(unbiased=False))


def make() -> Callable[[Tensor, Tensor], Mapping[str, float]]:
    """Returns the metric of generated features, which are logits; the first argument is not used."""
    return lambda _, fake: {"inception_score": inception_score(fake)[0]}
