"""Objects drawn by code, so that the Toybox works without a folder of sprites."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError

COLOURS = {
    "red": (0.88, 0.20, 0.20),
    "orange": (0.96, 0.56, 0.12),
    "yellow": (0.98, 0.85, 0.18),
    "green": (0.14, 0.58, 0.26),
    "blue": (0.16, 0.38, 0.90),
    "purple": (0.56, 0.24, 0.72),
    "pink": (0.96, 0.50, 0.72),
    "black": (0.13, 0.13, 0.15),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "arrow", "crescent")
# Every shape in six colours.
DEFAULT_SHAPES = tuple(
    f"{colour} {shape}"
    for row, shape in enumerate(SHAPES)
    for column, colour in enumerate(COLOURS)
    if (row + column) % 4 != 3
)
_OVERSAMPLING = 4


def draw_shape(name: str, side: int = 128) -> Float[Tensor, "4 h w"]:
    """A shape such as "red star": straight (not premultiplied) RGBA in [0, 1], antialiased.

    The shading and a pale eye at the upper right make every rotation visible, that of a circle too.

    Args:
        name: A colour of `COLOURS` and a shape of `SHAPES`.
        side: Height and width in pixels.

    Raises:
        KinemaError: The name is no colour and shape.
    """
    colour, _, shape = name.partition(" ")
    if colour not in COLOURS or shape not in SHAPES:
        raise KinemaError(
            f"`name` (={name!r}) must be a colour ({', '.join(COLOURS)}) and a shape ({', '.join(SHAPES)})"
        )
    steps = side * _OVERSAMPLING
    axis = (torch.arange(steps, dtype=torch.float32) + 0.5) / steps * 2.3 - 1.15
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    alpha = _inside(shape, x, y).float()
    eye = ((x - 0.26) ** 2 + (y + 0.26) ** 2 < 0.17**2).float()
    shade = (1.0 - 0.22 * y)[None]
    rgb = torch.tensor(COLOURS[colour]).view(3, 1, 1) * shade
    rgb = (rgb * (1 - eye) + eye * torch.tensor([1.0, 1.0, 0.92]).view(3, 1, 1)).clamp(0, 1)
    pooled = torch.nn.functional.avg_pool2d(torch.cat([rgb * alpha, alpha[None]])[None], _OVERSAMPLING)[0]
    return torch.cat([pooled[:3] / pooled[3:].clamp_min(1e-6), pooled[3:]])


def _inside(shape: str, x: Float[Tensor, "h w"], y: Float[Tensor, "h w"]) -> Tensor:
    radius, turn = torch.hypot(x, y), torch.atan2(x, -y)  # turn: clockwise from the top
    match shape:
        case "circle":
            return radius < 1
        case "square":
            return torch.maximum(x.abs(), y.abs()) < 0.9
        case "triangle":
            return (y < 0.85) & (y > 2 * x.abs() - 0.95)
        case "star":
            fifth = 2 * math.pi / 5
            wedge = (torch.remainder(turn + fifth / 2, fifth) - fifth / 2).abs()
            # Inside the straight edge from a tip to the notch half a wedge away, both given by radius and turn.
            tip, notch, half = 1.05, 0.52, fifth / 2
            return radius * (tip * torch.sin(wedge) + notch * torch.sin(half - wedge)) < tip * notch * math.sin(half)
        case "heart":
            u, v = x * 1.15, -(y * 1.15) + 0.1
            return (u**2 + v**2 - 0.9) ** 3 < 1.4 * u**2 * v**3
        case "cross":
            return (torch.minimum(x.abs(), y.abs()) < 0.34) & (torch.maximum(x.abs(), y.abs()) < 1)
        case "arrow":
            shaft = (x.abs() < 0.32) & (y < 1) & (y > -0.2)
            return shaft | ((y > x.abs() * 1.05 - 1) & (y < 0.05))
        case _:  # crescent
            return (radius < 1) & (torch.hypot(x - 0.45, y - 0.35) > 0.72)
