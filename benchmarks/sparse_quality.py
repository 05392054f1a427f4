"""What sparse attention does to clips: models trained with it, and patterns put on a dense model after its training.

    python benchmarks/sparse_quality.py DENSE [--trained DIR ...] [--patterns TEXT ...] [--sprites DIR] [--json FILE]

All clips come from the same prompts of the Toybox' test split, and from the same noise. For each row: the density of
computed tiles, the PSNR of its clips against those of DENSE (each clip's mean, then the mean of clips; for models that
were trained otherwise it says how near they came, not how good they are), the shares of clips that show what was asked
for (`kinema eval toybox`), and the seconds a clip takes to denoise: all rows take turns, batch by batch, and the median
counts. Oracle's shares on rendered clips and on what the tokenizer makes of them are the most that there is to get.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kinema.apps.loading import load_pipeline, pick_device
from kinema.eval.frames.psnr import decibels
from kinema.eval.toybox.evaluation import seen, truth_of
from kinema.eval.toybox.oracle import Oracle
from kinema.eval.toybox.report import chance_of, fractions, share_of_all
from kinema.generation.attention import Full, Grid, PatternSchedule, parse_patterns
from kinema.tokenizers.interface import latent_shape
from kinema.training.data.toybox import Toybox
from kinema.training.seeds import step_generator
from kinema.video import contact_sheet, to_uint8, write_image

ASPECTS = ("object", "motion", "background")

PATTERNS = (
    "sliding-tile:3x3x1,tile=3x4x4+sliding-tile:1x3x3,tile=3x4x4",
    "tile-top-k:k=9,tile=3x4x4",
    "sliding-tile-top-k:k=6,window=1x3x1,tile=3x4x4",
    "spatial+temporal",
    "window:3x8x8+shifted-window:3x8x8",
    "radial:0.2,min_width=32,tile_size=64",
    "spatial-temporal-heads:0.1",
)
"""Near a density of 0.19 on the grid of 33 frames of 128x128 at 4x8x8; the factorised ones are as they are."""


@dataclass
class Row:
    """A way to generate, and what became of it."""

    name: str
    pipeline: Any
    pattern: PatternSchedule
    density: float
    seconds: list[float] = field(default_factory=list)
    clips: list[Tensor] = field(default_factory=list)
    decided: list[dict[str, str]] = field(default_factory=list)

    def figures(self, dense: "Row", asked: list[dict[str, str]]) -> dict[str, Any]:
        """What is printed, and written."""
        psnr = [
            decibels(((a - b) / 2).square().mean(), peak=1.0).item()
            for a, b in zip(self.clips, dense.clips, strict=True)
        ]
        return {
            "name": self.name,
            "density": self.density,
            "psnr_to_dense": None if self is dense else statistics.mean(psnr),
            **fractions(asked, self.decided),
            "all": share_of_all(asked, self.decided),
            "seconds": statistics.median(self.seconds),
            "speedup": statistics.median(a / b for a, b in zip(dense.seconds, self.seconds, strict=True)),
        }


def make_rows(arguments: argparse.Namespace, device: str) -> tuple[list[Row], Grid]:
    """The dense model, models that were trained otherwise, and patterns on the dense model."""
    dense = load_pipeline(str(arguments.dense), device=device)
    grid = grid_of(dense)

    def row(name: str, pipeline: Any, pattern: PatternSchedule) -> Row:
        heads = [[head.tile_density for head in each.densities(grid)] for each in pattern.patterns]
        return Row(name, pipeline, pattern, statistics.mean(map(statistics.mean, heads)))

    rows = [row("dense", dense, PatternSchedule((Full(),)))]
    for folder in arguments.trained:
        pipeline = load_pipeline(str(folder), device=device)
        pattern = pipeline.transformer.attention or PatternSchedule((Full(),))
        rows.append(row(f"trained: {folder}", pipeline, pattern))
    for text in arguments.patterns:
        rows.append(row(text, dense, PatternSchedule(parse_patterns(text))))
    return rows, grid


def grid_of(pipeline: Any) -> Grid:
    """Tokens of a clip of the size that the model was trained for."""
    ratios = pipeline.vae.temporal_compression_ratio, pipeline.vae.spatial_compression_ratio
    frames, height, width = pipeline.config["sample_size"]
    latents = latent_shape(frames, height, width, *ratios)
    t, h, w = (size // patch for size, patch in zip(latents, pipeline.transformer.patch_size, strict=True))
    return Grid(t, h, w)


@torch.no_grad()
def generate(row: Row, prompts: list[str], first: int, arguments: argparse.Namespace) -> Tensor:
    """Clips in [-1, 1] from noise that depends on the prompt's number alone; the denoising is timed."""
    row.pipeline.transformer.set_attention(row.pattern)
    row.pipeline.set_progress_bar_config(disable=True)
    generators = [step_generator(arguments.seed, 0, first + i, "toybox evaluation") for i in range(len(prompts))]
    options: dict[str, Any] = {"num_inference_steps": arguments.num_steps, "guidance_scale": arguments.guidance_scale}
    start = time.perf_counter()
    latents = row.pipeline(prompts, generator=generators, output_type="latent", **options).frames
    if latents.is_cuda:
        torch.cuda.synchronize()
    row.seconds.append((time.perf_counter() - start) / len(prompts))
    vae = row.pipeline.vae
    return vae.decode(vae.denormalize(latents)).sample.float().cpu().clamp(-1, 1)


