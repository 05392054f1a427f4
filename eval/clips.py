"""Clips on disk, as metrics take them: video files, folders of pictures, and tensors, one after the other.

Shapes: frames `t h w 3` in uint8. A clip's name is its path below the folder, without the suffix, so that the clips of
two folders pair whatever their kinds of files are.
"""

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.files import check_input_file
from kinema.training.data.clips import VIDEO_SUFFIXES, cover_frame
from kinema.video import VideoReader, read_image

logger = logging.getLogger(__name__)

TENSOR_SUFFIXES = (".npy", ".safetensors")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
CLIP_SUFFIXES = (*VIDEO_SUFFIXES, *TENSOR_SUFFIXES, *IMAGE_SUFFIXES)

DEFAULT_MAX_UNREADABLE = 0.05
"""Share of clips that may be unreadable before a measurement is refused: it would be of another set than was given."""

_NAMED = 3  # names in an error before "and so many more"


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk.

    Attributes:
        name: Its path below the folder that was listed, with slashes and without a suffix.
        path: A video or tensor file, or a folder of pictures.
    """

    name: str
    path: Path


def list_clips(folder: str | os.PathLike[str], *, argument: str = "folder") -> list[ClipFile]:
    """The clips in a folder and below, sorted by name.

    A clip is a video file, a tensor file (`.npy`, `.safetensors`), or a folder that holds pictures and no such file nor
    folder: pictures beside clips (contact sheets, previews) are none. Names that begin with a dot are skipped.

    Args:
        folder: Where to look.
        argument: What errors call it.

    Raises:
        KinemaError: There is no such folder, no clip in it, or two of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise KinemaError(f"`{argument}` (={str(folder)!r}) must be a folder of clips, and there is none")
    clips: list[ClipFile] = []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place)
        found = [here / name for name in files if _suffix(name) in (*VIDEO_SUFFIXES, *TENSOR_SUFFIXES)]
        clips += [ClipFile(path.relative_to(root).with_suffix("").as_posix(), path) for path in found]
        if not found and not folders and any(_suffix(name) in IMAGE_SUFFIXES for name in files):
            name = root.resolve().name if here == root else here.relative_to(root).as_posix()
            clips.append(ClipFile(name, here))
    if not clips:
        kinds = ", ".join((*VIDEO_SUFFIXES, *TENSOR_SUFFIXES))
        raise KinemaError(f"`{argument}` (={str(folder)!r}) must have a clip: {kinds}, or a folder of pictures")
    clips.sort(key=lambda clip: (clip.name, str(clip.path)))
    for one, other in itertools.pairwise(clips):
        if one.name == other.name:
            files = f"{one.path.name} and {other.path.name}"
            raise KinemaError(f"`{argument}` (={str(folder)!r}) must have one clip of each name, and has {files}")
    return clips


def _suffix(name: str) -> str:
    """The suffix of a file that counts, in lower case."""
    return "" if name.startswith(".") else Path(name).suffix.lower()


def pair_clips(
    left: Sequence[ClipFile], right: Sequence[ClipFile], names: tuple[str, str] = ("reference", "clips")
) -> list[tuple[ClipFile, ClipFile]]:
    """Clips of two folders by name, sorted.

    Args:
        left: Clips of the one.
        right: Clips of the other.
        names: What errors call the two.

    Raises:
        KinemaError: A clip has no partner; the message names the first of them.
    """
    by_name = [{clip.name: clip for clip in clips} for clips in (left, right)]
    for this, other, side in ((0, 1, names[1]), (1, 0, names[0])):
        alone = sorted(by_name[this].keys() - by_name[other].keys())
        if alone:
            raise KinemaError(
                f"`{side}` must have a clip for each of `{names[this]}`, and has none named {_few(alone)}"
            )
    return [(by_name[0][name], by_name[1][name]) for name in sorted(by_name[0])]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def read_clip(
    clip: ClipFile, *, start: int = 0, num_frames: int | None = None, stride: int = 1
) -> UInt8[Tensor, "t h w 3"]:
    """The frames of a clip, or every `stride`-th of them from `start` on.

    Args:
        clip: Which. A tensor file holds one clip: uint8 0..255, or float in [-1, 1]; `t h w 3`, else `t 3 h w`, else
            `3 t h w`, whichever fits first. A `.safetensors` file holds one tensor, or one named `frames`.
        start: The first frame.
        num_frames: How many at most; None takes all.
        stride: From one frame to the next.

    Raises:
        KinemaError: The clip cannot be read, is damaged, has frames of several sizes or none at `start`, or it is a
            tensor of another shape or with values out of range.
    """
    for name, value, least in (("start", start, 0), ("num_frames", num_frames, 1), ("stride", stride, 1)):
        if value is not None and value < least:
            raise KinemaError(f"`{name}` (={value}) must be >= {least}")
    stop = None if num_frames is None else start + (num_frames - 1) * stride + 1
    wanted = slice(start, stop, stride)
    if clip.path.is_dir():
        frames = _read_pictures(clip.path, wanted)
    elif clip.path.suffix.lower() in TENSOR_SUFFIXES:
        frames = _read_tensor(clip.path)[wanted]
    else:
        frames = _read_video(clip.path, wanted)
    if not len(frames):
        raise KinemaError(f"`clip` (={str(clip.path)!r}) must have a frame at {start}")
    return frames


