"""The settings of `kinema eval toybox`, and what it does with them."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kinema.errors import KinemaError
from kinema.files import check_other_file, check_output_file
from kinema.weights import model_dir

if TYPE_CHECKING:
    from kinema.eval.toybox.report import ToyboxReport
    from kinema.generation.pipeline import KinemaPipeline

logger = logging.getLogger(__name__)

SPRITES_VARIABLE = "KINEMA_SPRITES"
"""Environment variable that names the sprite folder where `--sprites` does not."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How well a model follows Toybox prompts, decided from the pixels of its clips.

    Attributes:
        model: A pipeline's folder; by default the embedded model.
        sprites: The sprite folder of the model's world; by default that of the environment variable KINEMA_SPRITES,
            or a folder `sprites` nearby. A model of drawn shapes needs none.
        num_prompts: Prompts of the test split.
        objects: "default": the 48 objects of the Toybox; "all": every object that the sprite folder has.
        num_objects: Objects in each prompt, 1 or 2.
        json: The report's file.
        contact_sheet: A PNG file of generated clips.
        image: Give the first frame too.
        num_steps: Of the sampler; by default the model's.
        guidance_scale: Of the sampler; by default the model's.
        guidance_interval: Noise levels (lowest, highest) between which guidance is applied; by default the model's.
        seed: Of the noise.
        batch_size: Clips generated together.
        overwrite: Replace existing files.
    """

    model: Path | None = None
    sprites: Path | None = None
    num_prompts: int = 200
    objects: Literal["default", "all"] = "default"
    num_objects: int = 1
    json: Path | None = None
    contact_sheet: Path | None = None
    image: bool = False
    num_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0
    batch_size: int = 8
    overwrite: bool = False


def run(settings: Settings) -> "ToyboxReport":
    """Measures, and writes the files that the settings name.

    Returns:
        The report; `.table()` is its text.

    Raises:
        KinemaError: A value is not allowed, the model or the sprites are missing, or a file exists.
    """
    for name, path in (("--json", settings.json), ("--contact-sheet", settings.contact_sheet)):
        if path is not None:
            check_output_file(path, overwrite=settings.overwrite, name=name)
    if settings.json is not None and settings.contact_sheet is not None:
        check_other_file(settings.contact_sheet, "--contact-sheet", {"--json": settings.json})
    if settings.num_objects not in (1, 2):
        raise KinemaError(f"`num_objects` (={settings.num_objects}) must be 1 or 2")
    folder = model_dir(settings.model, embedded="toybox")

    import torch

    from kinema.eval.toybox.evaluation import Sampling, evaluate
    from kinema.eval.toybox.report import write_report
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.training.data.toybox import Toybox
    from kinema.training.data.toybox.sprites import sprite_names

    pipeline = KinemaPipeline.from_pretrained(folder)
    num_frames, height, width = pipeline.config["sample_size"]
    sprites = find_sprites(pipeline, settings.sprites)
    world = Toybox(
        sprites,
        objects=sprite_names(sprites) if settings.objects == "all" and sprites is not None else None,
        split="test",
        num_frames=num_frames,
        height=height,
        width=width,
        num_objects=(settings.num_objects, settings.num_objects),
    )
    if torch.cuda.is_available():
        pipeline.to("cuda")
    sampling = Sampling(
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        seed=settings.seed,
        batch_size=settings.batch_size,
        image=settings.image,
    )
    report = evaluate(
        pipeline,
        world,
        settings.num_prompts,
        sampling,
        model="toybox (embedded)" if settings.model is None else settings.model.resolve().name,
        sheet=settings.contact_sheet,
        overwrite=settings.overwrite,
    )
    if settings.json is not None:
        write_report(report, settings.json, overwrite=settings.overwrite)
    return report


def find_sprites(pipeline: "KinemaPipeline", given: Path | None) -> Path | None:
    """The sprite folder of a model's world; None for a model that knows the drawn shapes.

    Args:
        pipeline: The model.
        given: A folder that the user named.

    Raises:
        KinemaError: The model was trained on sprites and there is no folder with them.
    """
    from kinema.generation.text import unknown_words
    from kinema.training.data.toybox import DEFAULT_SHAPES
    from kinema.training.data.toybox.sprites import MANIFEST

    if given is not None:
        return given
    named = os.environ.get(SPRITES_VARIABLE)
    if named:
        return Path(named)
    if pipeline.text_encoder is None and not unknown_words(pipeline.tokenizer, " ".join(DEFAULT_SHAPES)):
        return None
    # Where `kinema toybox sprites sprites` puts it, and where a checkout keeps data beside the repository.
    for folder in (Path("sprites"), Path("../shared/data/sprites")):
        if (folder / MANIFEST).is_file():
            logger.info("pictures of the objects: %s", folder)
            return folder
    raise KinemaError(
        f"`--sprites` (or {SPRITES_VARIABLE}) must name the folder of the objects' pictures "
        "(`kinema toybox sprites DIR` makes it)"
    )
