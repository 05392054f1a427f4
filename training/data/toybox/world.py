"""The Toybox: a procedural captioned world of named objects that move over simple backgrounds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.training.data.toybox.captions import caption, vocabulary
from kinema.training.data.toybox.objects import DEFAULT_OBJECTS
from kinema.training.data.toybox.render import Tracks, ground_truth, render_clips, track
from kinema.training.data.toybox.sampling import Sampler
from kinema.training.data.toybox.schema import CAMERAS, MAX_OBJECTS, SPLITS, ClipSpec, Split, check_choice
from kinema.training.data.toybox.shapes import DEFAULT_SHAPES
from kinema.training.data.toybox.sprites import Atlas, build_atlas, load_pictures, sprite_names

_LARGEST = 45 / 64  # longer side of the largest level of the pictures over the frame's short side
_SMALLEST_FRAME = 16


@dataclass(frozen=True)
class ToyboxBatch:
    """Rendered clips.

    Attributes:
        video: Frames in [-1, 1].
        captions: A sentence a clip.
        specs: What each clip was made from.
        tracks: Where the objects are in each frame.
    """

    video: Float[Tensor, "b 3 t h w"]
    captions: list[str]
    specs: list[ClipSpec]
    tracks: Tracks

    @cached_property
    def ground_truth(self) -> list[dict[str, Any]]:
        """For each clip background, camera, relation, the camera's view, and of each object name, motion and, by frame,
        x, y (centre), size (longer side of the upright box) in pixels, angle in degrees; JSON-ready.

        Made when asked for: it takes longer than drawing a clip on a GPU.
        """
        return ground_truth(self.specs, self.tracks)


class Toybox:
    """Clips by number, the same ones whenever seed and split are the same.

    The splits are disjoint by combination: an (object, motion, background) of "test" is in no clip of "train".

    Args:
        sprites: Folder with pictures and `sprites.json`; None draws coloured shapes instead.
        objects: Names of the objects; by default `DEFAULT_OBJECTS` (those that the folder has; all it has if it has
            none of them), or `DEFAULT_SHAPES` without sprites.
        num_frames: Frames of a clip; a motion always takes the whole clip.
        height: Frame height in pixels.
        width: Frame width in pixels.
        seed: Chooses one of many data sets over the same combinations.
        split: "train" (80 % of the combinations), "validation" or "test" (10 % each).
        num_objects: Fewest and most objects in a clip, 1 to 4.
        cameras: Cameras to choose from, of `CAMERAS`.

    Raises:
        KinemaError: An argument is outside what is allowed, or the folder is no sprite folder.
    """

    def __init__(
        self,
        sprites: Path | str | None = None,
        *,
        objects: Sequence[str] | None = None,
        num_frames: int = 17,
        height: int = 64,
        width: int = 64,
        seed: int = 0,
        split: Split | str = "train",
        num_objects: tuple[int, int] = (1, 1),
        cameras: Sequence[str] = ("static",),
    ) -> None:
        self.split: Split = cast(Split, check_choice("split", split, SPLITS))
        for camera in cameras:
            check_choice("cameras", camera, CAMERAS)
        if not cameras:
            raise KinemaError(f"`cameras` (=()) must hold at least one of {', '.join(CAMERAS)}")
        if not 1 <= num_objects[0] <= num_objects[1] <= MAX_OBJECTS:
            raise KinemaError(f"`num_objects` (={num_objects}) must be a range within 1 and {MAX_OBJECTS}")
        if num_frames < 1:
            raise KinemaError(f"`num_frames` (={num_frames}) must be at least 1")
        for name, value in (("height", height), ("width", width)):
            if value < _SMALLEST_FRAME:
                raise KinemaError(f"`{name}` (={value}) must be at least {_SMALLEST_FRAME}")
        self.sprites = None if sprites is None else Path(sprites)
        self.objects = _choose_objects(self.sprites, objects)
        self.num_frames, self.height, self.width = num_frames, height, width
        self.seed = seed
        self.num_objects = num_objects
        self._sampler = Sampler(
            self.objects, self.split, seed=seed, height=height, width=width, num_objects=num_objects, cameras=cameras
        )
        pictures = load_pictures(self.objects, self.sprites)
        largest = round(_LARGEST * min(height, width))
        self._atlases: dict[torch.device, Atlas] = {torch.device("cpu"): build_atlas(self.objects, pictures, largest)}

    @property
    def atlas(self) -> Atlas:
        """The objects' pictures on the CPU."""
        return self._atlases[torch.device("cpu")]

    @property
    def combinations(self) -> list[tuple[str, str, str]]:
        """Every (object, motion, background) of this split."""
        return [(*pair, place) for place, pairs in self._sampler.combinations.items() for pair in pairs]

    def vocabulary(self) -> list[str]:
        """Every word that a caption of this world can contain, in a fixed order."""
        return vocabulary(self.objects)

    def specs(self, indices: Iterable[int]) -> list[ClipSpec]:
        """Descriptions of the clips with these numbers (>= 0); each depends on seed, split and its number alone."""
        return [self._sampler(int(index)) for index in indices]

    def captions(self, specs: Iterable[ClipSpec]) -> list[str]:
        """The captions of these clips."""
        return [caption(spec) for spec in specs]

    @torch.no_grad()
    def render(self, specs: Sequence[ClipSpec], device: torch.device | str = "cpu") -> ToyboxBatch:
        """Draws the clips, sampled or self-made.

        Raises:
            KinemaError: There is no clip, or one has an object that this world does not have.
        """
        specs = list(specs)
        if not specs:
            raise KinemaError("`specs` (=[]) must hold at least one clip")
        unknown = {item.name for spec in specs for item in spec.objects} - set(self.objects)
        if unknown:
            raise KinemaError(f"`specs` (with {sorted(unknown)}) must have only objects of this world (`objects`)")
        device = torch.device(device)
        if device not in self._atlases:
            self._atlases[device] = self.atlas.to(device)
        tracks = track(specs, self.num_frames, self.height, self.width)
        video = render_clips(specs, tracks, self._atlases[device], self.height, self.width)
        return ToyboxBatch(video, self.captions(specs), specs, tracks)

    def batch(self, indices: Iterable[int], device: torch.device | str = "cpu") -> ToyboxBatch:
        """The clips with these numbers, drawn."""
        return self.render(self.specs(indices), device)


def _choose_objects(sprites: Path | None, objects: Sequence[str] | None) -> tuple[str, ...]:
    if objects is not None:
        if not objects or len(set(objects)) != len(objects):
            raise KinemaError(f"`objects` (={list(objects)}) must hold at least one name, and none twice")
        return tuple(objects)
    if sprites is None:
        return DEFAULT_SHAPES
    available = sprite_names(sprites)
    return tuple(name for name in DEFAULT_OBJECTS if name in available) or tuple(available)
