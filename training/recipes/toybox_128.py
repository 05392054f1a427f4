"""The embedded model: a tokenizer, then a transformer on images, then on clips of 33×128×128.

    python training/train_embedded.py --output runs/embedded --sprites sprites/ [--minutes 8] [--prompts 200]

Of the time, the tokenizer takes 31 %, images 14 %, clips 55 %: the shares of the shipped model, whose 6.5 minutes of
training took 8 on one H100. A run that was stopped goes on when the same command is given again; a stage that is done
is not repeated. OUTPUT/toybox is then ready to embed: float16, with a model card of what the run was and how it scores.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinema.eval.toybox.entry import Settings
from kinema.eval.toybox.entry import run as evaluate
from kinema.stopping import raised_signals
from kinema.training import diffusion, tokenizer
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig, TrainingConfig, to_dict
from kinema.training.data.toybox.source import ToyboxSettings
from kinema.training.presets import DIFFUSION_PRESETS, TOKENIZER_PRESETS
from kinema.training.recipes.card import write_card
from kinema.training.release import release

logger = logging.getLogger(__name__)

SHARES = {"tokenizer": 0.31, "images": 0.14, "clips": 0.55}
"""Parts of the time of the stages."""

SAMPLER: dict[str, Any] = {"sample_steps": 12, "sample_guidance_scale": 3.0, "sample_guidance_interval": [0.0, 1.0]}
"""The sampler's settings, chosen on prompts of the validation split (docs/decisions.md)."""

TABLES = (("one of 48 objects", "default", 1), ("any object", "all", 1), ("two objects", "all", 2))
"""What is scored: title, `--objects` and `--num-objects` of `kinema eval toybox`."""

