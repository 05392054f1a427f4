"""Decoded frames to RGB as a BT.709 display of standard dynamic range shows it.

FFmpeg's scaler is used to bring samples to full resolution in 16 bits and nothing else: its own conversions to RGB are
off by up to 4 levels, wrap around for colours out of range, and leave gray of limited range as it is.

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
"""Weights of red and blue in luma by the number of the matrix (`MatrixCoefficients` of ITU-T H.273, table 4)."""

YCGCO, UNSPECIFIED, BY_PRIMARIES = 8, 2, 12
FULL_RANGE = 2  # AVCOL_RANGE_JPEG

RESAMPLE = int(Interpolation.BILINEAR) | 0x2000 | 0x4000 | 0x40000 | 0x80000
"""Bilinear with FFmpeg's SWS_FULL_CHR_H_INT, SWS_FULL_CHR_H_INP, SWS_ACCURATE_RND and SWS_BITEXACT."""

LIMITED_GRAY = frozenset({"h264", "hevc", "vvc", "av1", "libdav1d", "vp9", "mpeg1video", "mpeg2video", "mpeg4"})
"""Codecs whose gray is of limited range unless stated otherwise (ITU-T H.264, E.2.1, and the like); that of others,
which code pictures or raw samples, is of full range."""

BAND = 2**17
"""Pixels that are converted at once: few enough for a processor's cache."""


@dataclass(frozen=True, kw_only=True)
class Colour:
    """What the samples of a frame stand for, in the numbers of ITU-T H.273.

    Attributes:
        matrix: `MatrixCoefficients`; one of `LUMA` or YCgCo.
        is_full: Whether samples use all levels, rather than 16 to 235 (240 for chroma) of 256.
        transfer: `TransferCharacteristics`.
        primaries: `ColourPrimaries`.
    """

    matrix: int
    is_full: bool
    transfer: int
    primaries: int

    @property
    def is_plain(self) -> bool:
        """Whether R'G'B' needs no other conversion to be shown on a BT.709 display."""
        return self.transfer not in HDR_TRANSFERS and self.primaries not in WIDE_PRIMARIES


def colour_of(frame: Any, context: Any) -> Colour:
    """What a frame states of its colours, then what its stream states, then what is usual.

    The usual matrix of a file that states none is that of BT.2020 where the primaries or the transfer are, else BT.709
    from 720 lines or 1280 columns on, else BT.601; the usual range is the limited one.

    Raises:
        KinemaError: The samples are of a kind that is not known here (ICtCp, for instance).
    """
    transfer = _stated(getattr(frame, "color_trc", UNSPECIFIED), context.color_trc)
    primaries = _stated(getattr(frame, "color_primaries", UNSPECIFIED), context.color_primaries)
    matrix = _stated(frame.colorspace, context.colorspace)
    if matrix == BY_PRIMARIES:
        matrix = {1: 1, 4: 4, 5: 5, 6: 6, 7: 7, 9: 9}.get(primaries, UNSPECIFIED)
    if matrix in (0, 3, UNSPECIFIED):  # 0: RGB, which these samples are not, or which needs no matrix
        wide = primaries == 9 or transfer in HDR_TRANSFERS
        matrix = 9 if wide else 1 if frame.height >= 720 or frame.width >= 1280 else 6
    matrix = 9 if matrix == 10 else matrix  # BT.2020 with constant luminance: nearly the same, and hardly ever met
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
    """A decoded frame as RGB, on white where it is transparent.

    Args:
        frame: PyAV's, of any pixel format.
        context: The codec context of its stream, for what the frame itself does not state.

    Raises:
        KinemaError: The pixels are of a kind that cannot be converted.
    """
    name, components = frame.format.name, frame.format.components
    has_alpha = len(components) in (2, 4) or name == "pal8"
    if not frame.format.is_rgb and not name.startswith(("xyz", "bayer")):
        if len(components) >= 3:
            return _from_ycbcr(frame, colour_of(frame, context), has_alpha)
        if name.startswith("gray"):
            colour = colour_of(frame, context)
            (luma,) = _planes(_reformat(frame, "gray16le"))
            peak = (1 << min(components[0].bits, 16)) - 1  # levels of the file; 16 bits are repeats of its bits
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
    """RGB is of full range, whatever the file states: encoders state what holds for Y'CbCr."""
    transfer = _stated(getattr(frame, "color_trc", UNSPECIFIED), context.color_trc)
    primaries = _stated(getattr(frame, "color_primaries", UNSPECIFIED), context.color_primaries)
    return Colour(matrix=1, is_full=True, transfer=transfer, primaries=primaries)


def _from_ycbcr(frame: Any, colour: Colour, has_alpha: bool) -> UInt8[Tensor, "h w 3"]:
    bits = frame.format.components[0].bits
    if frame.format.name.startswith("yuvj"):  # these keep their range with 8 bits only
        planes, stored = _planes(_reformat(frame, "yuvj444p", full=True)), 8
    else:
        planes, stored = _planes(_reformat(frame, "yuva444p16le" if has_alpha else "yuv444p16le")), 16
    scale = 1 << (stored - bits)
    alpha = None
    if has_alpha:
        # The bits below those of the file are zeros or repeats, by FFmpeg's way of conversion.
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
    """R'G'B' of luma in [0, 1] and colour differences in [-0.5, 0.5] (ITU-T H.273, section 8.3)."""
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
    """Samples to what is seen on white, in 8 bits.

    Args:
        planes: Samples, `(h, w)` of integers.
        alpha: How opaque each pixel is, and the value of what is opaque.
        convert: From samples, as float, to R'G'B'.
        colour: What R'G'B' stands for.
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
        rgb = rgb.mul(255).add_(0.5).clamp_(0, 255)  # rounded where it becomes an integer
        for channel in range(3):
            shown[band, :, channel] = rgb[channel]
    return shown


def _reformat(frame: Any, wanted: str, *, full: bool = False) -> Any:
    """Other samples of the same colours: of full resolution, deeper, or in another order.

    The same range is stated on both sides, whatever it is, so that FFmpeg leaves levels as they are.
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
        raise KinemaError(f"pixels (of the kind {frame.format.name}) must be of one that can be converted") from error


def _planes(frame: Any) -> list[Tensor]:
    kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
    return [
        torch.from_numpy(np.frombuffer(plane, dtype=kind).reshape(plane.height, -1)[:, : plane.width])
        for plane in frame.planes
    ]