def measure(rows: list[Row], world: Toybox, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row on every batch of prompts, in turns."""
    oracle = Oracle(world.atlas, world.height, world.width)
    specs = world.specs(range(arguments.num_prompts))
    asked = [truth_of(spec) for spec in specs]

    def decide(clips: Iterable[Tensor]) -> list[dict[str, str]]:
        return [seen(oracle.decide(clip)) for clip in clips]

    rendered, coded = [], []
    batches = range(0, len(specs), arguments.batch_size)
    with tqdm(total=len(rows) * len(specs), unit="clip", disable=None) as progress:
        for start in batches:
            batch = specs[start : start + arguments.batch_size]
            video = world.render(batch).video
            rendered += decide(video)
            with torch.no_grad():
                coded += decide(rows[0].pipeline.vae.reconstruct(video).clamp(-1, 1))
            for row in rows:
                clips = generate(row, world.captions(batch), start, arguments)
                row.clips += list(clips)
                row.decided += decide(clips)
                progress.update(len(batch))
    figures = [row.figures(rows[0], asked) for row in rows]
    for name, decided in (("rendered clips", rendered), ("as the tokenizer codes them", coded)):
        figures.append({"name": name, **fractions(asked, decided), "all": share_of_all(asked, decided)})
    figures.append({"name": "chance", **chance_of(asked)})
    return figures


def print_table(figures: list[dict[str, Any]]) -> None:
    """Markdown."""
    heads = ["", "density", "PSNR to dense", *ASPECTS, "all three", "seconds a clip", "times faster"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    formats = {"density": ".3f", "psnr_to_dense": ".2f", **dict.fromkeys((*ASPECTS, "all"), ".2f")}
    formats |= {"seconds": ".1f", "speedup": ".2f"}
    for row in figures:
        cells = ["" if row.get(name) is None else format(row[name], form) for name, form in formats.items()]
        print("| " + " | ".join((row["name"], *cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, help="folder of the pipeline that was trained densely")
    parser.add_argument("--trained", nargs="*", type=Path, default=[], help="of those that were trained with patterns")
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS), help="put on the dense one")
    parser.add_argument("--sprites", type=Path, help="sprite folder of the models' world")
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="else CUDA where there is one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--contact-sheet", type=Path, help="a PNG of two clips of every row")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    rows, grid = make_rows(arguments, device)
    frames, height, width = rows[0].pipeline.config["sample_size"]
    world = Toybox(arguments.sprites, split="test", num_frames=frames, height=height, width=width)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; {frames}x{height}x{width}, grid {grid},"
        f" {grid.num_tokens:,} tokens; {arguments.num_prompts} prompts, {arguments.num_steps} steps, guidance"
        f" {arguments.guidance_scale:g}\n"
    )
    figures = measure(rows, world, arguments)
    print_table(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    if arguments.contact_sheet:
        clips = [to_uint8(clip) for row in rows for clip in row.clips[:2]]
        captions = world.captions(world.specs(range(2)))
        labels = [f"{row.name}: {caption}" for row in rows for caption in captions]
        write_image(arguments.contact_sheet, contact_sheet(clips, labels), overwrite=True)


if __name__ == "__main__":
    main()
