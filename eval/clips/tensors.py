"""Tensor files that hold a clip: the order of their axes, and the range that their floats are in.

A file of levels (uint8) says what it is. Floats may be in [-1, 1], as models see pixels, or in [0, 1], as
`output_type="np"` and `"pt"` of a pipeline give them. A `.safetensors` file can say which in its metadata, a `.npy`
file cannot. Floats of which some are negative are in [-1, 1]; others are refused until someone says what they are.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors import safe_open
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import check_input_file, check_output_file, write_safetensors
from kinema.loading import one_line
from kinema.video.limits import MAX_PIXELS

ValueRange = Literal["0,1", "-1,1"]
"""The range of floats that stand for black to white."""

Layout = Literal["t h w c", "t c h w", "c t h w"]
"""Order of the axes of a clip; c are three colours."""

VALUE_RANGES: tuple[ValueRange, ...] = ("0,1", "-1,1")
LAYOUTS: tuple[Layout, ...] = ("t h w c", "t c h w", "c t h w")

_PIECE_BYTES = 2**24
"""What is read of a file at once."""


class UndecidedClip(KinemaError):
    """A tensor file that can be read in two ways, and nobody said in which: no fault of the file."""


def check_value_range(text: str | None, name: str = "value_range") -> ValueRange | None:
    """The range that a text states, `0,1` or `-1,1`, also as `[0.0, 1.0]`.

    Raises:
        KinemaError: It states another one.
    """
    if text is None:
        return None
    try:
        found = tuple(float(end) for end in text.strip().strip("[]()").split(","))
    except ValueError:
        found = ()
    for stated in VALUE_RANGES:
        if found == tuple(map(float, stated.split(","))):
            return stated
    raise KinemaError(f"`{name}` (={text!r}) must be 0,1 or -1,1")


def check_layout(text: str | None, name: str = "layout") -> Layout | None:
    """The order of axes that a text states, as `t h w c` or `thwc`.

    Raises:
        KinemaError: It states another one.
    """
    if text is None:
        return None
    spaced = " ".join(text.lower().replace(" ", "").replace(",", "").replace("3", "c"))
    if spaced not in LAYOUTS:
        raise KinemaError(f"`{name}` (={text!r}) must be thwc, tchw or cthw")
    return cast("Layout", spaced)


@dataclass(frozen=True)
class TensorFile:
    """A tensor file of which it is known how it is read.

    Attributes:
        path: Which.
        shape: Frames, height and width.
        layout: Order of its axes.
        value_range: Of its floats; None: it has levels.
        num_batch_axes: Axes of length 1 before the others.
    """

    path: Path
    shape: tuple[int, int, int]
    layout: Layout
    value_range: ValueRange | None
    num_batch_axes: int

    def frames(self, wanted: slice) -> Iterator[UInt8[Tensor, "h w 3"]]:
        """Frames one after the other; no more of the file is in memory than a few of them."""
        numbers = range(self.shape[0])[wanted]
        at_once = _frames_at_once(self.shape)
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            piece = self._levels(slice(some.start, some[-1] + 1))[:: some.step]
            yield from piece

    def _levels(self, part: slice) -> UInt8[Tensor, "t h w 3"]:
        values = _read(self.path, self.layout, self.num_batch_axes, part)
        if self.value_range is None:
            return values.contiguous()
        values = values.float()
        # The steps of `kinema generate`, so that a clip and what it writes of it are equal to the bit.
        signed = values * 2 - 1 if self.value_range == "0,1" else values
        return ((signed + 1) * 127.5).round().to(torch.uint8).contiguous()


def open_tensor(path: Path, *, value_range: ValueRange | None = None, layout: Layout | None = None) -> TensorFile:
    """Finds out how a tensor file is read; its floats are all looked at, a few at a time.

    Args:
        path: A `.npy` file, or a `.safetensors` file with one tensor, or one named `frames`.
        value_range: Of floats, for a file that does not say it. In a `.safetensors` file the metadata `value_range`
            says it (`write_clip` sets it).
        layout: Order of the axes, for a file that does not say it; likewise `layout`. Without one it is the only one
            that fits the shape.

    Raises:
        KinemaError: The file is damaged, of another shape or kind of numbers, or has values outside its range. An
            `UndecidedClip` fits several layouts, or has floats that may be in either range.
    """
    check_input_file(path, "clip")
    shape, kind, metadata = _describe(path)
    num_batch_axes = max(0, len(shape) - 4)
    if any(length != 1 for length in shape[:num_batch_axes]):
        raise KinemaError(
            f"`clip` (={str(path)!r}, of shape {shape}) must be `t h w 3`, `t 3 h w` or `3 t h w`: save the clips of a"
            " batch in a file each"
        )
    order = _find_layout(path, shape[num_batch_axes:], check_layout(metadata.get("layout"), "layout") or layout)
    t, h, w = (shape[num_batch_axes + _axis(order, name)] for name in "thw")
    if h * w > MAX_PIXELS:
        raise KinemaError(f"`clip` (={str(path)!r}, of {h}x{w} pixels) must have at most {MAX_PIXELS:,} pixels a frame")
    if kind == "uint8":
        return TensorFile(path, (t, h, w), order, None, num_batch_axes)
    if not kind.startswith(("float", "bfloat")):
        raise KinemaError(f"`clip` (={str(path)!r}, of {kind}) must be of uint8, or of floats in [0, 1] or [-1, 1]")
    stated = check_value_range(metadata.get("value_range")) or value_range
    low, high = _extremes(path, order, num_batch_axes, (t, h, w))
    return TensorFile(path, (t, h, w), order, _find_range(path, stated, low, high), num_batch_axes)


def _axis(layout: Layout, name: str) -> int:
    return layout.replace(" ", "").index(name)


def _find_layout(path: Path, shape: tuple[int, ...], layout: Layout | None) -> Layout:
    """The order of axes that was stated, or the only one that has three colours and frames of a likely size."""
    fitting: list[Layout] = [order for order in LAYOUTS if len(shape) == 4 and shape[_axis(order, "c")] == 3]
    if not fitting or (layout is not None and layout not in fitting):
        wanted = "`t h w 3`, `t 3 h w` or `3 t h w`" if layout is None else f"`{layout.replace('c', '3')}`"
        raise KinemaError(f"`clip` (={str(path)!r}, of shape {shape}) must be {wanted}")
    # Three frames of usual size are no clip whose frames are three pixels wide.
    fitting = [order for order in fitting if 3 not in (shape[_axis(order, side)] for side in "hw")] or fitting
    if layout is None and len(fitting) > 1:
        names = " and ".join(f"`{order.replace('c', '3')}`" for order in fitting)
        flags = " or ".join(f"`--layout {order.replace(' ', '')}`" for order in fitting)
        raise UndecidedClip(f"`clip` (={str(path)!r}, of shape {shape}) fits {names}: say which by {flags}")
    return layout or fitting[0]


def _find_range(path: Path, stated: ValueRange | None, low: float, high: float) -> ValueRange:
    """The range that was stated, or the only one that the floats are in."""
    about = f"`clip` (={str(path)!r}, in [{low:g}, {high:g}])"
    if not (low >= -1 and high <= 1):  # written so that NaN fails, too
        levels = ": levels of 0 to 255 belong in a file of uint8" if low >= 0 and 2 < high <= 65535 else ""
        raise KinemaError(f"{about} must be floats in [-1, 1] or in [0, 1], or uint8{levels}")
    if stated == "0,1" and low < 0:
        raise KinemaError(f"{about} must be in [0, 1], as was stated")
    if stated is not None or low < 0:
        return stated or "-1,1"
    raise UndecidedClip(
        f"{about} has floats that may be in [0, 1], as `output_type='np'` gives them, or in [-1, 1]: say which by"
        " `--value-range 0,1` or `--value-range -1,1`"
    )


def _extremes(path: Path, layout: Layout, num_batch_axes: int, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Least and greatest value of a file, NaN where one is; 0 and 0 where there is none."""
    if 0 in shape:
        return 0.0, 0.0
    low, high = float("inf"), float("-inf")
    at_once = _frames_at_once(shape)
    for start in range(0, shape[0], at_once):
        piece = _read(path, layout, num_batch_axes, slice(start, start + at_once)).double()
        least, most = (float(value) for value in piece.aminmax())
        if math.isnan(least):
            return least, most
        low, high = min(low, least), max(high, most)
    return low, high


