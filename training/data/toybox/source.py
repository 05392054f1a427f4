"""The Toybox as a data source: `--data toybox`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kinema.training.data.source import CaptionedSource, Shape, SourceRequest
from kinema.training.data.stamps import file_size, file_stamps
from kinema.training.data.toybox.schema import FPS
from kinema.training.data.toybox.sprites import sprite_names
from kinema.training.data.toybox.world import Toybox


@dataclass(frozen=True, kw_only=True)
class ToyboxSettings:
    """Settings of the Toybox as training data."""

    sprites: Path | None = None
    """Toybox: folder of sprites (default: drawn shapes)."""
    toybox_objects: Literal["default", "all"] = "default"
    """Toybox: the objects that clips show, the default selection or all that the sprite folder has."""
    toybox_num_objects: tuple[int, int] = (1, 1)
    """Toybox: minimum and maximum number of objects in a clip."""


class ToyboxSource(CaptionedSource):
    """Toybox clips by number, rendered in batches on the training's device.

    Raises:
        KinemaError: the sprite folder, the number of objects or a shape is not one that the Toybox can render.
    """

    help: ClassVar[str] = "rendered clips of moving objects"
    settings_class: ClassVar[type[Any] | None] = ToyboxSettings
    native_fps: ClassVar[float | None] = FPS

    def __init__(self, request: SourceRequest) -> None:
        super().__init__(request)
        self._worlds = {shape: self._make_world(shape) for shape in request.shapes}
        self._world = next(iter(self._worlds.values()))

    def _make_world(self, shape: Shape) -> Toybox:
        settings, request = self.request.settings or ToyboxSettings(), self.request
        frames, height, width = shape
        return Toybox(
            settings.sprites,
            objects=sprite_names(settings.sprites) if settings.sprites and settings.toybox_objects == "all" else None,
            num_frames=frames,
            height=height,
            width=width,
            seed=request.seed,
            split=request.split,
            num_objects=settings.toybox_num_objects,
        )

    def __len__(self) -> int:
        return sys.maxsize

    def clip(self, index: int, shape: Shape, generator: torch.Generator) -> tuple[Float[Tensor, "3 t h w"], str]:
        return self.clips([index], shape, [generator], torch.device("cpu"))[0]

    def clips(
        self, indices: Sequence[int], shape: Shape, generators: Sequence[torch.Generator], device: torch.device
    ) -> list[tuple[Float[Tensor, "3 t h w"], str]]:
        batch = self._worlds[shape].batch(indices, device)
        return list(zip(batch.video, batch.captions, strict=True))

    def vocabulary(self) -> Sequence[str]:
        return self._world.vocabulary()

    def fingerprint(self) -> list[str]:
        return [self._world.split, *self._world.objects, *file_stamps(self._sprite_files())]

    def contents(self) -> dict[str, list[Any]]:
        objects = {f"toybox/{name}": [0] for name in self._world.objects}
        return objects | {f"sprites/{file.name}": [file_size(file)] for file in self._sprite_files()}

    def report(self) -> dict[str, Any]:
        return {"objects": list(self._world.objects)}

    def _sprite_files(self) -> list[Path]:
        folder = self._world.sprites
        return [] if folder is None else sorted(file for file in folder.iterdir() if file.is_file())
