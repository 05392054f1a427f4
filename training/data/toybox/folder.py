"""Toybox clips as files: what a data set of videos with captions looks like on disk."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kinema.errors import KinemaError
from kinema.training.data.captions import read_table
from kinema.training.data.toybox.schema import FPS, Split
from kinema.training.data.toybox.world import Toybox

CAPTIONS, GROUND_TRUTH = "captions.jsonl", "ground_truth.jsonl"
_BATCH = 16


@contextmanager
def new_folder(out: Path | str, *, name: str, overwrite: bool) -> Iterator[Path]:
    """A folder to write in, whose files move to `out` when the `with` block ends without an error.

    Args:
        out: The folder to make; when it holds files, `overwrite` lets those of the same names be replaced.
        name: What to call the argument in an error.
        overwrite: Whether `out` may hold files already; those with other names stay.

    Raises:
        KinemaError: `out` is a file, cannot be made, or holds files and `overwrite` is not set.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise KinemaError(f"`{name}` (={str(out)!r}) must be a folder, and it is a file")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise KinemaError(f"`{name}` (={str(out)!r}) must be empty or not exist, unless `--overwrite` is given")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=".kinema-", dir=out.parent))
    except OSError as error:
        raise KinemaError(f"`{name}` (={str(out)!r}) must be where folders can be made: {error.strerror}") from error
    try:
        yield working
        out.mkdir(exist_ok=True)
        for file in sorted(working.iterdir()):
            file.replace(out / file.name)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def render_to_folder(
    out: Path | str,
    num_clips: int,
    *,
    sprites: Path | str | None = None,
    objects: Sequence[str] | None = None,
    split: Split = "train",
    seed: int = 0,
    first: int = 0,
    num_frames: int = 17,
    height: int = 64,
    width: int = 64,
    num_objects: tuple[int, int] = (1, 1),
    cameras: Sequence[str] = ("static",),
    fps: float = FPS,
    lossless: bool = False,
    overwrite: bool = False,
) -> Path:
    """Writes clips as `00000.mp4`, ..., their captions and their ground truth.

    `captions.jsonl` has lines `{"file", "caption"}`; `ground_truth.jsonl` has lines with the file, the caption, the
    clip's `spec` (`ClipSpec.to_dict`) and the fields of `ToyboxBatch.ground_truth`. Nothing appears when it fails.

    Args:
        out: The folder to make.
        num_clips: How many clips (>= 1).
        sprites: See `Toybox`; as are the arguments down to `cameras`.
        first: Number of the first clip in the world, and of the first file.
        fps: Frames a second.
        lossless: Whether the files keep every pixel.
        overwrite: Whether files of the same names may be replaced; clips of an earlier call go.

    Returns:
        The folder.

    Raises:
        KinemaError: An argument is outside what is allowed, or `out` holds files.
    """
    from kinema.video import to_uint8, write_video

    if num_clips < 1:
        raise KinemaError(f"`num_clips` (={num_clips}) must be at least 1")
    if first < 0:
        raise KinemaError(f"`first` (={first}) must be at least 0")
    if not 0.001 <= fps <= 1000:
        raise KinemaError(f"`fps` (={fps}) must be >= 0.001 and <= 1000")
    toybox = Toybox(
        sprites,
        objects=objects,
        num_frames=num_frames,
        height=height,
        width=width,
        seed=seed,
        split=split,
        num_objects=num_objects,
        cameras=cameras,
    )
    earlier = _written(Path(out))
    with (
        new_folder(out, name="out", overwrite=overwrite) as folder,
        (folder / CAPTIONS).open("w", encoding="utf-8") as captions,
        (folder / GROUND_TRUTH).open("w", encoding="utf-8") as truths,
    ):
        for start in range(first, first + num_clips, _BATCH):
            numbers = range(start, min(start + _BATCH, first + num_clips))
            batch = toybox.batch(numbers)
            for number, video, caption, spec, truth in zip(
                numbers, batch.video, batch.captions, batch.specs, batch.ground_truth, strict=True
            ):
                file = f"{number:05d}.mp4"
                write_video(folder / file, to_uint8(video), fps, lossless=lossless)
                record = {"file": file, "caption": caption}
                captions.write(json.dumps(record, ensure_ascii=False) + "\n")
                truths.write(json.dumps({**record, "spec": spec.to_dict(), **truth}, ensure_ascii=False) + "\n")
    for file in earlier - _written(Path(out)):  # else they would be clips without a caption
        (Path(out) / file).unlink(missing_ok=True)
    return Path(out)


def _written(folder: Path) -> set[str]:
    """The clips in a folder that `render_to_folder` wrote there."""
    try:
        names = {row.file for row in read_table(folder / CAPTIONS)}
    except KinemaError:  # none, or not ours
        return set()
    return {name for name in names if re.fullmatch(r"\d{5,}\.mp4", name)}
