"""Make clips from prompts, or from a prompt and the first frame."""

import argparse
import sys
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.apps.commands.attention import parse_dense_steps
from kinema.errors import KinemaError
from kinema.files import check_input_file, read_text

if TYPE_CHECKING:
    from torch import Tensor

HELP = "clips from prompts, or from a prompt and a first frame"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to make: what of, where to, with which seed."""

    prompt: str
    output: Path
    seed: int

    @property
    def sheet(self) -> Path:
        """Where the contact sheet goes."""
        return self.output.with_suffix(".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="what the clip shows")
    parser.add_argument("--prompts", metavar="FILE", help="many clips: a text file (UTF-8) with a prompt a line")
    parser.add_argument(
        "--out-dir", metavar="DIR", help="where the clips of --prompts go: 0000.mp4 is the first line's"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the clip's file; else named after the prompt")
    parser.add_argument("--image", metavar="FILE", help="a picture to be the first frame")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="a pipeline's folder or hub id, kinema's or diffusers'; else the embedded one",
    )
    parser.add_argument(
        "--attention", metavar="PATTERN", help="sparse attention, like sliding-tile:3x3x3 (`kinema attention patterns`)"
    )
    parser.add_argument("--dense-steps", metavar="N[,M]", help="first (and last) sampling steps that stay dense (0)")
    parser.add_argument("--dense-layers", type=int, metavar="N", help="first blocks that stay dense (0)")
    add_call_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first clip; each next takes one more")
    parser.add_argument("--fps", type=float, help="frames a second in the file; else the model's own")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; else CUDA where there is one")
    parser.add_argument("--lossless", action="store_true", help="a file with exactly the pixels that were generated")
    parser.add_argument("--contact-sheet", action="store_true", help="also a PNG of frames beside each clip")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_call_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a pipeline's call that `given_options` reads."""
    parser.add_argument("--num-frames", type=int, metavar="N", help="frames in a clip; else the model's own number")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="height of the clip; else the model's own")
    parser.add_argument("--width", type=int, metavar="PIXELS", help="width of the clip; else the model's own")
    parser.add_argument("--num-steps", type=int, metavar="N", help="sampling steps; else the model's own number")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        metavar="SCALE",
        help="how strictly to follow the prompt; else the model's own",
    )
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels in [0, 1] between which guidance is applied; else the model's own",
    )


def run(arguments: argparse.Namespace) -> None:
    """Check everything that can be checked, load the model, make the clips."""
    check_numbers(arguments)
    check_attention(arguments)
    jobs = plan_jobs(arguments)
    if arguments.image is not None:
        check_input_file(arguments.image, "image")

    from kinema.apps.any_pipeline import frames_per_second, load_any_pipeline, set_attention
    from kinema.files import check_other_file, check_output_file
    from kinema.video import VideoWriter, check_output_video, contact_sheet, read_image, write_image

    for job in jobs:
        check_output_video(job.output, overwrite=arguments.overwrite)
        if arguments.contact_sheet:
            check_output_file(job.sheet, overwrite=arguments.overwrite, name="--contact-sheet")
            if arguments.image is not None:
                check_other_file(job.sheet, "--contact-sheet", {"image": arguments.image})
    image = None if arguments.image is None else read_image(arguments.image, name="image")
    if arguments.attention is not None:
        from kinema.generation.attention import parse_patterns

        parse_patterns(arguments.attention)  # a mistake is named before the loading
    pipeline = load_any_pipeline(arguments.model, device=arguments.device)
    if arguments.attention is not None:
        set_attention(
            pipeline,
            arguments.attention,
            dense_steps=parse_dense_steps(arguments.dense_steps or "0"),
            dense_layers=arguments.dense_layers or 0,
            num_steps=arguments.num_steps,
        )
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    fps = arguments.fps or frames_per_second(pipeline)
    for job in jobs:
        started = time.perf_counter()
        frames = generate_clip(pipeline, job.prompt, image=image, seed=job.seed, **given_options(arguments))
        seconds = time.perf_counter() - started
        with VideoWriter(job.output, fps, lossless=arguments.lossless, overwrite=arguments.overwrite) as out:
            out.write(frames)
        num_frames, height, width, _ = frames.shape
        print(f"{job.output}  {num_frames} frames of {height}x{width} in {seconds:.1f} s", flush=True)
        if arguments.contact_sheet:
            write_image(job.sheet, contact_sheet([frames], [job.prompt]), overwrite=arguments.overwrite)
            print(job.sheet, flush=True)


def generate_clip(
    pipeline: Any, prompt: str, *, image: "Tensor | None" = None, seed: int = 0, **options: Any
) -> "Tensor":
    """One clip as the frames of a file.

    Args:
        pipeline: A `KinemaPipeline`, or a pipeline of diffusers that makes videos from prompts.
        prompt: What it shows.
        image: Its first frame, uint8 `(h, w, 3)`.
        seed: Of the noise; the same seed gives the same clip, whatever the device.
        **options: Further arguments of the pipeline's call.

    Returns:
        uint8 frames `(t, h, w, 3)`.

    Raises:
        KinemaError: The pipeline does not take one of the arguments, or not with this value.
    """
    import torch
    from einops import rearrange
    from PIL import Image

    from kinema.apps.any_pipeline import check_options, image_argument
    from kinema.apps.memory import check_memory
    from kinema.memory import out_of_memory_in_one_line
    from kinema.video import to_uint8

    check_options(pipeline, options)
    num_frames, height, width = (
        options.get(name) or default
        for name, default in zip(("num_frames", "height", "width"), _sample_size(pipeline), strict=True)
    )
    check_memory(getattr(pipeline, "vae", None), height, width, "the clip", num_frames)
    given = image_argument(pipeline, None if image is None else Image.fromarray(image.numpy()))
    generator = torch.Generator().manual_seed(seed)
    size = f"a clip of {num_frames}x{height}x{width}" if num_frames else "the clip"
    remedies = "fewer frames or a smaller size make it fit"
    with out_of_memory_in_one_line(size, remedies):
        clip = pipeline(prompt=prompt, **given, generator=generator, output_type="pt", **options).frames[0]
    return to_uint8(rearrange(clip, "t c h w -> c t h w").cpu() * 2 - 1)


