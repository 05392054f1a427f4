"""Where a token is: rotary tables for attention, Fourier features for the input.

Shapes: b batch, n tokens in the order (t h w), k heads, e head width.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def grid_positions(grid: tuple[int, int, int], device: torch.device | None = None) -> Float[Tensor, "n 3"]:
    """Returns the (t, h, w) index of every token of a latent grid, in the order of the tokens.

    Args:
        grid: number of tokens along t, h, w.
        device: where to make the table.
    """
    axes = [torch.arange(size, dtype=torch.float32, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def split_head(head_dim: int) -> tuple[int, int, int]:
    """Shares a head's channels between t, h and w: equal even parts for h and w, the rest for t."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rotary_table(
    positions: Float[Tensor, "n 3"], head_dim: int, theta: float = 10000.0
) -> tuple[Float[Tensor, "n half"], Float[Tensor, "n half"]]:
    """Cosines and sines of the three-axis rotary embedding (RoFormer, arXiv:2104.09864, eq. 15, an axis at a time).

    Args:
        positions: place of each token along t, h, w; any real numbers, so that a token can stand between two steps.
        head_dim: channels of a head, even; see `split_head`.
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
    """Turns channel pairs (i, i + e/2) of every head by the angle of the token's place.

    Args:
        x: queries and keys side by side (s = 2), or either alone (s = 1).
        rotary: the table from `rotary_table`.
    """
    cos, sin = (table[:, None, None, :] for table in rotary)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


NUM_OCTAVES = 6
_TIME_PERIOD = 16.0


def place_features(grid: tuple[int, int, int], device: torch.device | None = None) -> Float[Tensor, "n f"]:
    """Fourier features of a token's place in the frame (as a share of its height and width) and of its time step.

    Rotary attention sees distances only; a horizon or the frame's edge needs the place itself. Shares make the
    features valid for any size.

    Returns:
        (n, 6 * NUM_OCTAVES): sines, then cosines, at frequencies of pi * 2^i.
    """
    # Numbers, not tensors of them: to copy those to a device would make the host wait.
    t, h, w = grid_positions(grid, device).unbind(1)
    places = torch.stack((t * (1 / _TIME_PERIOD), (h + 0.5) * (1 / grid[1]), (w + 0.5) * (1 / grid[2])), dim=1)
    octaves = math.pi * 2.0 ** torch.arange(NUM_OCTAVES, dtype=torch.float32, device=device)
    angles = (places[:, :, None] * octaves).flatten(1)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
