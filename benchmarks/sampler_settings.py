"""Measures a model's sampler settings: what clips show, and their time, by steps, shift, guidance and its interval.

    python benchmarks/sampler_settings.py --model DIR --sprites DIR --num-steps 8 16 30 --guidance-scales 3 6

Prompts are those of the Toybox' validation split (the test split is kept for the reported score), half of them with one
object of all in the sprite folder, half with two. All settings get the same prompts and noise. "explained" is the share
of the picture that the oracle's object accounts for, near 1 on real clips: it still differs where all clips are right.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

from einops import rearrange
from torch import Tensor

from kinema import KinemaPipeline
from kinema.eval.toybox.evaluation import seen, truth_of
from kinema.eval.toybox.oracle import Oracle
from kinema.generation.guidance import SamplerSettings
from kinema.training.data.toybox import Toybox
from kinema.training.data.toybox.sprites import sprite_names
from kinema.training.seeds import step_generator


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one setting gives: shares of clips, the oracle's `explained`, seconds a clip."""

    num_steps: int
    shift: float
    guidance_scale: float
    guidance_interval: tuple[float, float]
    object: float
    motion: float
    background: float
    all: float
    explained: float
    seconds: float

    def line(self) -> str:
        low, high = self.guidance_interval
        shares = " | ".join(f"{value:.3f}" for value in (self.object, self.motion, self.background, self.all))
        settings = f"{self.num_steps} | {self.shift:g} | {self.guidance_scale:g} | {low:g} to {high:g}"
        return f"| {settings} | {shares} | {self.explained:.3f} | {self.seconds:.2f} |"


HEADER = (
    "| steps | shift | guidance | at noise levels | object | motion | background | all | explained | s a clip |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def measure(pipeline: KinemaPipeline, worlds: Sequence[Toybox], num_prompts: int, settings: SamplerSettings) -> Row:
    """Generates a clip for each prompt of each world, and asks the oracle."""
    asked: list[dict[str, str]] = []
    decided: list[dict[str, str]] = []
    explained: list[float] = []
    seconds: list[float] = []
    for world in worlds:
        oracle = Oracle(world.atlas, world.height, world.width)
        for index, spec in enumerate(world.specs(range(num_prompts))):
            start = time.perf_counter()
            clip = generate(pipeline, world.captions([spec])[0], index, settings)
            seconds.append(time.perf_counter() - start)
            decisions = oracle.decide_all(clip, world.num_objects[1])
            asked.append(truth_of(spec))
            decided.append(seen(*decisions))
            explained.append(min(decision.explained for decision in decisions))
    pairs = list(zip(asked, decided, strict=True))
    shares = {name: mean(a[name] == d[name] for a, d in pairs) for name in ("object", "motion", "background")}
    return Row(
        num_steps=settings.num_inference_steps,
        shift=pipeline.scheduler.config["shift"],
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        **shares,
        all=mean(a == d for a, d in pairs),
        explained=mean(explained),
        seconds=median(seconds),
    )


def generate(pipeline: KinemaPipeline, prompt: str, index: int, settings: SamplerSettings) -> Tensor:
    """One clip `3 t h w` in [-1, 1]."""
    made: Any = pipeline(
        prompt,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
        generator=step_generator(0, 0, index, "sampler settings"),
    )
    return rearrange(made.frames[0].float().cpu() * 2 - 1, "t c h w -> c t h w")


def all_settings(arguments: argparse.Namespace) -> Iterator[tuple[float, SamplerSettings]]:
    intervals = [(arguments.intervals[i], arguments.intervals[i + 1]) for i in range(0, len(arguments.intervals), 2)]
    for shift, steps, scale, interval in product(
        arguments.shifts, arguments.num_steps, arguments.guidance_scales, intervals
    ):
        yield (
            shift,
            SamplerSettings(num_inference_steps=steps, guidance_scale=scale, guidance_interval=interval),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a pipeline's folder")
    parser.add_argument("--sprites", type=Path, required=True, help="the sprite folder of its world")
    parser.add_argument("--num-prompts", type=int, default=32, help="prompts with one object, and as many with two")
    parser.add_argument("--num-steps", type=int, nargs="+", default=[30])
    parser.add_argument("--shifts", type=float, nargs="+", default=[2.0])
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[6.0])
    parser.add_argument("--intervals", type=float, nargs="+", default=[0.0, 1.0], help="LOW HIGH, for each interval")
    parser.add_argument("--json", type=Path, help="a file that gets one line of JSON a setting")
    arguments = parser.parse_args()

    pipeline = KinemaPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = pipeline.config["sample_size"]
    names = sprite_names(arguments.sprites)
    worlds = [
        Toybox(
            arguments.sprites, objects=names, split="validation", num_frames=frames, height=height, width=width,
            num_objects=(count, count),
        )
        for count in (1, 2)
    ]  # fmt: skip
    print(HEADER, flush=True)
    for shift, settings in all_settings(arguments):
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift=shift)
        row = measure(pipeline, worlds, arguments.num_prompts, settings)
        print(row.line(), flush=True)
        if arguments.json is not None:
            with arguments.json.open("a") as file:
                file.write(json.dumps(row.__dict__) + "\n")


if __name__ == "__main__":
    main()