def read_fitted(
    clip: ClipFile, *, num_frames: int | None = None, stride: int = 1, resolution: int | None = None
) -> UInt8[Tensor, "t h w 3"]:
    """`read_clip`, scaled (antialiased) so that the short side is `resolution`, and cropped to the middle square."""
    frames = read_clip(clip, num_frames=num_frames, stride=stride)
    if resolution is None:
        return frames
    return torch.stack([cover_frame(frame, resolution, resolution) for frame in frames])


def _stack(frames: list[Tensor], path: Path) -> UInt8[Tensor, "t h w 3"]:
    if any(frame.shape != frames[0].shape for frame in frames):
        raise KinemaError(f"`clip` (={str(path)!r}) must have frames of one size")
    return torch.stack(frames) if frames else torch.empty(0, 1, 1, 3, dtype=torch.uint8)


def _read_video(path: Path, wanted: slice) -> UInt8[Tensor, "t h w 3"]:
    frames: list[Tensor] = []
    with VideoReader(path, name="clip") as reader:
        for index, frame in enumerate(reader):
            if index >= wanted.start and (index - wanted.start) % wanted.step == 0:
                frames.append(frame)
            if wanted.stop is not None and index >= wanted.stop - 1:
                break
    return _stack(frames, path)


def _read_pictures(folder: Path, wanted: slice) -> UInt8[Tensor, "t h w 3"]:
    files = sorted((p for p in folder.iterdir() if _suffix(p.name) in IMAGE_SUFFIXES), key=_in_counting_order)
    return _stack([read_image(file, name="clip") for file in files[wanted]], folder)