_NEVER = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the steps are.

    Attributes:
        frames: of a clip.
        side: height and width of a frame.
        tokenizer_frames: of the clips that the tokenizer trains on.
        batch_sizes: clips a step, by stage.
        num_clips: clips whose latents are kept, by stage.
        preset: of the transformer.
        validation_clips: of the validation loss.
    """

    frames: int = 33
    side: int = 128
    tokenizer_frames: int = 17
    batch_sizes: tuple[int, int, int]
    num_clips: tuple[int, int]
    preset: str = "toybox-s"
    validation_clips: int = 32


GPU = Sizes(batch_sizes=(32, 1024, 96), num_clips=(16_384, 40_960))
CPU = Sizes(batch_sizes=(4, 32, 8), num_clips=(2048, 2048), validation_clips=8)


def configs(
    output: Path, minutes: float, sizes: Sizes, sprites: Path | None, *, cpu: bool
) -> tuple[TokenizerTrainingConfig, DiffusionTrainingConfig, DiffusionTrainingConfig]:
    """The settings of the three stages."""
    shared: dict[str, Any] = dict(
        data=("toybox",), num_steps=_NEVER,
        source_settings=(ToyboxSettings(sprites=sprites, toybox_objects="all", toybox_num_objects=(1, 2)),),
        schedule_on="minutes", eval_every=_NEVER, sample_every=_NEVER, betas=(0.9, 0.98), ema_decay=0.998, resume=True,
        num_workers=2, cpu=cpu,
    )  # fmt: skip
    pixels, clip = f"1x{sizes.side}x{sizes.side}", f"{sizes.frames}x{sizes.side}x{sizes.side}"
    short = f"{sizes.tokenizer_frames}x{sizes.side}x{sizes.side}"
    first = dataclasses.replace(
        TOKENIZER_PRESETS["kl-4x16x16-c32"], **shared, output=output / "tokenizer", shapes=(short,),
        validation_shape=short, validation_clips=sizes.validation_clips // 4, batch_size=sizes.batch_sizes[0],
        learning_rate=2e-3, warmup_steps=50, decay_fraction=0.5, kl_weight=1e-5, init_linear=True,
        max_minutes=minutes * SHARES["tokenizer"],
    )  # fmt: skip
    transformer = dataclasses.replace(
        DIFFUSION_PRESETS[sizes.preset], **shared, max_minutes=minutes, tokenizer=output / "tokenizer" / "model",
        fps=8.0, validation_clips=sizes.validation_clips,
    )  # fmt: skip
    images = dataclasses.replace(
        transformer, output=output / "images", shape=pixels, batch_size=sizes.batch_sizes[1],
        num_clips=sizes.num_clips[0], learning_rate=2e-3, decay_fraction=0.3, image_probability=0.0,
        max_minutes=minutes * SHARES["images"],
    )  # fmt: skip
    clips = dataclasses.replace(
        transformer, output=output / "clips", shape=clip, init_from=output / "images" / "model",
        batch_size=sizes.batch_sizes[2], num_clips=sizes.num_clips[1], learning_rate=1.5e-3, decay_fraction=0.6,
        max_minutes=minutes * SHARES["clips"],
    )  # fmt: skip
    return first, images, clips


def run(
    output: Path,
    minutes: float,
    sizes: Sizes,
    sprites: Path | None = None,
    *,
    num_prompts: int = 200,
    cpu: bool = False,
) -> Path:
    """Trains what is not trained yet, and writes the folder to embed.

    Args:
        output: folder of all stages.
        minutes: of training, all stages together; rendering, encoding and scores come on top.
        sizes: of the steps.
        sprites: pictures of the objects; None: drawn shapes.
        num_prompts: of each table of scores; 0: no scores.
        cpu: train on the CPU even where there is an accelerator.

    Returns:
        The folder `toybox`.

    Raises:
        KinemaError: a stage cannot train, or there is no room.
    """
    stages = configs(output, minutes, sizes, sprites, cpu=cpu)
    for config, train in zip(stages, (tokenizer.train, diffusion.train, diffusion.train), strict=True):
        _train(config, train)
    trained, target = output / "clips" / "model", output / "toybox"
    index = trained / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | SAMPLER, indent=2) + "\n")
    size = release(trained, target)
    logger.info("%s: %.1f MB in float16", target, size / 1e6)
    scores: dict[str, str] = {}
    for title, objects, number in TABLES if num_prompts else ():
        chosen: Any = dict(objects=objects, num_objects=number)
        scores[title] = evaluate(Settings(model=target, sprites=sprites, num_prompts=num_prompts, **chosen)).table()
        logger.info("%s\n%s", title, scores[title])
    settings = {name: to_dict(config) for name, config in zip(SHARES, stages, strict=True)}
    logs = {name: (output / name / "train.log").read_text() for name in SHARES}
    write_card(target, settings, logs, scores)
    return target


def _train(config: TrainingConfig, train: Callable[[Any], Path]) -> None:
    """Trains a stage, unless it is done; one that was stopped has a model, too, and goes on."""
    done = config.run_dir / "done"
    if done.is_file():
        logger.info("%s is done", config.run_dir)
        return
    train(config)
    done.touch()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe that the command line asks for.

    Raises:
        KinemaError: a stage cannot train.
        Stopped: a signal asked it to end; the same command goes on.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/embedded"), help="folder of all stages (%(default)s)")
    parser.add_argument("--sprites", type=Path, help="pictures of the objects; else drawn shapes")
    parser.add_argument("--minutes", type=float, default=6.5, help="of training, all stages together (%(default)s)")
    parser.add_argument("--prompts", type=int, default=200, help="prompts of each table of scores (%(default)s)")
    arguments = parser.parse_args(argv)
    shown = logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(shown)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    cpu = not torch.cuda.is_available()
    sizes = CPU if cpu else GPU
    try:
        with raised_signals():
            run(
                arguments.output,
                arguments.minutes,
                sizes,
                arguments.sprites,
                num_prompts=arguments.prompts,
                cpu=cpu,
            )
    finally:
        logger.removeHandler(shown)
        logger.propagate = True
