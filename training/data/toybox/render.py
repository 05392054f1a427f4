"""From clip descriptions to pixels and ground truth: all clips and frames at once, on any device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from kinema.training.data.toybox.backgrounds import paint
from kinema.training.data.toybox.schema import MOTIONS, NUM_HOPS, ClipSpec
from kinema.training.data.toybox.sprites import PAD, Atlas

_CHUNK = 4  # clips composited together on the CPU: small enough for the frames to stay in a core's cache
_CHUNK_ELSEWHERE = 64  # few launches of large kernels
_VISIBLE_LIMIT = 1.0  # beyond this many pixels outside its box an object is transparent


@dataclass(frozen=True)
class Tracks:
    """Where every object is in every frame, as seen by the camera; slots of absent objects hold size 0.

    Attributes:
        x: Centre in pixels of the frame.
        y: Centre in pixels of the frame.
        size: Longer side of the upright tight box in pixels.
        angle: Rotation in degrees, clockwise.
        view: Of the camera, each frame: left and top edge in world pixels, and scale (b, 3, t).
    """

    x: Float[Tensor, "b k t"]
    y: Float[Tensor, "b k t"]
    size: Float[Tensor, "b k t"]
    angle: Float[Tensor, "b k t"]
    view: Float[Tensor, "b 3 t"]


def track(specs: Sequence[ClipSpec], num_frames: int, height: int, width: int) -> Tracks:
    """Evaluates motions and camera at every frame (on the CPU)."""
    slots = max(len(spec.objects) for spec in specs)
    absent = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    rows = [
        [(MOTIONS.index(o.motion), o.x, o.y, o.size, o.amount, o.angle) for o in spec.objects]
        + [absent] * (slots - len(spec.objects))
        for spec in specs
    ]
    kind, x, y, size, amount, angle = torch.tensor(rows, dtype=torch.float64).unsqueeze(-1).unbind(2)
    tau = torch.arange(num_frames, dtype=torch.float64) / max(num_frames - 1, 1)

    def doing(motion: str) -> Tensor:
        return kind == MOTIONS.index(motion)

    hop = torch.remainder(NUM_HOPS * tau, 1)
    x = x + amount * tau * (doing("right").double() - doing("left").double())
    y = y + amount * tau * (doing("down").double() - doing("up").double())
    y = y - torch.where(doing("bounces"), amount * 4 * hop * (1 - hop), 0.0)
    size = torch.where(doing("grows") | doing("shrinks"), size * (1 + (amount - 1) * tau), size + 0 * tau)
    angle = angle + torch.where(doing("spins"), amount * tau, 0.0)

    view = torch.stack([_view(spec, tau, height, width) for spec in specs])
    left, top, scale = view.unsqueeze(2).unbind(1)
    tracks = ((x - left) * scale, (y - top) * scale, size * scale, angle, view)
    return Tracks(*(each.float() for each in tracks))


def _view(spec: ClipSpec, tau: Tensor, height: int, width: int) -> Float[Tensor, "3 t"]:
    """Left and top edge of what the camera sees, in world pixels, and how much larger it shows them."""
    sideways = {"pans left": -1.0, "pans right": 1.0}.get(spec.camera, 0.0)
    upright = {"pans up": -1.0, "pans down": 1.0}.get(spec.camera, 0.0)
    scale = torch.ones_like(tau)
    if spec.camera == "zooms in":
        scale = 1 + (spec.camera_amount - 1) * tau
    elif spec.camera == "zooms out":
        scale = 1 / spec.camera_amount * (1 - tau) + tau
    left = 0.5 * width * (1 - 1 / scale) + sideways * spec.camera_amount * tau
    top = 0.5 * height * (1 - 1 / scale) + upright * spec.camera_amount * tau
    return torch.stack([left, top, scale])


def render_clips(
    specs: Sequence[ClipSpec], tracks: Tracks, atlas: Atlas, height: int, width: int
) -> Float[Tensor, "b 3 t h w"]:
    """Draws the clips on the device of the atlas.

    Args:
        specs: The clips.
        tracks: `track` of the same clips.
        atlas: Pictures of (at least) their objects.
        height: Frame height in pixels.
        width: Frame width in pixels.

    Returns:
        Frames in [-1, 1].
    """
    device = atlas.pixels.device
    slots, num_frames = tracks.x.shape[1:]
    video = torch.empty(len(specs), 3, num_frames, height, width, device=device)
    index = {name: number for number, name in enumerate(atlas.names)}
    at_once = _CHUNK if device.type == "cpu" else _CHUNK_ELSEWHERE
    for first in range(0, len(specs), at_once):
        chunk = slice(first, first + at_once)
        frames = video[chunk]
        frames.copy_(_backgrounds(specs[chunk], tracks.view[chunk].to(device), height, width))
        for slot in range(slots):
            present = [n for n, spec in enumerate(specs[chunk]) if slot < len(spec.objects)]
            if not present:
                continue
            which = torch.tensor([index[specs[first + n].objects[slot].name] for n in present], device=device)
            x, y, size, angle = (
                values[chunk][present, slot].to(device) for values in (tracks.x, tracks.y, tracks.size, tracks.angle)
            )
            layer = _sample(atlas, which, x, y, size, angle, height, width)
            colours, clear = layer[:, :3], 1 - layer[:, 3:]
            if len(present) == len(frames):
                frames.mul_(clear).add_(colours)
            else:
                frames[present] = frames[present] * clear + colours
    return video


def _sample(
    atlas: Atlas,
    which: Tensor,
    x: Float[Tensor, "n t"],
    y: Float[Tensor, "n t"],
    size: Float[Tensor, "n t"],
    angle: Float[Tensor, "n t"],
    height: int,
    width: int,
) -> Float[Tensor, "n 4 t h w"]:
    """Each object alone on a transparent frame, turned and scaled, from the level just above its size."""
    rows, columns = atlas.pixels.shape[-2:]
    # Levels run from large to small: take the last that is not smaller than the object.
    level = ((atlas.sides >= size.unsqueeze(-1)).sum(-1) - 1).clamp_min(0)
    side, middle_y = atlas.sides[level], atlas.centre_y[level]
    middle_x = PAD + side / 2
    turn = torch.deg2rad(angle)
    step = side / size  # atlas pixels for a frame pixel
    along, across = step * torch.cos(turn), step * torch.sin(turn)
    px = torch.arange(width, device=x.device) + 0.5
    py = torch.arange(height, device=x.device) + 0.5

    grid = torch.empty(*x.shape, height, width, 2, device=x.device)

    def fill(axis: int, by_x: Tensor, by_y: Tensor, middle: Tensor, extent: int) -> None:
        """The inverse rotation, no further than the transparent rim of the level, in `grid_sample`'s [-1, 1]."""
        to_unit = 2 / extent
        by_x, by_y, middle = by_x * to_unit, by_y * to_unit, middle * to_unit - 1
        reach = (side / 2 + _VISIBLE_LIMIT) * to_unit
        by_row = (by_y[..., None] * py + (middle - by_x * x - by_y * y)[..., None])[..., None]
        place = grid[..., axis]
        torch.add(by_row, by_x[..., None, None] * px, out=place)
        torch.clamp(place, (middle - reach)[..., None, None], (middle + reach)[..., None, None], out=place)

    fill(0, along, across, middle_x, columns)
    fill(1, -across, along, middle_y, rows)
    pixels = atlas.pixels[which]
    sampled = grid_sample(pixels, rearrange(grid, "n t h w two -> n (t h) w two"), align_corners=False)
    return rearrange(sampled, "n c (t h) w -> n c t h w", h=height)


