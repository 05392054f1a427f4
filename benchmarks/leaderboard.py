"""Tokenizers and generators under one protocol, as the tables of docs/leaderboard.md.

    python benchmarks/leaderboard.py tokenizers FOLDER [--hold-out PREFIX ...] [--published] [--tokenizer NAME ...]
    python benchmarks/leaderboard.py generators [--sprites DIR] [--num-prompts N] [--model DIR ...]

Tokenizers: clips at evenly spaced places of every video that the embedded tokenizers were not trained on, scaled to
just cover the size and cropped at the centre; PSNR, SSIM, LPIPS of every frame, rFVD of all clips. A tokenizer is an
embedded one, a folder of kinema's, a checkpoint of VidTok, or any video or image auto-encoder of diffusers by folder or
hub id (`ID` or `ID:SUBFOLDER`). `--published` adds those of `PUBLISHED`, which a hub must provide.

Generators: clips from prompts of the Toybox' test split, which no shipped model was trained on, against rendered clips
of the same prompts.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.apps.loading import load_pipeline, pick_device
from kinema.errors import KinemaError
from kinema.eval.clips.reading import Frames
from kinema.eval.fvd import FrechetVideoDistance
from kinema.eval.generation import evaluate_generation
from kinema.eval.reconstruction import evaluate_reconstruction
from kinema.eval.report import number
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.training.config import VALIDATION_PREFIXES, parse_shape
from kinema.training.data.clips import centre_clips
from kinema.training.data.listing import list_videos
from kinema.training.data.toybox import Toybox
from kinema.training.seeds import step_generator
from kinema.video import to_uint8

EMBEDDED = ("kl-4x8x8-c16", "fsq-4x8x8-32768", "toybox/vae")
"""The tokenizers that kinema ships: the general ones, and that of the Toybox pipeline."""

PUBLISHED = (
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers:vae",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers:vae",
    "hunyuanvideo-community/HunyuanVideo:vae",
    "zai-org/CogVideoX-2b:vae",
    "genmo/mochi-1-preview:vae",
    "Lightricks/LTX-Video:vae",
    "stabilityai/sd-vae-ft-mse",
)
"""Auto-encoders that diffusers runs, by hub id and subfolder; the last one codes images, frame by frame."""

FRAME_METRICS = ("psnr", "ssim", "lpips_alex", "lpips_vgg")
CLIP_METRICS = ("frame_consistency", "dynamic_degree", "motion_smoothness", "temporal_flickering")
STREAM = ("stream_t", "stream_f", "stream_d")


def natural_clips(arguments: argparse.Namespace) -> list[tuple[str, Tensor]]:
    """Name and frames of every clip of the protocol.

    Raises:
        KinemaError: No file is left.
    """
    shape = parse_shape(arguments.shape)
    prefixes = tuple(arguments.hold_out)
    files = [file for file in list_videos(arguments.folder) if not prefixes or file.name.startswith(prefixes)]
    if not files:
        raise KinemaError(f"`--hold-out` (={' '.join(prefixes)}) must be the beginnings of some files' names")
    return [
        (f"{file.name}-{index}", to_uint8(clip))
        for file in files
        for index, clip in enumerate(centre_clips(file, arguments.clips, shape))
    ]


def toybox_clips(arguments: argparse.Namespace) -> list[tuple[str, Tensor]]:
    """Name and frames of rendered clips of the test split."""
    world = Toybox(arguments.sprites, split="test", num_frames=17, height=64, width=64)
    return [
        (f"{i:04d}", to_uint8(world.render([spec]).video[0]))
        for i, spec in enumerate(world.specs(range(arguments.clips)))
    ]


def measure_tokenizers(arguments: argparse.Namespace) -> dict[str, Any]:
    """The table of tokenizers, printed row by row; the figures by name."""
    clips = toybox_clips(arguments) if str(arguments.folder) == "toybox" else natural_clips(arguments)
    frames, height, width, _ = clips[0][1].shape
    print(f"{len(clips)} clips {frames}x{height}x{width}, rFVD protocol {arguments.fvd}, torch {torch.__version__}\n")
    print("| tokenizer | compression | channels | values | PSNR | SSIM | LPIPS alex | LPIPS vgg | rFVD |")
    print("|---|---|---|---|---|---|---|---|---|")
    figures: dict[str, Any] = {}
    for name in (*EMBEDDED, *arguments.tokenizer, *(PUBLISHED if arguments.published else ())):
        try:
            figures[name] = _measure_tokenizer(name, clips, arguments)
        except Exception as error:  # whatever is wrong with one, the others go on
            reason = f"{type(error).__name__}: " * (not isinstance(error, KinemaError)) + " ".join(str(error).split())
            figures[name] = {"not_run": reason}
            print(f"| {name} | not run: {reason[:300].replace('|', '/')} |" + " |" * 7, flush=True)
    return figures


def _measure_tokenizer(name: str, clips: Sequence[tuple[str, Tensor]], arguments: argparse.Namespace) -> dict[str, Any]:
    tokenizer = load_tokenizer(name, arguments.device)
    distance = FrechetVideoDistance(arguments.fvd, device=arguments.device, hash_pixels=True)
    report = evaluate_reconstruction(tokenizer, clips, FRAME_METRICS, device=arguments.device, fvd=distance)
    fvd = distance.result()
    ct, cs, channels = (
        tokenizer.temporal_compression_ratio,
        tokenizer.spatial_compression_ratio,
        tokenizer.latent_channels,
    )
    values = [number(report.metrics[metric]) for metric in FRAME_METRICS]
    row = [name, f"{ct}x{cs}x{cs}", str(channels), f"1/{3 * ct * cs**2 / channels:.0f}", *values, number(fvd.value)]
    print("| " + " | ".join(row) + " |", flush=True)
    return report.as_dict() | {"rfvd": fvd.value, "rfvd_details": fvd.as_dict()}


def measure_generators(arguments: argparse.Namespace) -> dict[str, Any]:
    """The table of generators; the figures by name."""
    print(f"{arguments.num_prompts} prompts of the Toybox' test split, FVD protocol {arguments.fvd}\n")
    print("| generator | " + " | ".join((*arguments.metrics, *STREAM, "fvd")) + " |")
    print("|---" * (len(arguments.metrics) + len(STREAM) + 2) + "|")
    figures: dict[str, Any] = {}
    for model in (None, *arguments.model):
        name = "toybox (embedded)" if model is None else model
        figures[name] = _measure_generator(name, model, arguments)
    return figures


def _measure_generator(name: str, model: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    pipeline: Any = load_pipeline(model, device=arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    frames, height, width = pipeline.config["sample_size"]
    world = Toybox(arguments.sprites, split="test", num_frames=frames, height=height, width=width)
    specs = world.specs(range(arguments.num_prompts))
    distance = FrechetVideoDistance(arguments.fvd, device=arguments.device, hash_pixels=True)

    def generated() -> Iterator[tuple[str, Tensor, str]]:
        for start in range(0, len(specs), 8):
            prompts = world.captions(specs[start : start + 8])
            seeds = [step_generator(0, 0, start + i, "leaderboard") for i in range(len(prompts))]
            size = {"num_frames": frames, "height": height, "width": width}
            clips = pipeline(prompts, generator=seeds, output_type="pt", **size).frames
            for offset, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
                yield f"{start + offset:04d}", to_uint8(clip.float().cpu().transpose(0, 1) * 2 - 1), prompt

    def rendered() -> Iterator[tuple[str, Tensor]]:
        for index, spec in enumerate(specs):
            yield f"{index:04d}", to_uint8(world.render([spec]).video[0])

    def count(clip: str, video: Frames, _: str) -> None:
        assert isinstance(video, Tensor)  # `generated` has them in memory
        distance.update(video.permute(3, 0, 1, 2)[None], real=False, names=[clip])

    report = evaluate_generation(
        generated(),
        (*arguments.metrics, *STREAM),
        reference=rendered(),
        watch=count,
        device=arguments.device,
        fps=float(pipeline.config["sample_fps"]),
    )
    for clip, video in rendered():
        distance.update(video.permute(3, 0, 1, 2)[None], real=True, names=[clip])
    fvd = distance.result()
    print("| " + " | ".join((name, *map(number, report.metrics.values()), number(fvd.value))) + " |", flush=True)
    return report.as_dict() | {"fvd": fvd.value, "fvd_details": fvd.as_dict()}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, print the table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True)
    tokenizers = tables.add_parser("tokenizers", help="reconstruction of clips")
    tokenizers.add_argument("folder", type=Path, help="a folder of video files, or `toybox` for rendered clips")
    tokenizers.add_argument(
        "--tokenizer", nargs="+", default=[], help="folders, checkpoints or hub ids besides the embedded"
    )
    tokenizers.add_argument("--published", action="store_true", help="those of other people, from a hub")
    tokenizers.add_argument(
        "--hold-out", nargs="*", default=list(VALIDATION_PREFIXES), help="measure these files alone"
    )
    tokenizers.add_argument("--shape", default="17x256x256", help="FRAMESxHEIGHTxWIDTH (%(default)s)")
    tokenizers.add_argument("--clips", type=int, default=4, help="clips a file, or of the Toybox (%(default)s)")
    generators = tables.add_parser("generators", help="clips from prompts")
    generators.add_argument("--model", nargs="+", default=[], help="pipelines' folders besides the embedded one")
    generators.add_argument("--num-prompts", type=int, default=256, help="clips (%(default)s)")
    generators.add_argument(
        "--metrics",
        nargs="+",
        default=list(CLIP_METRICS),
        choices=CLIP_METRICS,
        help="of clips, besides STREAM and FVD",
    )
    for table in (tokenizers, generators):
        table.add_argument("--sprites", type=Path, help="the sprite folder of the Toybox; else drawn shapes")
        table.add_argument("--fvd", default="videogpt", help="protocol of FVD (%(default)s)")
        table.add_argument("--device", help="cpu, cuda, ...; else CUDA where there is one")
        table.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args(argv)
    measures: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "tokenizers": measure_tokenizers,
        "generators": measure_generators,
    }
    try:
        arguments.device = pick_device(arguments.device)
        figures = measures[arguments.table](arguments)
    except KinemaError as error:
        sys.exit(f"error: {error}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