def _in_counting_order(path: Path) -> list[tuple[int, str]]:
    """Frame 2 comes before frame 10, whether numbers are padded or not."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", path.name)]


def _read_tensor(path: Path) -> UInt8[Tensor, "t h w 3"]:
    check_input_file(path, "clip")
    values = _load_tensor(path)
    for axes in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0)):
        if values.ndim == 4 and values.shape[axes[3]] == 3:
            return _to_levels(values.permute(axes), path)
    shape = tuple(values.shape)
    raise KinemaError(f"`clip` (={str(path)!r}, of shape {shape}) must be `t h w 3`, `t 3 h w` or `3 t h w`")


def _load_tensor(path: Path) -> Tensor:
    try:
        if path.suffix.lower() == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) != 1 and "frames" not in names:
                listed = ", ".join(names) or "none"
                raise KinemaError(f"`clip` (={str(path)!r}, with {listed}) must hold one tensor, or one named `frames`")
            return file.get_tensor(names[0] if len(names) == 1 else "frames")
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise KinemaError(f"`clip` (={str(path)!r}) must be a complete {path.suffix} file: {error}") from error


def _to_levels(frames: Tensor, path: Path) -> UInt8[Tensor, "t h w 3"]:
    if frames.dtype == torch.uint8:
        return frames.contiguous()
    if not frames.is_floating_point():
        raise KinemaError(f"`clip` (={str(path)!r}, of {frames.dtype}) must be of uint8, or of floats in [-1, 1]")
    if not frames.numel():
        return frames.to(torch.uint8)
    low, high = (float(value) for value in frames.double().aminmax())
    if not (low >= -1 and high <= 1):  # written so that NaN fails, too
        raise KinemaError(f"`clip` (={str(path)!r}, in [{low:g}, {high:g}]) must be floats in [-1, 1], or uint8")
    return ((frames.float() + 1) * 127.5).round().to(torch.uint8).contiguous()


@dataclass
class ReadableClips:
    """Reads clips one after the other, as `(name, frames)`; those that cannot be read are skipped, counted and named.

    With several processes each reads every `world_size`-th clip, and at the end all know what could not be read.

    Args:
        clips: Which.
        max_unreadable: Share of all clips that may be unreadable.
        rank: This process's number.
        world_size: How many processes there are.
        read: What reads one clip.
        argument: What errors call the set.
        progress: What a progress bar on a terminal calls the clips; None: there is none.

    Attributes:
        unreadable: Why each clip was skipped, by name; complete after the iteration.
    """

    clips: Sequence[ClipFile]
    max_unreadable: float = DEFAULT_MAX_UNREADABLE
    rank: int = 0
    world_size: int = 1
    read: Callable[[ClipFile], UInt8[Tensor, "t h w 3"]] = read_clip
    argument: str = "clips"
    progress: str | None = None
    unreadable: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable <= 1:
            raise KinemaError(f"`max_unreadable` (={self.max_unreadable}) must be in [0, 1]")
        assert 0 <= self.rank < self.world_size

    def __len__(self) -> int:
        """Clips of this process, readable or not."""
        return len(self.share)

    @property
    def share(self) -> Sequence[ClipFile]:
        """The clips that this process reads."""
        return self.clips[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[str, UInt8[Tensor, "t h w 3"]]]:
        self.unreadable = {}
        for clip in _with_bar(self.share, self.progress):
            frames = self.try_read(clip)
            if frames is not None:
                yield clip.name, frames
        self.finish()

    def try_read(self, clip: ClipFile) -> UInt8[Tensor, "t h w 3"] | None:
        """The frames of a clip; None, and an entry in `unreadable`, where it cannot be read.

        Raises:
            KinemaError: So many clips are unreadable by now that the set is refused.
        """
        try:
            return self.read(clip)
        except (KinemaError, OSError) as error:
            self.unreadable[clip.name] = " ".join(str(error).split())
            logger.warning("skipped: %s", self.unreadable[clip.name])
            # One process that fails ends the others, too: there is no need to wait until the end to know of it.
            self._check()
            return None

    def adopt(self, unreadable: Mapping[str, str]) -> None:
        """Takes over what could not be read when the same clips were measured before.

        Raises:
            KinemaError: As `try_read`.
        """
        self.unreadable = dict(unreadable)
        self._check()

    def finish(self) -> None:
        """Tells all processes what none of them could read.

        Raises:
            KinemaError: As `try_read`, of the clips of all processes.
        """
        if self.world_size > 1:
            found: list[dict[str, str]] = [{}] * self.world_size
            torch.distributed.all_gather_object(found, self.unreadable)
            self.unreadable = dict(sorted(item for part in found for item in part.items()))
        self._check()

    def _check(self) -> None:
        count, total = len(self.unreadable), len(self.clips)
        if count > self.max_unreadable * total:
            raise KinemaError(
                f"`{self.argument}` ({count} of {total} clips unreadable) must be at least"
                f" {1 - self.max_unreadable:.0%} readable (`--max-unreadable`): {next(iter(self.unreadable.values()))}"
            )


Item = TypeVar("Item")


def _with_bar(items: Sequence[Item], name: str | None) -> Iterable[Item]:
    """With a progress bar on a terminal, where it has a name."""
    return items if name is None else tqdm(items, desc=name, unit="clip", disable=None, leave=False)


def read_pairs(
    pairs: Sequence[tuple[ClipFile, ClipFile]], left: ReadableClips, right: ReadableClips
) -> Iterator[tuple[str, UInt8[Tensor, "t h w 3"], UInt8[Tensor, "t h w 3"]]]:
    """Name and both clips of each pair of which both can be read.

    Args:
        pairs: From `pair_clips`; each process reads its share of them.
        left: Reads the first of each, and counts what it cannot read.
        right: The same for the second.

    Raises:
        KinemaError: Too many are unreadable.
    """
    for one, other in _with_bar(pairs[left.rank :: left.world_size], left.progress):
        frames = left.try_read(one), right.try_read(other)
        if frames[0] is not None and frames[1] is not None:
            yield one.name, frames[0], frames[1]
    left.finish()
    right.finish()


def read_fps(clip: ClipFile, default: float = 24.0) -> float:
    """Frames a second that a clip is meant to be shown at; pictures and tensors do not say, and get `default`."""
    if clip.path.is_dir() or clip.path.suffix.lower() in TENSOR_SUFFIXES:
        return default
    with VideoReader(clip.path, name="clip") as reader:
        return reader.fps


def first_fps(clips: Iterable[ClipFile], default: float = 24.0) -> float:
    """`read_fps` of the first clip that can be read; `default` where none can."""
    for clip in clips:
        try:
            return read_fps(clip, default)
        except (KinemaError, OSError):
            continue
    return default
