"""Which clips exist: the split by combination, and the random choice of what a clip shows."""

import hashlib
import random
from collections.abc import Sequence
from functools import cache

from kinema.errors import KinemaError
from kinema.training.data.toybox.schema import (
    BACKGROUNDS,
    MOTIONS,
    NUM_BACKGROUND_PARAMETERS,
    ClipSpec,
    ObjectSpec,
    Split,
)

_SHORT_SIDE = 64.0  # the numbers below are pixels of a frame whose short side is this
_SIZES = {
    "left": (23, 30), "right": (23, 30), "up": (23, 30), "down": (23, 30),
    "grows": (17, 20), "shrinks": (33, 37), "spins": (26, 33), "bounces": (23, 30),
}  # fmt: skip
_TRAVEL = (22, 30)
_HOP = (16, 24)
_RATIO = (1.75, 2.0)
_TURN = (180, 360)
_PAN = (8, 12)
_ZOOM = (1.2, 1.35)
_MARGIN = 1.0
_TURNED = 1.2  # how much further than upright a turned object reaches; only the corners of a full square reach more
_UNSAID_PLACE = 0.06  # share of training captions that leave the place out, so that short prompts work
_SIGN = {"left": -1, "right": 1, "up": -1, "down": 1}

Box = tuple[float, float, float, float]  # x0, y0, x1, y1


