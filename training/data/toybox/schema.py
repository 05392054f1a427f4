"""The words and records that describe a Toybox clip.

Lengths are pixels of the rendered frame, angles are degrees (clockwise on screen), x runs right and y runs down. What
an object does is spread over the whole clip: at `tau` = frame / (num_frames - 1) it has done the fraction `tau` of its
`amount`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kinema.errors import KinemaError
from kinema.training.data.source import Split

MOTIONS = ("left", "right", "up", "down", "grows", "shrinks", "spins", "bounces")
BACKGROUNDS = ("meadow", "desert", "night sky", "snowy field", "sea", "brick wall")
CAMERAS = ("static", "pans left", "pans right", "pans up", "pans down", "zooms in", "zooms out")
RELATIONS = ("left of", "right of", "above", "below")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_OBJECTS = 4
NUM_HOPS = 2
NUM_BACKGROUND_PARAMETERS = 6
FPS = 8.0
"""Frames a second at which clips are meant to be shown."""


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object: what it is, where it starts (frame 0) and what it does.

    Attributes:
        name: Sprite or shape name.
        motion: One of `MOTIONS`.
        x: Centre at frame 0, before the camera.
        y: Centre at frame 0, before the camera.
        size: Longer side of the object's tight box at frame 0.
        amount: How far it goes in the clip: pixels (left, right, up, down), height of a hop in pixels (bounces),
            last size / first size (grows, shrinks), degrees (spins).
        angle: Rotation at frame 0; sampled clips start upright.
    """

    name: str
    motion: str
    x: float
    y: float
    size: float
    amount: float
    angle: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """Everything that a clip and its caption are made from; `from_dict(spec.to_dict()) == spec`.

    Attributes:
        objects: One to four objects; later ones are drawn over earlier ones.
        background: One of `BACKGROUNDS`.
        background_parameters: Six numbers in [0, 1): horizon, phase, texture offset, brightness, warmth, amplitude.
        camera: One of `CAMERAS`.
        camera_amount: Pixels (pans) or final / initial scale (zooms); 0 for a static camera.
        relation: How the first object stands to the second in every frame, one of `RELATIONS`; None for one object.
        variant: Chooses the wording of the caption.
        mentions_background: Whether the caption says where; always so outside the training split.
    """

    objects: tuple[ObjectSpec, ...]
    background: str
    background_parameters: tuple[float, ...]
    camera: str = "static"
    camera_amount: float = 0.0
    relation: str | None = None
    variant: int = 0
    mentions_background: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, ready for JSON."""
        values = asdict(self)
        values["objects"] = list(values["objects"])
        values["background_parameters"] = list(values["background_parameters"])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ClipSpec":
        """The inverse of `to_dict`.

        Raises:
            KinemaError: A key is unknown or missing.
        """
        try:
            objects = tuple(ObjectSpec(**each) for each in values["objects"])
            parameters = tuple(float(each) for each in values["background_parameters"])
            return cls(**{**values, "objects": objects, "background_parameters": parameters})
        except (KeyError, TypeError) as error:
            raise KinemaError(f"a Toybox clip record must have exactly the fields of `ClipSpec`: {error}") from error


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """Returns `value`, or raises `KinemaError` naming the argument, its value and what is allowed."""
    if value not in allowed:
        raise KinemaError(f"`{name}` (={value!r}) must be one of {', '.join(allowed)}")
    return value
