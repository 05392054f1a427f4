"""Conversion of decoded frames to RGB for a BT.709 display with standard dynamic range.

FFmpeg's scaler is used only to upsample chroma and convert samples to 16 bits: its conversions to RGB are off by up to
4 levels, wrap around for out-of-range colours, and ignore the range of limited-range gray.

Frames are `(3, h, w)` or `(h, w, 3)`; R'G'B' is nonlinear, in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from av.error import FFmpegError
from av.video.reformatter import Interpolation
from jaxtyping import Float, UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.video.hdr import HDR_TRANSFERS, WIDE_PRIMARIES, to_bt709

LUMA = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC, 47 CFR 73.682
    5: (0.299, 0.114),  # BT.601, 625 lines
    6: (0.299, 0.114),  # BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE ST 240
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
"""Weights of red and blue in luma by `MatrixCoefficients` (ITU-T H.273, table 4)."""

YCGCO, UNSPECIFIED, BY_PRIMARIES = 8, 2, 12
FULL_RANGE = 2  # AVCOL_RANGE_JPEG

RESAMPLE = int(Interpolation.BILINEAR) | 0x2000 | 0x4000 | 0x40000 | 0x80000
"""Bilinear with FFmpeg's SWS_FULL_CHR_H_INT, SWS_FULL_CHR_H_INP, SWS_ACCURATE_RND and SWS_BITEXACT."""

LIMITED_GRAY = frozenset({"h264", "hevc", "vvc", "av1", "libdav1d", "vp9", "mpeg1video", "mpeg2video", "mpeg4"})
"""Codecs with limited-range gray by default (ITU-T H.264, E.2.1, and similar); codecs of pictures and raw samples use
the full range."""

BAND = 2**17
"""Pixels converted at once, few enough for the CPU's cache."""


@dataclass(frozen=True, kw_only=True)
class Colour:
    """Colour encoding of a frame, with the code points of ITU-T H.273.

    Attributes:
        matrix: `MatrixCoefficients`; a key of `LUMA`, or YCgCo.
        is_full: Whether samples use the full range, rather than 16 to 235 (240 for chroma) of 256.
        transfer: `TransferCharacteristics`.
        primaries: `ColourPrimaries`.
    """

    matrix: int
    is_full: bool
    transfer: int
    primaries: int

    @property
    def is_plain(self) -> bool:
        """Whether R'G'B' can be shown on a BT.709 display without conversion."""
        return self.transfer not in HDR_TRANSFERS and self.primaries not in WIDE_PRIMARIES


def colour_of(frame: Any, context: Any) -> Colour:
    """Return the colour encoding specified by a frame, else by its stream, else the default.

    The default matrix is BT.2020 if the primaries or the transfer are, else BT.709 from 720 lines or 1280 columns, else
    BT.601. The default range is limited.

    Raises:
        KinemaError: The matrix is not supported (ICtCp, for example).
    """
    transfer = _stated(getattr(frame, "color_trc", UNSPECIFIED), context.color_trc)
    primaries = _stated(getattr(frame, "color_primaries", UNSPECIFIED), context.color_primaries)
    matrix = _stated(frame.colorspace, context.colorspace)
    if matrix == BY_PRIMARIES:
        matrix = {1: 1, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9}.get(primaries, UNSPECIFIED)
    if matrix in (0, 3, UNSPECIFIED):  # 0 is RGB, which does not apply here
        wide = primaries == 9 or transfer in HDR_TRANSFERS
        matrix = 9 if wide else 1 if frame.height >= 720 or frame.width >= 1280 else 6
    matrix = 9 if matrix == 10 else matrix  # BT.2020 with constant luminance: nearly equal, and very rare
    if matrix not in LUMA and matrix != YCGCO:
        raise KinemaError(f"colours (of matrix {matrix} in ITU-T H.273) must be RGB, Y'CbCr or YCgCo")
    return Colour(matrix=matrix, is_full=_is_full(frame, context), transfer=transfer, primaries=primaries)


def _stated(*values: int) -> int:
    return next((int(value) for value in values if value not in (None, 0, UNSPECIFIED)), UNSPECIFIED)


def _is_full(frame: Any, context: Any) -> bool:
    if frame.format.name.startswith("yuvj"):
        return True
    stated = int(frame.color_range or context.color_range or 0)
    if stated:
        return stated == FULL_RANGE
    return len(frame.format.components) == 1 and context.name not in LIMITED_GRAY


def to_rgb(frame: Any, context: Any) -> UInt8[Tensor, "h w 3"]:
    """Convert a decoded frame to RGB, blended with white where transparent.

    Args:
        frame: A PyAV frame of any pixel format.
        context: The codec context of its stream, for properties that the frame does not specify.

    Raises:
        KinemaError: The pixel format is not supported.
    """
    name, components = frame.format.name, frame.format.components
    has_alpha = len(components) in (2, 4) or name == "pal8"
    if not frame.format.is_rgb and not name.startswith(("xyz", "bayer")):
        if len(components) >= 3:
            return _from_ycbcr(frame, colour_of(frame, context), has_alpha)
        if name.startswith("gray"):
            colour = colour_of(frame, context)
            (luma,) = _planes(_reformat(frame, "gray16le"))
            peak = (1 << min(components[0].bits, 16)) - 1  # maximum level in the file; 16-bit samples repeat its bits
            low, high = (0, peak) if colour.is_full else (16 / 256 * (peak + 1), 235 / 256 * (peak + 1))
            return _show(
                [luma], None, lambda y: ((y[0] * (peak / 65535) - low) / (high - low)).expand(3, -1, -1), colour
            )
    colour = _colour_of_rgb(frame, context)
    deep = max(component.bits for component in components) > 8
    if not deep and not has_alpha and colour.is_plain:
        return torch.from_numpy(_reformat(frame, "rgb24").to_ndarray())
    *levels, alpha = torch.from_numpy(_reformat(frame, "rgba64le" if deep else "rgba").to_ndarray()).unbind(-1)
    peak = 65535 if deep else 255
    return _show(levels, (alpha, peak) if has_alpha else None, lambda rgb: torch.stack(rgb) / peak, colour)


