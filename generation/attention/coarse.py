"""The coarse branch of VSA (arXiv 2505.13389): attention between means of tiles, beside sparse attention of tokens.

Shapes: b batch, h heads, n tokens, s slots, t tiles, d head width.
"""

from jaxtyping import Float
from torch import Tensor

from kinema.generation.attention.grid import TokenOrder
from kinema.generation.attention.patterns.dynamic import tile_means
from kinema.machine import as_given


def coarse_attention(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    order: TokenOrder,
) -> Float[Tensor, "b h s d"]:
    """What each tile's mean query gets from the mean values of all tiles, for each slot of the tile.

    softmax(q̄ k̄ᵀ / √d) v̄, with means over the tokens that a tile has. Gradients flow to all three.

    Args:
        query: in the slots of `order`.
        key: likewise.
        value: likewise.
        order: the order, in tiles.
    """
    with as_given(query.device):  # few numbers, that stand for many: in float32
        mean_query, mean_key, mean_value = (tile_means(x, order) for x in (query, key, value))
        weights = (mean_query @ mean_key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return (weights @ mean_value).to(value.dtype).repeat_interleave(order.tile_size, dim=2)


def annealed_share(step: int, final: float, decrement: float = 0.03, every: int = 50) -> float:
    """Share of key tiles that a training step sees: 1 at first, `decrement` less every so many steps, down to `final`.

    The published schedule takes 0.03 away every 50 steps until a tenth is left.
    """
    return max(final, 1.0 - decrement * (step // every))