def _backgrounds(
    specs: Sequence[ClipSpec], view: Float[Tensor, "n 3 t"], height: int, width: int
) -> Float[Tensor, "n 3 f h w"]:
    """What lies behind the objects in [-1, 1]: one frame where no camera moves, else every frame."""
    device = view.device
    if all(spec.camera == "static" for spec in specs):
        view = view[..., :1]
    left, top, scale = view[..., None, None].unbind(1)
    unit = min(height, width) / 64
    x = ((torch.arange(width, device=device) + 0.5) / scale + left) / unit
    y = ((torch.arange(height, device=device)[:, None] + 0.5) / scale + top) / unit
    x, y = torch.broadcast_tensors(x, y)
    parameters = torch.tensor([spec.background_parameters for spec in specs], device=device)
    colours = torch.empty(len(specs), 3, *x.shape[1:], device=device)
    for name in {spec.background for spec in specs}:
        chosen = [n for n, spec in enumerate(specs) if spec.background == name]
        colours[chosen] = paint(name, x[chosen], y[chosen], parameters[chosen])
    return colours * 2 - 1


def ground_truth(specs: Sequence[ClipSpec], tracks: Tracks) -> list[dict[str, Any]]:
    """What is where in every frame, ready for JSON: lists over frames for each object of each clip."""
    digits = {"x": 3, "y": 3, "size": 3, "angle": 3}
    values = {key: getattr(tracks, key).tolist() for key in digits}
    return [
        {
            "background": spec.background,
            "camera": spec.camera,
            "relation": spec.relation,
            "view": tracks.view[clip].tolist(),
            "objects": [
                {
                    "name": item.name,
                    "motion": item.motion,
                    **{key: [round(value, digits[key]) for value in values[key][clip][slot]] for key in digits},
                }
                for slot, item in enumerate(spec.objects)
            ],
        }
        for clip, spec in enumerate(specs)
    ]
