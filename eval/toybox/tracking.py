"""From where an object is in each frame to what it does."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.training.data.toybox.schema import MOTIONS, NUM_HOPS

STILL = "none"
"""What an object does that does nothing."""

# What an average Toybox object does in a clip: net way, hop height in pixels of a 64-pixel frame, log of the size
# ratio, turn in degrees. Motions are compared as multiples of these.
_TYPICAL_WAY, _TYPICAL_HOP, _TYPICAL_RATIO, _TYPICAL_TURN = 26.0, 20.0, math.log(1.87), 270.0
# Set on clips of the training split, never on generated ones.
LEAST_STRENGTH = 0.4
LEAST_GAIN = 0.07
_TURN_COST = 0.02  # share of a frame's explained energy that a turn by one step of angle costs
_LARGEST_TURN = 60.0  # degrees between two frames


@dataclass(frozen=True)
class Track:
    """Where the object is in each frame.

    Attributes:
        x: Centre in pixels.
        y: Centre in pixels, downwards.
        size: Longer side of the upright object in pixels.
        angle: In degrees, clockwise.
        energy: Squared difference from the background that the object explains.
    """

    x: Float[Tensor, " t"]
    y: Float[Tensor, " t"]
    size: Float[Tensor, " t"]
    angle: Float[Tensor, " t"]
    energy: Float[Tensor, " t"]


def turning_path(energy: Float[Tensor, "t a"], angles: Float[Tensor, " a"]) -> list[int]:
    """The angle in each frame: most energy, beginning upright, with no sudden turns (by dynamic programming).

    Args:
        energy: Explained in each frame at each angle.
        angles: Evenly spaced over the circle, beginning with 0.
    """
    count = len(angles)
    step = 360 / count
    order = torch.arange(count)
    apart = (order[:, None] - order[None]).abs()
    apart = torch.minimum(apart, count - apart).float()
    cost = apart * _TURN_COST * energy.amax(1).clamp_min(0).mean()
    cost[apart * step > _LARGEST_TURN] = torch.inf
    total = energy[0].clone()
    total[1:] = -torch.inf
    back = []
    for of_frame in energy[1:]:
        total, previous = (total[None] - cost).max(1)
        total = total + of_frame
        back.append(previous)
    path = [int(total.argmax())]
    for previous in reversed(back):
        path.append(int(previous[path[-1]]))
    return path[::-1]


def unwrap(angles: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Adds whole turns so that neighbours differ by less than half a turn."""
    steps = torch.remainder(angles.diff() + 180, 360) - 180
    return torch.cat([angles[:1], angles[:1] + steps.cumsum(0)])


def strengths(track: Track, short_side: float) -> dict[str, float]:
    """How much of each motion is in a track, in multiples of what an average Toybox object does.

    Straight ways and changes of size are the slope of a line through all frames, hops are what is left of y then, as a
    multiple of the curve of `NUM_HOPS` hops.
    """
    weight = track.energy.clamp_min(0).sqrt() + 1e-6
    tau = torch.linspace(0, 1, len(track.x))
    hop = torch.remainder(NUM_HOPS * tau, 1)
    # At the very end of the clip the object has landed.
    hops = 4 * hop * (1 - hop)
    line = torch.stack([torch.ones_like(tau), tau, hops], dim=1)
    measured = torch.stack([track.x, track.y, track.size.log(), track.angle], dim=1)
    slope = torch.linalg.lstsq(weight[:, None] * line, weight[:, None] * measured).solution
    unit = short_side / 64
    way_x, way_y = float(slope[1, 0]) / unit / _TYPICAL_WAY, float(slope[1, 1]) / unit / _TYPICAL_WAY
    growth = float(slope[1, 2]) / _TYPICAL_RATIO
    return {
        "left": -way_x,
        "right": way_x,
        "up": -way_y,
        "down": way_y,
        "grows": growth,
        "shrinks": -growth,
        "spins": abs(float(slope[1, 3])) / _TYPICAL_TURN,
        "bounces": -float(slope[2, 1]) / unit / _TYPICAL_HOP,
    }


def decide_motion(values: dict[str, float]) -> str:
    """The strongest motion, or `STILL` when none is strong."""
    motion = max(MOTIONS, key=lambda name: values[name])
    return motion if values[motion] >= LEAST_STRENGTH else STILL


def relation_between(first: Track, second: Track) -> str:
    """How the first object stands to the second throughout a clip, one of `RELATIONS`.

    Of the two axes it is the one along which the objects' boxes stay further apart.
    """
    half = (first.size + second.size) / 2
    way_x, way_y = second.x - first.x, second.y - first.y
    if (way_x.abs() - half).amin() > (way_y.abs() - half).amin():
        return "left of" if way_x.mean() > 0 else "right of"
    return "above" if way_y.mean() > 0 else "below"
