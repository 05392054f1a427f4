"""Safe opening of media files, and selection of the video stream."""

import io
import logging
import os
from contextlib import ExitStack
from typing import Any

import av
import av.logging
from av.error import FFmpegError
from av.stream import Disposition

from kinema.errors import KinemaError
from kinema.files import check_input_file
from kinema.video.limits import MAX_PIXELS

logger = logging.getLogger(__name__)


CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,flv,live_flv,asf,rm,ogg,nut,mxf,gxf,"
    "dv,mjpeg,mjpeg_2000,yuv4mpegpipe,h261,h263,vc1,vc1test,dirac,dnxhd,wtv,swf,gif,apng,"
    "png_pipe,jpeg_pipe,jpegls_pipe,j2k_pipe,webp_pipe,bmp_pipe,tiff_pipe,"
    "mp3,wav,w64,flac,aac,ac3,eac3,aiff,caf,amr,ape,au"
)
"""FFmpeg's names of the supported formats. Playlists (HLS, DASH, ffconcat, SDP, ...), which make FFmpeg open other
files or URLs, are excluded for safety. Audio formats are included for a clear error about the missing video stream."""

PICTURE_CODECS = frozenset({"mjpeg", "mjpegb", "png", "bmp", "tiff", "webp", "jpeg2000", "jpegls", "gif"})
"""Codecs of cover pictures."""


# Ignore metadata that is not UTF-8. PyAV 19 does this by default.
_TOLERANT: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def silence_ffmpeg() -> None:
    """Disable PyAV's handling of FFmpeg's log, in case another package (such as torchvision 0.22) has enabled it.

    With it, damaged files cause a deadlock: FFmpeg's threads wait for Python's global lock to log an error, while
    freeing the decoder holds that lock and waits for these threads.
    """
    if av.logging.get_level() is not None:
        av.logging.set_level(None)


class Media:
    """A media file opened as a PyAV container, whatever its name. No other file is read.

    The file is opened in Python, because FFmpeg interprets names such as `concat:a|b`, `http:...` or `frame%d.png`.

    Attributes:
        container: The PyAV container.

    Args:
        path: The file.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file is missing, empty, or not in a supported format.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        check_input_file(path, name)
        silence_ffmpeg()
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "rb", buffering=0))
                self.container: Any = av.open(
                    _Bytes(file),
                    options={
                        "format_whitelist": CONTAINERS,
                        "protocol_whitelist": "none",
                        "max_pixels": str(MAX_PIXELS),
                    },
                    io_open=_refuse,
                    **_TOLERANT,
                )
            except (FFmpegError, ValueError, OSError) as error:
                raise KinemaError(f"`{name}` (={str(path)!r}) must be a video file, complete and readable") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> "Media":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self._stack.close()


class _Bytes:
    """File object without a name, so that FFmpeg detects the format from the content."""

    name = ""

    def __init__(self, file: io.FileIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError(f"a video file may not open another one: {url!r}")


def best_video_stream(container: Any, path: str | os.PathLike[str], name: str) -> Any:
    """Return the video stream that players show: the default one, else the largest; covers only as a last resort.

    Raises:
        KinemaError: There is no video stream except attached covers, or none that can be decoded, or it is too large.
    """
    argument = f"`{name}` (={str(path)!r})"
    streams = container.streams.video
    if not streams:
        raise KinemaError(f"{argument} must have a video stream")
    streams = [stream for stream in streams if not _is_attached(stream)]
    if not streams:
        raise KinemaError(f"{argument} must have a video stream, and has only a cover picture")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise KinemaError(f"{argument} must be a complete video file in a format that can be decoded")
    if len(streams) > 1:
        stills = _stills(path, name, [s.index for s in streams if s.codec_context.name in PICTURE_CODECS])
        streams = [stream for stream in streams if stream.index not in stills] or streams
    stream = max(streams, key=_preference)
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
        raise KinemaError(f"{argument} must have frames of at most {MAX_PIXELS:,} pixels, not {size}")
    return stream


def _is_attached(stream: Any) -> bool:
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _preference(stream: Any) -> tuple[bool, bool, int, int]:
    impaired = stream.disposition & (Disposition.hearing_impaired | Disposition.visual_impaired)
    width, height = stream.codec_context.width or 0, stream.codec_context.height or 0
    return not impaired, bool(stream.disposition & Disposition.default), width * height, -stream.index


def _stills(path: str | os.PathLike[str], name: str, indices: list[int]) -> set[int]:
    """Return which streams have at most one packet: covers that are not marked as such."""
    counts = dict.fromkeys(indices, 0)
    if not counts:
        return set()
    with Media(path, name) as media:
        try:
            for packet in media.container.demux([media.container.streams[index] for index in counts]):
                counts[packet.stream.index] += packet.size > 0
                if min(counts.values()) > 1:
                    break
        except FFmpegError:
            pass  # damage is reported when frames are read
    return {index for index, count in counts.items() if count <= 1}


def decoder_of(stream: Any) -> Any:
    """Return the codec context that decodes a stream.

    This is FFmpeg's default, except for VP8 and VP9 with alpha, which only libvpx supports.
    """
    context = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    if name is not None and tags.get("alpha_mode") == "1":
        if name in av.codecs_available:
            context = av.CodecContext.create(name, "r")
        else:
            logger.warning("this build of PyAV has no %s: transparency is ignored", name)
    context.options = {"max_pixels": str(MAX_PIXELS)}
    context.thread_type = "AUTO"
    return context