def _colour_of_rgb(frame: Any, context: Any) -> Colour:
    """Return the colour encoding of RGB: always full range, because encoders state the range of Y'CbCr."""
    transfer = _stated(getattr(frame, "color_trc", UNSPECIFIED), context.color_trc)
    primaries = _stated(getattr(frame, "color_primaries", UNSPECIFIED), context.color_primaries)
    return Colour(matrix=1, is_full=True, transfer=transfer, primaries=primaries)


def _from_ycbcr(frame: Any, colour: Colour, has_alpha: bool) -> UInt8[Tensor, "h w 3"]:
    bits = frame.format.components[0].bits
    if frame.format.name.startswith("yuvj"):  # FFmpeg keeps their range only with 8 bits
        planes, stored = _planes(_reformat(frame, "yuvj444p", full=True)), 8
    else:
        planes, stored = _planes(_reformat(frame, "yuva444p16le" if has_alpha else "yuv444p16le")), 16
    scale = 1 << (stored - bits)
    alpha = None
    if has_alpha:
        # FFmpeg fills the lower bits with zeros or repeated bits.
        alpha = torch.from_numpy(planes.pop().numpy() >> (stored - bits)), (1 << bits) - 1
    if colour.is_full:
        black, luma, chroma = 0, scale * ((1 << bits) - 1), scale * ((1 << bits) - 1)
    else:
        black, luma, chroma = scale << bits >> 4, scale * 219 << (bits - 8), scale * 224 << (bits - 8)
    middle = scale << (bits - 1)

    def convert(ycbcr: list[Tensor]) -> Tensor:
        y = ycbcr[0].sub_(black).div_(luma)
        cb, cr = (plane.sub_(middle).div_(chroma) for plane in ycbcr[1:])
        return _ycbcr_to_rgb(y, cb, cr, colour.matrix)

    return _show(planes, alpha, convert, colour)


def _ycbcr_to_rgb(y: Tensor, cb: Tensor, cr: Tensor, matrix: int) -> Float[Tensor, "3 h w"]:
    """Convert luma in [0, 1] and colour differences in [-0.5, 0.5] to R'G'B' (ITU-T H.273, section 8.3)."""
    if matrix == YCGCO:  # equations 52 to 54; cb is Cg, cr is Co
        rest = y - cb
        return torch.stack([rest + cr, y + cb, rest - cr])
    red, blue = LUMA[matrix]
    green = 1 - red - blue
    rgb = torch.empty(3, *y.shape)
    torch.add(y, cr, alpha=2 * (1 - red), out=rgb[0])
    torch.add(y, cb, alpha=2 * (1 - blue), out=rgb[2])
    torch.add(y, cb, alpha=-2 * blue * (1 - blue) / green, out=rgb[1])
    rgb[1].add_(cr, alpha=-2 * red * (1 - red) / green)
    return rgb


def _show(
    planes: list[Tensor],
    alpha: tuple[Tensor, int] | None,
    convert: Callable[[list[Tensor]], Float[Tensor, "3 h w"]],
    colour: Colour,
) -> UInt8[Tensor, "h w 3"]:
    """Convert samples to 8-bit RGB, blended with white where transparent.

    Args:
        planes: Integer samples, `(h, w)` each.
        alpha: Alpha channel and its maximum value; None: opaque.
        convert: Function from float samples to R'G'B'.
        colour: Colour encoding of the R'G'B' values.
    """
    height, width = planes[0].shape
    shown = torch.empty(height, width, 3, dtype=torch.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        rgb = convert([plane[band].float() for plane in planes])
        if not colour.is_plain:
            rgb = to_bt709(rgb.clamp(0, 1), colour.transfer, colour.primaries)
        if alpha is not None:
            rgb = 1 - (1 - rgb.clamp(0, 1)) * (alpha[0][band].float() / alpha[1])
        rgb = rgb.mul(255).add_(0.5).clamp_(0, 255)  # + 0.5 rounds, because the assignment truncates
        for channel in range(3):
            shown[band, :, channel] = rgb[channel]
    return shown


def _reformat(frame: Any, wanted: str, *, full: bool = False) -> Any:
    """Convert a frame to another pixel format without changing colours.

    Source and target have the same range, so that FFmpeg keeps the levels.
    """
    span = FULL_RANGE if full else 1
    try:
        return frame.reformat(
            format=wanted,
            interpolation=RESAMPLE,
            src_colorspace=1,
            dst_colorspace=1,
            src_color_range=span,
            dst_color_range=span,
        )
    except (FFmpegError, ValueError) as error:
        raise KinemaError(f"pixel format (={frame.format.name}) must be one that can be converted") from error


def _planes(frame: Any) -> list[Tensor]:
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return [
        torch.from_numpy(np.frombuffer(plane, dtype=kind).reshape(plane.height, -1)[:, : plane.width])
        for plane in frame.planes
    ]