def _frames_at_once(shape: tuple[int, int, int]) -> int:
    return max(1, _PIECE_BYTES // max(1, 12 * shape[1] * shape[2]))


def _describe(path: Path) -> tuple[tuple[int, ...], str, dict[str, str]]:
    """Shape, kind of numbers (as torch calls it) and metadata of the tensor in a file."""
    with _reading(path):
        if path.suffix.lower() == ".npy":
            array = _map(path)
            return array.shape, array.dtype.name, {}
        with safe_open(path, framework="pt") as file:
            part = file.get_slice(_tensor_name(path, list(file.keys())))
            # A slice without a row has the kind, and reads nothing; a single number has no rows.
            kind = str(part[:0].dtype).removeprefix("torch.") if part.get_shape() else "a single number"
            return tuple(part.get_shape()), kind, dict(file.metadata() or {})


def _read(path: Path, layout: Layout, num_batch_axes: int, part: slice) -> Tensor:
    """Some frames, `t h w 3`, in the file's own kind of numbers.

    The file is mapped anew each time: pages that were read before no longer count as this process's memory.
    """
    index = (*([0] * num_batch_axes), *(part if name == "t" else slice(None) for name in layout.split()))
    with _reading(path):
        if path.suffix.lower() == ".npy":
            array = _map(path)[index]
            # torch has neither bytes in the other order nor floats of more than 64 bits.
            wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
            values = torch.from_numpy(np.array(array, np.float64 if wide else array.dtype.newbyteorder("=")))
        else:
            with safe_open(path, framework="pt") as file:
                values = file.get_slice(_tensor_name(path, list(file.keys())))[index]
        return values.permute([_axis(layout, name) for name in "thwc"])


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _tensor_name(path: Path, names: Sequence[str]) -> str:
    if len(names) != 1 and "frames" not in names:
        listed = ", ".join(names) or "none"
        raise KinemaError(f"`clip` (={str(path)!r}, with {listed}) must hold one tensor, or one named `frames`")
    return names[0] if len(names) == 1 else "frames"


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Within, whatever a library raises over a file says which file it is."""
    try:
        yield
    except KinemaError:
        raise
    except Exception as error:  # the readers raise all kinds at files that are damaged, or are something else
        raise KinemaError(
            f"`clip` (={str(path)!r}) must be a complete {path.suffix} file: {one_line(error)}"
        ) from error


def write_clip(
    path: str | os.PathLike[str],
    frames: Tensor | np.ndarray,
    *,
    value_range: ValueRange | None = None,
    layout: Layout = "t h w c",
    overwrite: bool = False,
) -> None:
    """Writes a clip as a `.safetensors` file that says how it is read: the layout and the range of its floats.

    Args:
        path: The file to make.
        frames: One clip, or a batch of one: uint8 0..255, or floats. What a pipeline gives with `output_type="np"` has
            the range `0,1` and the layout `t h w c`; with `"pt"` the range `0,1` and the layout `t c h w`.
        value_range: Of floats.
        layout: Order of the axes.
        overwrite: Replace an existing file.

    Raises:
        KinemaError: The suffix is another one, the file exists, the shape does not fit the layout, or floats have no
            range or are outside it.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise KinemaError(f"`path` (={str(path)!r}) must end in .safetensors")
    check_output_file(path, overwrite=overwrite, name="path")
    values = frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))
    shape = tuple(values.shape)
    if len(shape) == 5 and shape[0] == 1:
        values = values[0]
    if values.ndim != 4 or values.shape[_axis(layout, "c")] != 3:
        raise KinemaError(f"`frames` (of shape {shape}) must be one clip, `{layout.replace('c', '3')}`")
    metadata = {"layout": layout}
    if values.is_floating_point():
        if value_range is None:
            raise KinemaError("`value_range` (=None) must be 0,1 or -1,1 for floats")
        _check_floats(values, value_range)
        metadata["value_range"] = value_range
    elif values.dtype != torch.uint8:
        raise KinemaError(f"`frames` (of {values.dtype}) must be of uint8, or of floats")
    write_safetensors(path, {"frames": values.detach().cpu().contiguous()}, metadata)


def _check_floats(values: Tensor, value_range: ValueRange) -> None:
    if values.numel():
        low, high = (float(value) for value in values.double().aminmax())
        if not (low >= float(value_range.split(",")[0]) and high <= 1):
            raise KinemaError(f"`frames` (in [{low:g}, {high:g}]) must be in [{value_range}]")
