"""Frames of a clip on disk: all of them or some, at a rate and a size that were asked for, in bounded memory.

Shapes: frames `t h w 3` in uint8.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips.listing import IMAGE_SUFFIXES, TENSOR_SUFFIXES, ClipFile, suffix_of
from kinema.eval.clips.tensors import Layout, ValueRange, open_tensor
from kinema.files import counting_order
from kinema.training.data.resize import cover_frame
from kinema.video import read_image

WHOLE_BYTES = 2**28
"""A clip with more pixels than this is not kept in memory: it is read again for each use."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How clips are read.

    Attributes:
        start: The first frame.
        num_frames: How many at most; None takes all.
        stride: From one frame to the next.
        fps: Take the frames of a video file at this rate, by their times, before `start`, `num_frames` and `stride`
            count them; None takes them as they are stored. Pictures and tensors have no times: they stay as they are.
        resolution: Scale frames (antialiased) so that the short side has so many pixels, and cut out the square in the
            middle; None leaves them as they are.
        value_range: Of floats in tensor files that do not say it.
        layout: Order of the axes in tensor files that do not say it.

    Raises:
        KinemaError: A number is too small.
    """

    start: int = 0
    num_frames: int | None = None
    stride: int = 1
    fps: float | None = None
    resolution: int | None = None
    value_range: ValueRange | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        least = {"start": 0, "num_frames": 1, "stride": 1, "resolution": 1}
        for name, value in least.items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise KinemaError(f"`{name}` (={given}) must be >= {value}")

    @property
    def wanted(self) -> slice:
        """Numbers of the frames that are taken."""
        stop = None if self.num_frames is None else self.start + (self.num_frames - 1) * self.stride + 1
        return slice(self.start, stop, self.stride)


def iterate_clip(clip: ClipFile, reading: Reading = Reading()) -> Iterator[UInt8[Tensor, "h w 3"]]:
    """The frames of a clip one after the other; only few of them are in memory.

    Args:
        clip: Which. A tensor file holds one clip, see `kinema.eval.clips.tensors`.
        reading: How.

    Raises:
        KinemaError: While iterating: the clip cannot be read, is damaged, has frames of several sizes or none at
            `start`, or it is a tensor file that is refused.
    """
    if clip.path.is_dir():
        frames = _pictures(clip.path, reading.wanted)
    elif clip.path.suffix.lower() in TENSOR_SUFFIXES:
        file = open_tensor(clip.path, value_range=reading.value_range, layout=reading.layout)
        frames = file.frames(reading.wanted)
    else:
        frames = _video(clip.path, reading)
    size = None
    for frame in frames:
        size = size or frame.shape
        if frame.shape != size:
            raise KinemaError(f"`clip` (={str(clip.path)!r}) must have frames of one size")
        yield frame if reading.resolution is None else cover_frame(frame, reading.resolution, reading.resolution)
    if size is None:
        raise KinemaError(f"`clip` (={str(clip.path)!r}) must have a frame at {reading.start}")


def _video(path: Path, reading: Reading) -> Iterator[UInt8[Tensor, "h w 3"]]:
    from kinema.video import VideoReader

    wanted = reading.wanted
    with VideoReader(path, name="clip") as reader:
        for index, frame in enumerate(reader if reading.fps is None else reader.at_rate(reading.fps)):
            if index >= wanted.start and (index - wanted.start) % wanted.step == 0:
                yield frame
            if wanted.stop is not None and index >= wanted.stop - 1:
                break


def _pictures(folder: Path, wanted: slice) -> Iterator[UInt8[Tensor, "h w 3"]]:
    files = [path for path in folder.iterdir() if suffix_of(path.name) in IMAGE_SUFFIXES and path.is_file()]
    for file in sorted(files, key=lambda path: counting_order(path.name))[wanted]:
        yield read_image(file, name="clip")


class LongClip:
    """A clip that is too long to be kept in memory: its file is read again for each use.

    It is used like a tensor of its shape, as far as clips are: `len`, `shape`, `split`, `[:n]`.

    Args:
        clip: Which.
        reading: How it is read.
        shape: `(t, h, w, 3)`.
    """

    dtype = torch.uint8

    def __init__(self, clip: ClipFile, reading: Reading, shape: Sequence[int]) -> None:
        self.clip = clip
        self.reading = reading
        self.shape = torch.Size(shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[UInt8[Tensor, "h w 3"]]:
        count = 0
        for frame in iterate_clip(self.clip, self.reading):
            count += 1
            yield frame
        if count != len(self):
            raise KinemaError(f"`clip` (={str(self.clip.path)!r}) must not change while it is read")

    def split(self, size: int) -> Iterator[UInt8[Tensor, "t h w 3"]]:
        """Pieces of `size` frames; the last one may be shorter."""
        piece: list[Tensor] = []
        for frame in self:
            piece.append(frame)
            if len(piece) == size:
                yield torch.stack(piece)
                piece = []
        if piece:
            yield torch.stack(piece)

    def __getitem__(self, part: slice) -> UInt8[Tensor, "t h w 3"]:
        """The first frames, `clip[:n]`."""
        assert part.start is part.step is None
        assert part.stop is not None
        return next(self.split(part.stop))


Frames = UInt8[Tensor, "_ _ _ 3"] | LongClip
"""A clip `t h w 3`, of its own length and size, in memory or not."""


def open_clip(clip: ClipFile, reading: Reading = Reading()) -> Frames:
    """A clip whose frames can all be read: in memory where it is small enough, else as a `LongClip`.

    Args:
        clip: Which.
        reading: How.

    Raises:
        KinemaError: As `iterate_clip`, of any frame.
    """
    kept: Tensor | None = None
    count, size = 0, (0, 0, 3)
    for frame in iterate_clip(clip, reading):
        if count == 0:
            # One piece of address space: what is not written takes no memory, and nothing need be joined at the end.
            size = frame.shape
            kept = torch.empty(max(1, WHOLE_BYTES // max(1, frame.numel())), *size, dtype=torch.uint8)
        if kept is not None and count < len(kept):
            kept[count] = frame
        else:
            kept = None
        count += 1
    if kept is None:
        return LongClip(clip, reading, (count, *size))
    return kept[:count] if 2 * count > len(kept) else kept[:count].clone()


def read_clip(
    clip: ClipFile,
    *,
    start: int = 0,
    num_frames: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    value_range: ValueRange | None = None,
    layout: Layout | None = None,
) -> UInt8[Tensor, "t h w 3"]:
    """The frames of a clip in memory; arguments as of `Reading`, errors as of `iterate_clip`."""
    reading = Reading(
        start=start, num_frames=num_frames, stride=stride, fps=fps, value_range=value_range, layout=layout
    )
    return torch.stack(list(iterate_clip(clip, reading)))


def read_fitted(
    clip: ClipFile, *, num_frames: int | None = None, stride: int = 1, resolution: int | None = None
) -> UInt8[Tensor, "t h w 3"]:
    """`read_clip`, scaled (antialiased) so that the short side is `resolution`, and cropped to the middle square."""
    return torch.stack(list(iterate_clip(clip, Reading(num_frames=num_frames, stride=stride, resolution=resolution))))


def pick_windows(frames: Frames, indices: Iterable[Int64[Tensor, " _"]]) -> Iterator[UInt8[Tensor, "_ h w 3"]]:
    """Windows of a clip, given by the numbers of their frames; a long clip is read once for all of them."""
    if isinstance(frames, Tensor):
        yield from (frames[index] for index in indices)
        return
    picker = WindowPicker(indices)
    for frame in frames:
        yield from picker.push(frame[None])
        if picker.is_done:
            return


class WindowPicker:
    """Picks windows out of a clip whose frames come piece by piece; a window is given with its last frame.

    Args:
        indices: Numbers of the frames of each window, ascending; a frame may come several times.
    """

    def __init__(self, indices: Iterable[Int64[Tensor, " _"]]) -> None:
        self._waiting = deque(sorted((index.tolist() for index in indices), key=lambda window: window[-1]))
        self._uses = Counter(number for window in self._waiting for number in set(window))
        self._kept: dict[int, Tensor] = {}
        self._position = 0

    @property
    def is_done(self) -> bool:
        """Whether all windows were given."""
        return not self._waiting

    def push(self, piece: UInt8[Tensor, "t h w 3"]) -> list[UInt8[Tensor, "_ h w 3"]]:
        """Takes the next frames; returns the windows that are now complete."""
        found = []
        for frame in piece:
            if self._position in self._uses:
                self._kept[self._position] = frame.clone()
            while self._waiting and self._waiting[0][-1] == self._position:
                window = self._waiting.popleft()
                found.append(torch.stack([self._kept[number] for number in window]))
                self._release(window)
            self._position += 1
        return found

    def _release(self, window: list[int]) -> None:
        for number in set(window):
            self._uses[number] -= 1
            if not self._uses[number]:
                del self._uses[number], self._kept[number]