@cache
def split_of(name: str, motion: str, background: str) -> Split:
    """The split to which a combination belongs, whatever the seed: 80 % train, 10 % validation, 10 % test."""
    digest = hashlib.sha256(f"{name}|{motion}|{background}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "big") % 10
    return "train" if bucket < 8 else "validation" if bucket == 8 else "test"


class Sampler:
    """Draws clip descriptions, each from (seed, split, index) alone.

    Args:
        objects: Names to choose from.
        split: Only combinations of this split are drawn, also for each object of a clip with several.
        seed: Chooses one of many data sets over the same combinations.
        height: Frame height in pixels.
        width: Frame width in pixels.
        num_objects: Fewest and most objects in a clip.
        cameras: Cameras to choose from.

    Raises:
        KinemaError: No combination of these objects is in the split.
    """

    def __init__(
        self,
        objects: Sequence[str],
        split: Split,
        *,
        seed: int = 0,
        height: int = 64,
        width: int = 64,
        num_objects: tuple[int, int] = (1, 1),
        cameras: Sequence[str] = ("static",),
    ) -> None:
        self.split: Split = split
        self.seed = seed
        self.height, self.width = height, width
        self.num_objects = num_objects
        self.cameras = tuple(cameras)
        self.combinations = {
            background: [
                (name, motion) for name in objects for motion in MOTIONS if split_of(name, motion, background) == split
            ]
            for background in BACKGROUNDS
        }
        self.backgrounds = [background for background in BACKGROUNDS if self.combinations[background]]
        if not self.backgrounds:
            raise KinemaError(f"`objects` (={list(objects)}) must have a combination in the split {split!r}: give more")

    def __call__(self, index: int) -> ClipSpec:
        """The clip at `index` (>= 0)."""
        rng = random.Random(f"toybox/{self.seed}/{self.split}/{index}")
        # Weighted, so that every combination of the split is equally likely.
        sizes = [len(self.combinations[background]) for background in self.backgrounds]
        background = rng.choices(self.backgrounds, sizes)[0]
        count = rng.randint(*self.num_objects)
        combinations = self.combinations[background]
        chosen = [rng.choice(combinations) for _ in range(count)]
        while len({name for name, _ in chosen}) < min(count, len({name for name, _ in combinations})):
            chosen = [rng.choice(combinations) for _ in range(count)]
        camera = rng.choice(self.cameras)
        camera_amount = _camera_amount(camera, rng) * (self._unit if camera.startswith("pans") else 1.0)
        boxes, relation = self._boxes([motion for _, motion in chosen], camera, camera_amount, rng)
        return ClipSpec(
            objects=tuple(
                self._place(name, motion, box, rng) for (name, motion), box in zip(chosen, boxes, strict=True)
            ),
            background=background,
            background_parameters=tuple(round(rng.random(), 4) for _ in range(NUM_BACKGROUND_PARAMETERS)),
            camera=camera,
            camera_amount=round(camera_amount, 3),
            relation=relation,
            variant=rng.getrandbits(31),
            mentions_background=self.split != "train" or rng.random() >= _UNSAID_PLACE,
        )

    @property
    def _unit(self) -> float:
        return min(self.height, self.width) / _SHORT_SIDE

    def _boxes(
        self, motions: list[str], camera: str, amount: float, rng: random.Random
    ) -> tuple[list[Box], str | None]:
        """Cuts what the camera always sees into one lane an object; the order of the lanes is the relation."""
        x0, y0, x1, y1 = 0.0, 0.0, float(self.width), float(self.height)
        if camera.startswith("pans"):  # the view moves by `amount`: keep to what is seen first and last
            x0 += amount if camera == "pans right" else 0.0
            x1 -= amount if camera == "pans left" else 0.0
            y0 += amount if camera == "pans down" else 0.0
            y1 -= amount if camera == "pans up" else 0.0
        elif camera.startswith("zooms"):
            inset = 0.5 - 0.5 / max(amount, 1 / amount)
            x0, x1, y0, y1 = x1 * inset, x1 * (1 - inset), y1 * inset, y1 * (1 - inset)
        count = len(motions)
        if count == 1:
            return [(x0, y0, x1, y1)], None
        sideways = sum(motion in ("left", "right") for motion in motions)
        upright = sum(motion in ("up", "down", "bounces") for motion in motions)
        stacked = sideways > upright or (sideways == upright and rng.random() < 0.5)
        order = list(range(count))
        rng.shuffle(order)
        lanes: list[Box] = []
        for place in order:
            low, high = place / count, (place + 1) / count
            if stacked:
                lanes.append((x0, y0 + (y1 - y0) * low, x1, y0 + (y1 - y0) * high))
            else:
                lanes.append((x0 + (x1 - x0) * low, y0, x0 + (x1 - x0) * high, y1))
        before = order[0] < order[1]
        relation = ("above" if before else "below") if stacked else ("left of" if before else "right of")
        return lanes, relation

    def _place(self, name: str, motion: str, box: Box, rng: random.Random) -> ObjectSpec:
        """Size, start and amount such that the object stays inside the box in every frame."""
        unit = self._unit
        margin = _MARGIN * unit
        x0, y0, x1, y1 = box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin
        axis = "x" if motion in ("left", "right") else "y" if motion in ("up", "down", "bounces") else None
        room = {"x": x1 - x0, "y": y1 - y0}
        size = rng.uniform(*_SIZES[motion]) * unit
        ratio = rng.uniform(*_RATIO)
        travel = rng.uniform(*(_HOP if motion == "bounces" else _TRAVEL)) * unit
        turn = rng.uniform(*_TURN)
        # In a narrow lane the object is smaller, and along its way it leaves itself at least as much room as its size.
        size = min(size, *(0.55 * extent if key == axis else extent for key, extent in room.items()))
        if motion == "grows":
            size = min(size, min(room.values()) / ratio)
        if motion == "spins":
            size = min(size, min(room.values()) / _TURNED)
        largest = size * ratio if motion == "grows" else size
        half = 0.5 * largest
        start = {"x": rng.uniform(x0 + half, x1 - half), "y": rng.uniform(y0 + half, y1 - half)}
        if motion in ("grows", "shrinks", "spins"):  # nearer the middle
            start = {"x": 0.5 * (start["x"] + (x0 + x1) / 2), "y": 0.5 * (start["y"] + (y0 + y1) / 2)}
        if motion == "spins":  # corners of a turned box reach further out
            reach = 0.5 * _TURNED * size
            start = {
                "x": min(max(start["x"], x0 + reach), x1 - reach),
                "y": min(max(start["y"], y0 + reach), y1 - reach),
            }
        amount = {"grows": ratio, "shrinks": 1 / ratio, "spins": turn}.get(motion, 0.0)
        if axis is not None:
            low, high = (x0 + half, x1 - half) if axis == "x" else (y0 + half, y1 - half)
            amount = min(travel, high - low)
            slack = rng.uniform(0, high - low - amount)
            forward = _SIGN.get(motion, -1) > 0
            start[axis] = low + slack if forward else high - slack
            if motion == "bounces":  # hops start and end near the ground
                start[axis] = high - 0.4 * slack
        return ObjectSpec(
            name=name,
            motion=motion,
            x=round(start["x"], 3),
            y=round(start["y"], 3),
            size=round(size, 3),
            amount=round(amount, 4),
        )


def _camera_amount(camera: str, rng: random.Random) -> float:
    """Pixels of a 64-pixel frame for pans; last over first scale for zooms."""
    pan, zoom = rng.uniform(*_PAN), rng.uniform(*_ZOOM)
    if camera == "static":
        return 0.0
    if camera.startswith("pans"):
        return pan
    return zoom if camera == "zooms in" else 1 / zoom
