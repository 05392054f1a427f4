"""Where an object would explain a frame best: correlation with its picture at many sizes and angles.

With a background b, a picture of premultiplied colours p and alpha a, put at a place, the frame x is explained by
p + (1 - a) b. How much of the squared difference |x - b|^2 this takes away is, with r = x - b and d = p - a b,

    E = sum |r|^2 - |r - d|^2 = sum 2 r.p - 2 a r.b + 2 a p.b - a^2 |b|^2 - |p|^2

which for all places at once is one correlation of (r, r.b, b, |b|^2) with (2 p, -2 a, 2 a p, -a^2) less a constant.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Complex, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from kinema.eval.toybox.tracking import Track
from kinema.training.data.toybox.sprites import PAD, Atlas

_INSIDE = 0.42  # an object's centre is at least this share of its size away from the frame's edges


@dataclass(frozen=True)
class Pictures:
    """Pictures of objects, ready for correlation with frames of half the size.

    Attributes:
        spectra: Of the eight channels, one row a frequency.
        constants: What to take off the correlation.
        allowed: 0 where the centre may be, -inf where the object would leave the frame.
    """

    spectra: Complex[Tensor, "f 8 n"]
    constants: Float[Tensor, " n"]
    allowed: Float[Tensor, "n h w"]


@dataclass(frozen=True)
class Match:
    """The best place of each picture in each frame.

    Attributes:
        energy: Squared difference that the picture explains there.
        x: Centre in pixels of the full-size frame.
        y: Centre likewise.
    """

    energy: Float[Tensor, "t n"]
    x: Float[Tensor, "t n"]
    y: Float[Tensor, "t n"]


def prepare_pictures(
    atlas: Atlas,
    which: Int[Tensor, " n"],
    sizes: Float[Tensor, " n"],
    angles: Float[Tensor, " n"],
    height: int,
    width: int,
) -> Pictures:
    """Draws objects in the middle of a frame, halves it, and transforms it.

    Args:
        atlas: Pictures of the objects.
        which: Their rows in the atlas.
        sizes: Longer side of the upright object, in pixels of the full-size frame.
        angles: In degrees, clockwise.
        height: Of the full-size frame; even.
        width: Likewise.
    """
    layer = avg_pool2d(_draw(atlas, which, sizes, angles, height, width), 2)
    colours, alpha = layer[:, :3], layer[:, 3:]
    channels = torch.cat([2 * colours, -2 * alpha, 2 * alpha * colours, -alpha.square()], dim=1)
    spectra = torch.fft.rfft2(channels).conj()
    reach = _INSIDE * sizes[:, None] / 2
    y, x = (torch.arange(side // 2) for side in (height, width))
    outside_y = (y < reach) | (y > height / 2 - reach)
    outside_x = (x < reach) | (x > width / 2 - reach)
    allowed = torch.zeros(len(sizes), height // 2, width // 2)
    allowed.masked_fill_(outside_y[:, :, None] | outside_x[:, None, :], -torch.inf)
    return Pictures(rearrange(spectra, "n c h w -> (h w) c n").contiguous(), colours.square().sum((1, 2, 3)), allowed)


def frame_spectra(frames: Float[Tensor, "t 3 h w"], background: Float[Tensor, "*t 3 h w"]) -> Complex[Tensor, "f t 8"]:
    """The frames' side of the correlation, both at half the full size; one background, or one for each frame."""
    residual = frames - background
    b = background.expand_as(frames)
    products = [(residual * b).sum(1, keepdim=True), b, b.square().sum(1, keepdim=True)]
    return rearrange(torch.fft.rfft2(torch.cat([residual, *products], dim=1)), "t c h w -> (h w) t c").contiguous()


def match(frames: Complex[Tensor, "f t 8"], pictures: Pictures) -> Match:
    """Puts every picture at its best place in every frame."""
    height, width = pictures.allowed.shape[1:]
    product = rearrange(torch.bmm(frames, pictures.spectra), "(h w) t n -> t n h w", h=height)
    # Zero shift leaves the picture in the middle: roll it there, so that places are those of its centre.
    energy = torch.fft.irfft2(product, s=(height, width)).roll((height // 2, width // 2), dims=(-2, -1))
    best, place = rearrange(energy + pictures.allowed, "t n h w -> t n (h w)").max(-1)
    return Match(best - pictures.constants, 2.0 * (place % width), 2.0 * torch.div(place, width, rounding_mode="floor"))


def place_object(
    frames: Float[Tensor, "*t 3 h w"],
    atlas: Atlas,
    which: int,
    track: Track,
) -> Float[Tensor, "t 3 h w"]:
    """Draws an object over frames of half the size, where its track puts it.

    Args:
        frames: One background, or one for each frame.
        atlas: Pictures of the objects.
        which: The object's row in the atlas.
        track: Where it is, in pixels of the full-size frame.
    """
    height, width = (2 * side for side in frames.shape[-2:])
    rows = torch.full((len(track.x),), which)
    layer = avg_pool2d(_draw(atlas, rows, track.size, track.angle, height, width, (track.x, track.y)), 2)
    return layer[:, :3] + (1 - layer[:, 3:]) * frames


def _draw(
    atlas: Atlas,
    which: Tensor,
    sizes: Tensor,
    angles: Tensor,
    height: int,
    width: int,
    centres: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "n 4 h w"]:
    """Each object alone in a transparent frame, from the smallest level that is not smaller.

    Its centre is in the middle of the frame, or at `centres` (x and y).
    """
    rows, columns = atlas.pixels.shape[-2:]
    level = ((atlas.sides >= sizes[:, None]).sum(-1) - 1).clamp_min(0)
    side = atlas.sides[level]
    step, turn = side / sizes, torch.deg2rad(angles)
    centre_x, centre_y = (width / 2, height / 2) if centres is None else (each[:, None, None] for each in centres)
    y = torch.arange(height)[:, None] + 0.5 - centre_y
    x = torch.arange(width)[None] + 0.5 - centre_x
    cos, sin = ((step * each)[:, None, None] for each in (torch.cos(turn), torch.sin(turn)))
    # Clockwise on screen, y downwards: from the frame back into the picture.
    limit = (side / 2 + 1)[:, None, None]
    along = (cos * x + sin * y).clamp(-limit, limit) + (PAD + side / 2)[:, None, None]
    across = (cos * y - sin * x).clamp(-limit, limit) + atlas.centre_y[level][:, None, None]
    grid = torch.stack([along * (2 / columns) - 1, across * (2 / rows) - 1], dim=-1)
    return grid_sample(atlas.pixels[which], grid, align_corners=False)
