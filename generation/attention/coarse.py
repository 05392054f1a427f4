"""The coarse branch of VSA (arXiv 2505.13389): attention between tile means, added to sparse attention.

Shapes: b batch, h heads, n tokens, s slots, t tiles, d head width.
"""

from jaxtyping import Float
from torch import Tensor

from kinema.generation.attention.grid import TokenOrder
from kinema.generation.attention.patterns.dynamic import tile_means
from kinema.machine import autocast_disabled


def coarse_attention(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    order: TokenOrder,
) -> Float[Tensor, "b h s d"]:
    """Attention between tile means; all slots of a tile get the result of its mean query.

    softmax(q̄ k̄ᵀ / √d) v̄, with means over the valid tokens of each tile. Differentiable in all three inputs.

    Args:
        query: in the slots of `order`.
        key: same shape and order as `query`.
        value: same shape and order as `query`.
        order: the token order that defines the tiles.
    """
    with autocast_disabled(query.device):  # in float32, which is cheap for so few values
        mean_query, mean_key, mean_value = (tile_means(x, order) for x in (query, key, value))
        weights = (mean_query @ mean_key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ mean_value).to(value.dtype).repeat_interleave(order.tile_size, dim=2)


def annealed_share(step: int, final: float, decrement: float = 0.03, every: int = 50) -> float:
    """Return the share of key tiles at a training step: 1, minus `decrement` every `every` steps, down to `final`.

    The published schedule falls by 0.03 every 50 steps, to 0.1.
    """
    return max(final, 1.0 - decrement * (step // every))
