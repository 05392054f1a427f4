"""The six backgrounds: few smooth colours and a light texture, as functions of world coordinates."""

from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

# World coordinates are in units of a frame whose short side is 64; x, y: (n, f, h, w); parameters: (n, 1, 1, 1) each.
_Parameters = list[Tensor]
_TABLE = 32


def _colour(red: int, green: int, blue: int) -> Tensor:
    return torch.tensor([red, green, blue]).view(3, 1, 1, 1) / 255


def _mix(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """`first` where the weight (n, f, h, w) is 0, `second` where it is 1; colours are (n | 1, 3, ...)."""
    return first + (second - first) * weight.unsqueeze(1)


def _edge(distance: Tensor) -> Tensor:
    """0 to 1 over one unit: an antialiased border where the distance is 0."""
    return (distance + 0.5).clamp(0, 1)


@cache
def _jitter(device: torch.device) -> Tensor:
    """Random numbers in [0, 1), the same on every device: (3, table * table)."""
    generator = torch.Generator("cpu").manual_seed(7)
    return torch.rand(3, _TABLE * _TABLE, generator=generator, device="cpu").to(device)


def _dots(x: Tensor, y: Tensor, cell: float, radius: float, share: float, shift: Tensor) -> Tensor:
    """Soft dots, at most one in each square cell, where a table of random numbers says so."""
    x, y = x + 97 * shift, y + 61 * shift
    column, row = torch.floor(x / cell), torch.floor(y / cell)
    key = (torch.remainder(row, _TABLE) * _TABLE + torch.remainder(column, _TABLE)).long()
    place_x, place_y, chance = (table[key] for table in _jitter(x.device))
    room = radius + 0.5
    dx = x - column * cell - room - place_x * (cell - 2 * room)
    dy = y - row * cell - room - place_y * (cell - 2 * room)
    return (radius + 0.5 - torch.sqrt(dx * dx + dy * dy)).clamp(0, 1) * (chance < share)


def _meadow(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    horizon = 26 + 10 * p[0] + (1.5 + 2 * p[5]) * torch.sin(x / 11 + 6.28 * p[1])
    sky = _mix(_colour(128, 190, 240)[None], _colour(196, 226, 248)[None], (y / 40).clamp(0, 1))
    grass = _mix(_colour(132, 190, 84)[None], _colour(84, 148, 62)[None], ((y - horizon) / 36).clamp(0, 1))
    grass = grass + 0.02 * torch.sin((x + 2 * y) / 3.5 + 6.28 * p[2]).unsqueeze(1)
    return _mix(sky, grass, _edge(y - horizon))


def _desert(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    far = 24 + 8 * p[0] + (3 + 2 * p[5]) * torch.sin(x / 15 + 6.28 * p[1])
    near = far + 13 + 4 * torch.sin(x / 12 + 6.28 * p[2])
    sky = _mix(_colour(250, 196, 140)[None], _colour(253, 230, 178)[None], (y / 34).clamp(0, 1))
    sand = _mix(_colour(226, 172, 98)[None], _colour(205, 145, 76)[None], _edge(y - near))
    return _mix(sky, sand, _edge(y - far))


def _night_sky(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    sky = _mix(_colour(20, 24, 70)[None], _colour(62, 52, 122)[None], ((y + 16 * p[0] - 8) / 64).clamp(0, 1))
    return _mix(sky, _colour(250, 244, 210)[None], 0.9 * _dots(x, y, 16, 1.0, 0.6, p[2]))


def _snowy_field(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    horizon = 28 + 10 * p[0] + (2 + 2 * p[5]) * torch.sin(x / 13 + 6.28 * p[1])
    sky = _mix(_colour(128, 142, 164)[None], _colour(172, 184, 202)[None], (y / 40).clamp(0, 1))
    sky = _mix(sky, _colour(246, 249, 253)[None], 0.9 * _dots(x, y, 13, 1.2, 0.6, p[2]))
    snow = _mix(_colour(246, 249, 253)[None], _colour(206, 222, 242)[None], ((y - horizon) / 44).clamp(0, 1))
    return _mix(sky, snow, _edge(y - horizon))


def _sea(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    horizon = 14 + 8 * p[0]
    sky = _mix(_colour(214, 238, 246)[None], _colour(240, 246, 240)[None], (y / 20).clamp(0, 1))
    depth = (y - horizon).clamp_min(0)
    water = _mix(_colour(46, 168, 190)[None], _colour(14, 92, 138)[None], (depth / 50).clamp(0, 1))
    wave = torch.sin(depth / 1.6 + 0.9 * torch.sin(x / (7 + 3 * p[5]) + 6.28 * p[1]) + 6.28 * p[2])
    water = water + (0.035 * wave * (depth / 12).clamp(0, 1)).unsqueeze(1)
    return _mix(sky, water, _edge(y - horizon))


def _brick_wall(x: Tensor, y: Tensor, p: _Parameters) -> Tensor:
    height, width, joint = 11.0, 22.0, 1.4
    y = y + height * p[0]
    row = torch.floor(y / height)
    x = x + width * p[1] + 0.5 * width * torch.remainder(row, 2)
    column = torch.floor(x / width)
    to_joint = torch.minimum(
        torch.minimum(torch.remainder(x, width), width - torch.remainder(x, width)),
        torch.minimum(torch.remainder(y, height), height - torch.remainder(y, height)),
    )
    key = (torch.remainder(row, _TABLE) * _TABLE + torch.remainder(column, _TABLE)).long()
    shade = 1 + 0.12 * (_jitter(x.device)[0][key] - 0.5)
    brick = _colour(160, 92, 76)[None] * shade.unsqueeze(1)
    return _mix(_colour(194, 166, 150)[None], brick, _edge(to_joint - joint / 2))


_PAINTERS: dict[str, Callable[[Tensor, Tensor, _Parameters], Tensor]] = {
    "meadow": _meadow,
    "desert": _desert,
    "night sky": _night_sky,
    "snowy field": _snowy_field,
    "sea": _sea,
    "brick wall": _brick_wall,
}


def paint(
    name: str, x: Float[Tensor, "n f h w"], y: Float[Tensor, "n f h w"], parameters: Float[Tensor, "n p"]
) -> Float[Tensor, "n 3 f h w"]:
    """Colours in [0, 1] of clips that share a background.

    Args:
        name: One of `schema.BACKGROUNDS`.
        x: World coordinates of the pixels, in units of a frame whose short side is 64.
        y: World coordinates likewise, downwards.
        parameters: `ClipSpec.background_parameters` of each clip.
    """
    columns = [column.view(-1, 1, 1, 1) for column in parameters.unbind(1)]
    with torch.device(x.device):
        colours = _PAINTERS[name](x, y, columns)
    brightness = 0.94 + 0.12 * columns[3]
    warmth = 0.05 * (columns[4] - 0.5)
    tint = torch.cat([brightness + warmth, brightness, brightness - warmth], dim=1)
    return (colours * tint.unsqueeze(2)).clamp(0, 1)
