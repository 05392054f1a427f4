"""Frames of video files, decoded once to a folder, and when each of them is shown.

    NAME-<key>.npy    frames, uint8 (t, h, w, 3)
    NAME-<key>.json   their times

The key holds the file's size and time of change, so that a changed file is decoded again. A damaged cache is made anew.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_input_file
from kinema.loading import one_line
from kinema.training.data.rates import FrameTimes
from kinema.training.data.resize import cover_frame
from kinema.video.limits import LONGEST_STILL

DECODING = 2
"""Raised where decoding gives other pixels or times than before, so that what earlier versions kept is not used."""


class UnreadableFile(KinemaError):
    """A video file cannot be read; other errors are no fault of the file."""


@dataclass(frozen=True)
class CachedFrames:
    """The decoded frames of a file.

    Attributes:
        path: the `.npy` file.
        shape: ``(t, h, w)``.
        times: when they are shown.
    """

    path: Path
    shape: tuple[int, int, int]
    times: FrameTimes

    def frames(self) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames, mapped into memory, read only."""
        return np.load(self.path, mmap_mode="r")


def cached_frames(path: Path, cache_dir: Path, short_side: int, max_frames: int) -> CachedFrames:
    """The frames of a video file, decoded now if they are not there yet.

    Args:
        path: the video file.
        cache_dir: where frames are kept.
        short_side: frames are scaled down to this short side; smaller ones stay as they are.
        max_frames: frames decoded at most, which bounds the room on the disk.

    Raises:
        UnreadableFile: the file cannot be read.
        KinemaError: nothing can be written to `cache_dir`.
    """
    with unreadable_otherwise(path):
        check_input_file(path)
        status, place = path.stat(), os.path.realpath(path)
    key = f"{DECODING}/{place}/{status.st_size}/{status.st_mtime_ns}/{short_side}/{max_frames}"
    # Names may hold what other file systems refuse, or be as long as names can be.
    name = re.sub(r"[^A-Za-z0-9_.]", "_", path.stem)[:40]
    target = cache_dir / f"{name}-{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.npy"
    kept = _load(target)
    if kept is not None:
        return kept
    try:
        _decode(path, target, short_side, max_frames)
    except UnreadableFile:
        raise
    except (KinemaError, OSError) as error:
        raise KinemaError(
            f"`cache_dir` (={str(cache_dir)!r}) must be a folder with room for decoded frames: {one_line(error)}"
        ) from error
    kept = _load(target)
    if kept is None:
        raise KinemaError(f"`cache_dir` (={str(cache_dir)!r}) must keep what is written, and {target} is not whole")
    return kept


def _load(target: Path) -> CachedFrames | None:
    """What is kept; None where it is missing or damaged."""
    try:
        values = json.loads(target.with_suffix(".json").read_bytes())
        times = FrameTimes(**values | {"times": np.array(values["times"], dtype=np.float64)})
        array = open_memmap(target, mode="r")  # not `np.load`, which would also take archives
        t, *size = array.shape
        if array.dtype != np.uint8 or len(size) != 3 or size[2] != 3 or times.times.shape != (t,):
            return None
    except Exception:  # whatever a damaged file leads to
        return None
    return CachedFrames(target, (t, size[0], size[1]), times)


def _decode(path: Path, target: Path, short_side: int, max_frames: int) -> None:
    """Decodes a file; its two files in the cache appear whole.

    Raises:
        UnreadableFile: the file cannot be read.
        KinemaError, OSError: the cache cannot be written.
    """
    from kinema.video import VideoReader

    with ExitStack() as stack:
        about = stack.enter_context(atomic_path(target.with_suffix(".json")))
        out = stack.enter_context(stack.enter_context(atomic_path(target)).open("wb"))
        with unreadable_otherwise(path):
            reader = stack.enter_context(VideoReader(path))
            fps, timing = reader.fps, reader.timing
        times: list[float] = []
        shape: tuple[int, ...] | None = None
        is_cut, header = False, 0
        for seconds, frame in readable_frames(path, reader.timed()):
            if len(times) == max_frames:
                is_cut = True
                break
            with unreadable_otherwise(path):  # no memory for a frame of an absurd size
                small = cover_frame(frame, short_side, short_side, crop=False)
            if shape is None:
                shape = tuple(small.shape)
                header = _write_header(out, 0, shape)
            if small.shape != shape:
                raise UnreadableFile(f"`path` (={str(path)!r}) must have frames of one size")
            if times and seconds - times[-1] > LONGEST_STILL:
                raise UnreadableFile(
                    f"`path` (={str(path)!r}) must not show a frame for over an hour: its times are damaged"
                )
            # Frame by frame, so that a long video needs no memory.
            out.write(small.numpy().tobytes())
            times.append(seconds)
        if shape is None:
            raise UnreadableFile(f"`path` (={str(path)!r}) must have a decodable frame")
        # Written again now that the number of frames is known.
        out.seek(0)
        if _write_header(out, len(times), shape) != header:
            raise OSError("the header of an array has another length than expected")
        last = 1 / fps if is_cut else min(timing.last_duration, LONGEST_STILL)
        kept = {"fps": fps, "is_variable": timing.is_variable, "last_duration": last, "tick": timing.tick}
        about.write_text(json.dumps(kept | {"is_cut": is_cut, "times": times}))


def _write_header(out: BinaryIO, count: int, shape: tuple[int, ...]) -> int:
    """Writes the header of an array of frames, and returns its length in bytes, which does not depend on the count."""
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
    return out.tell()


@contextmanager
def unreadable_otherwise(path: Path) -> Iterator[None]:
    """Within, whatever goes wrong is `UnreadableFile`: one odd file must not end a training."""
    try:
        yield
    except KinemaError as error:
        raise UnreadableFile(str(error)) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UnreadableFile(f"`path` (={str(path)!r}) must be a video file that can be decoded ({reason})") from error


Item = tuple[float, UInt8[Tensor, "h w 3"]]


def readable_frames(path: Path, frames: Iterator[Item]) -> Iterator[Item]:
    """Frames, or `UnreadableFile`."""
    while True:
        with unreadable_otherwise(path):
            item = next(frames, None)
        if item is None:
            return
        yield item
