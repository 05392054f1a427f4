"""Position encodings: rotary tables for attention, Fourier features for the input.

Shapes: b batch, n tokens in the order (t h w), k heads, e head width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Float[Tensor, "n 3"]:
    """Return the (t, h, w) index of every token of a latent grid in raster order.

    Args:
        grid: number of tokens along t, h, w.
        device: device of the result.
    """
    axes = [torch.arange(size, dtype=torch.float32, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def split_head(head_dim: int) -> tuple[int, int, int]:
    """Split a head's channels between t, h and w: equal even parts for h and w, the rest for t."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_table(
    positions: Float[Tensor, "n 3"], head_dim: int, theta: float = 10000.0
) -> tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]:
    """Return cosines and sines of the three-axis rotary embedding (RoFormer, arXiv:2104.09864, eq. 15, per axis).

    Args:
        positions: position of each token along t, h, w; may be fractional.
        head_dim: channels per head, even; see `split_head`.
        theta: base of the geometric series of wavelengths.

    Returns:
        (cos, sin), each (n, head_dim / 2) in float32.
    """
    angles = []
    for axis, width in enumerate(split_head(head_dim)):
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / max(width, 1)
        angles.append(positions[:, axis, None] * theta**-exponents)
    table = torch.cat(angles, dim=-1)
    return table.cos(), table.sin()


def apply_rotary(
    x: Float[Tensor, "b n s k e"], rotary: tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]
) -> Float[Tensor, "b n s k e"]:
    """Rotate channel pairs (i, i + e/2) of every head by the angles of the token's position.

    Args:
        x: stacked queries and keys (s = 2), or either alone (s = 1).
        rotary: (cos, sin) from `rotary_table`.
    """
    cos, sin = (table[:, None, None, :] for table in rotary)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


NUM_OCTAVES = 6
_TIME_PERIOD = 16.0


def place_features(grid: tuple[int, int, int], device: torch.device | None = None) -> Float[Tensor, "n f"]:
    """Return Fourier features of each token's relative position in the frame and of its time step.

    The rotary embedding encodes only distances; horizons and frame borders depend on absolute positions. Positions are
    relative to the frame size, so that the features apply to any size.

    Returns:
        (n, 6 * NUM_OCTAVES): sines, then cosines, at frequencies of pi * 2^i.
    """
    # Scale by Python numbers: copying tensors to a device would synchronise with it.
    t, h, w = grid_positions(grid, device).unbind(1)
    positions = torch.stack((t * (1 / _TIME_PERIOD), (h + 0.5) * (1 / grid[1]), (w + 0.5) * (1 / grid[2])), dim=1)
    octaves = math.pi * 2.0 ** torch.arange(NUM_OCTAVES, dtype=torch.float32, device=device)
    angles = (positions[:, :, None] * octaves).flatten(1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
