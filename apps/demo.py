"""What `make demo` runs: four clips from prompts and one from a picture, by the embedded model, and a contact sheet."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema.apps.any_pipeline import frames_per_second
from kinema.apps.cli import Parser, report
from kinema.apps.commands.generate import generate_clip, slug
from kinema.apps.loading import load_pipeline
from kinema.files import check_output_file
from kinema.video import contact_sheet, read_image, write_image, write_video

PROMPTS = (
    "a red car drives to the right in a snowy field",
    "a rocket flies up in the night sky",
    "a penguin bounces on the snow",
    "a sunflower grows in a meadow",
)
"""Those in the README."""

FIRST_FRAME = Path(__file__).parent / "assets" / "first_frame.png"
FIRST_FRAME_PROMPT = "a sailboat drifts to the left on the sea"


def make_clips(pipeline: Any, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Make the clips and their contact sheet, and say where they are and how long each took.

    Args:
        pipeline: A `KinemaPipeline`.
        folder: Where they go.
        overwrite: Replace those of an earlier run.

    Returns:
        The files that were made.

    Raises:
        KinemaError: One of the files exists, and `overwrite` is not set.
    """
    jobs = [*((prompt, None) for prompt in PROMPTS), (FIRST_FRAME_PROMPT, read_image(FIRST_FRAME))]
    paths = [folder / f"{slug(prompt)}.mp4" for prompt, _ in jobs]
    sheet = folder / "contact_sheet.png"
    for path in [*paths, sheet]:
        check_output_file(path, overwrite=overwrite)
    clips, labels = [], []
    for (prompt, image), path in zip(jobs, paths, strict=True):
        started = time.perf_counter()
        frames = generate_clip(pipeline, prompt, image=image)
        write_video(path, frames, frames_per_second(pipeline), overwrite=overwrite)
        kind = "prompt" if image is None else "first frame and prompt"
        print(f"{path}  {time.perf_counter() - started:.1f} s, from {kind}: {prompt}", flush=True)
        clips.append(frames)
        labels.append(prompt if image is None else f"{prompt} (first frame given)")
    write_image(sheet, contact_sheet(clips, labels), overwrite=overwrite)
    print(sheet)
    return [*paths, sheet]


def run(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, load the model, make the clips."""
    parser = Parser(prog="demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out-dir", default="demo", metavar="DIR", help="where the clips go (%(default)s)")
    parser.add_argument("--model", metavar="DIR", help="a pipeline's folder; else the embedded model")
    parser.add_argument("--overwrite", action="store_true", help="replace the clips of an earlier run")
    arguments: argparse.Namespace = parser.parse_args(argv)
    started = time.perf_counter()
    pipeline = load_pipeline(arguments.model)
    print(f"The model is loaded in {time.perf_counter() - started:.1f} s", flush=True)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    make_clips(pipeline, Path(arguments.out_dir), overwrite=arguments.overwrite)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is 2 after a mistake, which is named in one line."""
    return report(lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
