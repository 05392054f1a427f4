"""Batch norms of trained networks, folded into the convolutions before them."""

from jaxtyping import Float
from torch import Tensor


def fold_batch_norm(
    weight: Float[Tensor, "o ..."],
    *,
    bias: Float[Tensor, " o"],
    mean: Float[Tensor, " o"],
    var: Float[Tensor, " o"],
    epsilon: float,
    scale: Float[Tensor, " o"] | None = None,
) -> tuple[Float[Tensor, "o ..."], Float[Tensor, " o"]]:
    """Weight and bias of a convolution that does what a convolution without a bias and its batch norm do.

    Args:
        weight: Of the convolution.
        bias: Of the norm (beta).
        mean: The norm's running mean.
        var: The norm's running variance.
        epsilon: Added to the variance.
        scale: Of the norm (gamma); None for 1.
    """
    gain = (var.double() + epsilon).rsqrt()
    if scale is not None:
        gain = gain * scale.double()
    folded = weight.double() * gain.view(-1, *[1] * (weight.ndim - 1))
    return folded.float().contiguous(), (bias.double() - mean.double() * gain).float()
