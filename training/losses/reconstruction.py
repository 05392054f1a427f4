"""How far a reconstruction is from its clip. Pixels are in [-1, 1]."""

from jaxtyping import Float
from torch import Tensor


def mse(reconstruction: Float[Tensor, "b c t h w"], video: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return (reconstruction - video).square().mean()


def l1(reconstruction: Float[Tensor, "b c t h w"], video: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return (reconstruction - video).abs().mean()


def charbonnier(
    reconstruction: Float[Tensor, "b c t h w"], video: Float[Tensor, "b c t h w"], epsilon: float = 1e-2
) -> Float[Tensor, ""]:
    """Mean of sqrt(d^2 + epsilon^2) - epsilon: squared near zero, absolute far from it (Charbonnier et al. 1994)."""
    return ((reconstruction - video).square() + epsilon**2).sqrt().mean() - epsilon
