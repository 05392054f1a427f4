"""Display geometry of frames: pixel aspect ratio and rotation."""

import logging
import os
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from kinema.errors import KinemaError
from kinema.video.colour import UNSPECIFIED, to_rgb
from kinema.video.limits import MAX_PIXELS

logger = logging.getLogger(__name__)

DOLBY_VISION = frozenset({"dvh1", "dvhe", "dav1"})
"""Codec tags of Dolby Vision (ETSI TS 103 572). Profile 5, which ordinary players cannot show, specifies no matrix."""

WIDEST = 10
"""Maximum pixel aspect ratio, or its inverse; larger ones are treated as errors. Real files reach 4."""


class Display:
    """Converts decoded frames of one stream to what a player shows.

    Args:
        stream: The PyAV stream.
        context: The codec context that decodes it.
        path: The file, for errors and warnings.
        name: Name of the argument in errors.
    """

    def __init__(self, stream: Any, context: Any, path: str | os.PathLike[str], name: str) -> None:
        self._stream, self._context = stream, context
        self._argument = f"`{name}` (={str(path)!r})"
        self._size: tuple[int, int] | None = None
        self._warned: set[str] = set()

    def __call__(self, frame: Any) -> UInt8[Tensor, "h w 3"]:
        """Convert a frame to RGB with square pixels, upright.

        Raises:
            KinemaError: The frame is too large, differs in size from earlier ones, or has an unsupported pixel format.
        """
        height, width = square_pixels(frame.height, frame.width, self._aspect())
        if max(frame.width * frame.height, width * height) > MAX_PIXELS:
            raise KinemaError(
                f"{self._argument} must have frames of at most {MAX_PIXELS:,} pixels, not {width}x{height}"
            )
        try:
            if self._stream.codec_context.codec_tag in DOLBY_VISION and frame.colorspace == UNSPECIFIED:
                raise KinemaError(
                    "colours (of Dolby Vision, profile 5) must be of a profile that ordinary players can show"
                )
            pixels = to_rgb(frame, self._context)
        except KinemaError as error:
            raise KinemaError(f"{self._argument}: {error}") from error
        if (height, width) != pixels.shape[:2]:
            resized = Image.fromarray(pixels.numpy()).resize((width, height), Image.Resampling.BICUBIC)
            pixels = torch.from_numpy(np.array(resized))
        pixels = self._upright(frame, pixels)
        size = (pixels.shape[0], pixels.shape[1])
        self._size = self._size or size
        if self._size != size:
            before, after = (f"{height}x{width}" for height, width in (self._size, size))
            raise KinemaError(f"{self._argument} must have frames of one size, not {before} and then {after}")
        return pixels

    def _aspect(self) -> Fraction:
        """Return the pixel aspect ratio (width / height); the container takes precedence over the codec."""
        for source in (self._stream, self._context):
            aspect = source.sample_aspect_ratio
            if aspect:
                if Fraction(1, WIDEST) <= aspect <= WIDEST:
                    return Fraction(aspect)
                self._warn(f"its pixel aspect ratio of {aspect} is implausible; pixels are treated as square")
        return Fraction(1)

    def _upright(self, frame: Any, pixels: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "h2 w2 3"]:
        try:
            matrix = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # PyAV fails on unknown side data
            return torch.rot90(pixels, round(frame.rotation / 90) % 4).contiguous()
        if matrix is None:
            return pixels
        turn = quarter_turns(np.frombuffer(bytes(matrix), dtype=np.int32))
        if turn is None:
            self._warn("its rotation is not a multiple of 90 degrees and is ignored")
            return pixels
        transpose, flips = turn
        pixels = pixels.transpose(0, 1) if transpose else pixels
        return pixels.flip(flips).contiguous()

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s: %s", self._argument, what)


def square_pixels(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """Return the height and width of a frame with square pixels; neither gets smaller.

    Args:
        height: Height of the frame.
        width: Width of the frame.
        aspect: Pixel aspect ratio (width / height).
    """
    if aspect >= 1:
        return height, round(width * aspect)
    return round(height / aspect), width


def quarter_turns(matrix: np.ndarray) -> tuple[bool, list[int]] | None:
    """Convert a display matrix to a transposition and flips.

    Args:
        matrix: FFmpeg's nine numbers a, b, u, c, d, v, x, y, w, which map the pixel (x, y) to (a x + c y, b x + d y)
            (ISO/IEC 14496-12, section 6.2.2); translation and scale are ignored.

    Returns:
        Whether to swap height and width, and the axes (0: height, 1: width) to flip afterwards; None if the matrix is
        not a combination of quarter turns and flips.
    """
    a, b, c, d = (float(matrix[index]) for index in (0, 1, 3, 4))
    largest = max(abs(a), abs(b), abs(c), abs(d))
    small = 0.01 * largest
    if largest == 0:
        return False, []  # an unset matrix
    if abs(b) <= small and abs(c) <= small and a and d:
        return False, [axis for axis, sign in ((0, d), (1, a)) if sign < 0]
    if abs(a) <= small and abs(d) <= small and b and c:
        return True, [axis for axis, sign in ((0, b), (1, c)) if sign < 0]
    return None