def _sample_size(pipeline: Any) -> tuple[int, int, int]:
    """A pipeline's own number of frames, height and width; 0 where it does not say."""
    return getattr(pipeline, "config", {}).get("sample_size") or (0, 0, 0)


def given_options(arguments: Any) -> dict[str, Any]:
    """The arguments of the pipeline's call that the user gave; the model has its own values for the others.

    Args:
        arguments: An object with the attributes that `add_call_arguments` declares.
    """
    options = {
        "num_frames": arguments.num_frames,
        "height": arguments.height,
        "width": arguments.width,
        "num_inference_steps": arguments.num_steps,
        "guidance_scale": arguments.guidance_scale,
        "guidance_interval": arguments.guidance_interval,
    }
    return {name: value for name, value in options.items() if value is not None}


def plan_jobs(arguments: argparse.Namespace) -> list[Job]:
    """Which clips to make.

    Raises:
        KinemaError: Neither or both of PROMPT and --prompts, or options of the one with the other.
    """
    if (arguments.prompt is None) == (arguments.prompts is None):
        raise KinemaError("`prompt` must be given, or `--prompts FILE`, and not both")
    if arguments.prompts is None:
        if arguments.out_dir is not None:
            raise KinemaError(f"`--out-dir` (={arguments.out_dir!r}) must go with `--prompts`; use `-o` for one clip")
        if not arguments.prompt.strip():
            raise KinemaError(f"`prompt` (={arguments.prompt!r}) must have a word")
        output = Path(arguments.output or f"{slug(arguments.prompt)}.mp4")
        return [Job(prompt=arguments.prompt, output=output, seed=arguments.seed)]
    if arguments.out_dir is None:
        raise KinemaError("`--out-dir` must be given with `--prompts`")
    if arguments.output is not None:
        raise KinemaError(f"`--output` (={arguments.output!r}) must go with one prompt; `--prompts` takes `--out-dir`")
    folder = Path(arguments.out_dir)
    if folder.exists() and not folder.is_dir():
        raise KinemaError(f"`--out-dir` (={arguments.out_dir!r}) must be a folder, and it is a file")
    prompts = read_prompts(arguments.prompts)
    return [
        Job(prompt=prompt, output=folder / f"{index:04d}.mp4", seed=arguments.seed + index)
        for index, prompt in enumerate(prompts)
    ]


def read_prompts(path: str) -> list[str]:
    """The prompts in a text file, one a line; empty lines at its end are no prompts.

    Raises:
        KinemaError: No such file, not text in UTF-8, no prompt in it, or an empty line between prompts: clips are
            numbered by line, and it would be unclear what they count.
    """
    check_input_file(path, "prompts")
    text = read_text(path, "prompts").replace("\r\n", "\n").replace("\r", "\n").rstrip()
    if not text:
        raise KinemaError(f"`prompts` (={path!r}) must have a prompt in it")
    lines = text.split("\n")  # splitlines() would also break at characters that editors show within a line
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise KinemaError(f"`prompts` (={path!r}) must have a prompt on each line, and line {number} is empty")
    return [line.strip() for line in lines]


def slug(prompt: str) -> str:
    """A file name for a prompt: its words without accents, joined by dashes, as many as make about 60 letters.

    Words of other scripts are left out, so that the name can be typed on any keyboard.
    """
    from kinema.generation.words import split_words

    plain = (unicodedata.normalize("NFD", word).encode("ascii", "ignore").decode() for word in split_words(prompt))
    words = [word for word in plain if word.isalnum()]
    name = ""
    for word in words:
        if len(name) + len(word) > 60:
            break
        name = f"{name}-{word}" if name else word
    return name or "clip"


def check_attention(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` where what is given about sparse attention does not go together."""
    if arguments.dense_steps is not None:
        parse_dense_steps(arguments.dense_steps)
    if arguments.dense_layers is not None and arguments.dense_layers < 0:
        raise KinemaError(f"`--dense-layers` (={arguments.dense_layers}) must be >= 0")
    for name in ("dense_steps", "dense_layers"):
        value = getattr(arguments, name)
        if value is not None and arguments.attention is None:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={value}) must go with `--attention`")


def check_numbers(arguments: Any) -> None:
    """Raises `KinemaError` if a number is out of range.

    Args:
        arguments: An object with the attributes that `add_call_arguments` declares, `seed` and `fps`.
    """
    for name in ("num_frames", "height", "width", "num_steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={value}) must be >= 1")
    if arguments.guidance_scale is not None and not 0 <= arguments.guidance_scale < float("inf"):
        raise KinemaError(f"`--guidance-scale` (={arguments.guidance_scale}) must be >= 0")
    if arguments.guidance_interval is not None:
        low, high = arguments.guidance_interval
        if not 0 <= low < high <= 1:
            raise KinemaError(f"`--guidance-interval` (={low:g} {high:g}) must be two rising numbers in [0, 1]")
    if not 0 <= arguments.seed < 2**63:
        raise KinemaError(f"`--seed` (={arguments.seed}) must be >= 0 and below 2**63")
    if arguments.fps is not None and not 0.001 <= arguments.fps <= 1000:
        raise KinemaError(f"`--fps` (={arguments.fps:g}) must be >= 0.001 and <= 1000")
