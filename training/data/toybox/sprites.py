"""Pictures of the objects: read from a folder with a manifest, or drawn; packed for sampling at any size."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, pad

from kinema.errors import KinemaError
from kinema.images import read_image_with_alpha
from kinema.training.data.toybox.shapes import draw_shape

MANIFEST = "sprites.json"
_SMALLEST_LEVEL = 8
PAD = 2  # transparent pixels around each level: what lies outside the object is sampled from them


@dataclass(frozen=True)
class Atlas:
    """Every object at several sizes, below each other in one picture an object.

    Attributes:
        pixels: Premultiplied colours in [-1, 1] (a * (2 rgb - 1)) and alpha in [0, 1].
        sides: Longer side of the object at each level in pixels, largest first; a level's left edge is at `PAD`.
        centre_y: Middle of each level, in pixels of the atlas.
        names: The objects, in the order of `pixels`.
        extents: Width and height of each object's tight box over its longer side.
    """

    pixels: Float[Tensor, "n 4 h w"]
    sides: Float[Tensor, " levels"]
    centre_y: Float[Tensor, " levels"]
    names: tuple[str, ...]
    extents: tuple[tuple[float, float], ...]

    def to(self, device: torch.device | str) -> "Atlas":
        """The same atlas on another device."""
        pixels, sides, centre_y = (each.to(device) for each in (self.pixels, self.sides, self.centre_y))
        return Atlas(pixels, sides, centre_y, self.names, self.extents)


def sprite_names(folder: Path | str) -> list[str]:
    """The names in a sprite folder's manifest, in its order.

    Raises:
        KinemaError: The manifest is missing or is none.
    """
    return list(_manifest(Path(folder)))


def load_pictures(names: Sequence[str], folder: Path | str | None = None) -> list[Float[Tensor, "4 _ _"]]:
    """Straight RGBA pictures in [0, 1], one a name, from the sprite folder or drawn when there is none.

    Raises:
        KinemaError: A name is not in the folder (or is no drawn shape), or its file cannot be read.
    """
    if folder is None:
        return [draw_shape(name) for name in names]
    folder = Path(folder)
    files = _manifest(folder)
    pictures = []
    for name in names:
        if name not in files:
            raise KinemaError(f"`objects` (has {name!r}) must name sprites of the manifest {folder / MANIFEST}")
        pictures.append(_read(folder / files[name]))
    return pictures


def build_atlas(names: Sequence[str], pictures: Sequence[Float[Tensor, "4 _ _"]], largest: int) -> Atlas:
    """Crops each picture to its object and scales it to levels a factor sqrt(2) apart, from `largest` pixels down."""
    sides = [largest]
    while sides[-1] > _SMALLEST_LEVEL:
        sides.append(max(_SMALLEST_LEVEL, round(sides[-1] / 2**0.5)))
    cropped = [_crop(picture) for picture in pictures]
    levels, centre_y, below = [], [], 0.0
    for side in sides:
        level = torch.stack([_fit(picture, side) for picture in cropped])
        levels.append(pad(level, (PAD, largest - side + PAD, PAD, PAD)))
        centre_y.append(below + PAD + side / 2)
        below += side + 2 * PAD
    pixels = torch.cat(levels, dim=-2)
    alpha = pixels[:, 3:]
    pixels = torch.cat([2 * pixels[:, :3] - alpha, alpha], dim=1).contiguous()
    extents = tuple(
        (picture.shape[2] / max(picture.shape[1:]), picture.shape[1] / max(picture.shape[1:])) for picture in cropped
    )
    return Atlas(pixels, torch.tensor(sides).float(), torch.tensor(centre_y), tuple(names), extents)


def _manifest(folder: Path) -> dict[str, str]:
    path = folder / MANIFEST
    try:
        return {entry["name"]: entry["file"] for entry in json.loads(path.read_text(encoding="utf-8"))["sprites"]}
    except FileNotFoundError:
        raise KinemaError(f"`sprites` (={folder}) must be a folder with a {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, NotADirectoryError) as error:
        raise KinemaError(f"`sprites` (={folder}) must have a {MANIFEST} that lists name and file: {error}") from error


def _read(path: Path) -> Float[Tensor, "4 h w"]:
    pixels = read_image_with_alpha(path, name="sprites")
    return rearrange(pixels.float() / 255, "h w c -> c h w")


def _crop(picture: Float[Tensor, "4 _ _"]) -> Float[Tensor, "4 _ _"]:
    """Premultiplies and cuts to the tight box of what is visible (shadows fainter than 8 % are not)."""
    visible = picture[3] > 0.08
    if not visible.any():
        raise KinemaError("`sprites` must hold pictures in which something is opaque")
    rows, columns = torch.where(visible.any(dim=1))[0], torch.where(visible.any(dim=0))[0]
    picture = torch.cat([picture[:3] * picture[3:], picture[3:]])
    return picture[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def _fit(picture: Float[Tensor, "4 h w"], side: int) -> Float[Tensor, "4 s s"]:
    """The picture in the middle of a square, its longer side filling it."""
    height, width = picture.shape[1:]
    longest = max(height, width)
    # Squared before scaling, so that the centre stays exact at every level.
    above, left = (longest - height) // 2, (longest - width) // 2
    squared = pad(picture, (left, longest - width - left, above, longest - height - above))
    scaled = interpolate(squared[None], (side, side), mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        0, 1
    )
    # Bicubic overshoot must not leave a colour brighter than white.
    return torch.cat([torch.minimum(scaled[:3], scaled[3:]), scaled[3:]])
