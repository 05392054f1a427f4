"""Copying of the sound track of a file to an output file."""

import errno
import io
import logging
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError

from kinema.video.source import Media

logger = logging.getLogger(__name__)

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
AAC_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")

FATAL = frozenset({errno.EIO, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EPIPE})
"""Errors caused by the output, not by the sound track."""

TRIED = 4
"""Packets written in the trial that tests whether a track can be copied."""


class Sound:
    """The sound track that players select, written packet by packet alongside the video of a `VideoWriter`.

    Packets are copied if the output container supports them, and encoded as AAC otherwise. Damaged or unsupported sound
    causes a warning, never an error.

    Args:
        path: A media file.
        origin: Time of the file's clock at the start of the output, in seconds.
        name: Name of the argument in warnings.
    """

    def __init__(self, path: str | os.PathLike[str], *, origin: float = 0.0, name: str = "path") -> None:
        self._argument = f"`{name}` (={str(path)!r})"
        self._path, self._name, self._origin = path, name, origin
        self._media: Media | None = Media(path, name)
        self._stream = self._media.container.streams.best("audio")
        self._packets: Iterator[Any] = iter(())
        self._output: Any = None
        self._encoder: Any = None
        self._waiting: Any = None
        self._last: int | None = None
        self._damaged = 0
        self.kind: str | None = None  # "copied" or "aac"; None until attached

    @property
    def exists(self) -> bool:
        """Whether the file has sound."""
        return self._stream is not None

    def __enter__(self) -> "Sound":
        return self

    def __exit__(self, *_: object) -> None:
        if self._media is not None:
            self._media.close()
            self._media = None

    def attach(self, container: Any, suffix: str) -> None:
        """Add the track to an output container before its first packet is written. Does nothing without sound."""
        if self._stream is None or self._media is None:
            return
        context = self._stream.codec_context
        if self._fits(suffix):
            self._output = container.add_stream_from_template(self._stream)
            self.kind = "copied"
        elif context is not None and context.sample_rate and context.layout.nb_channels:
            rate = context.sample_rate if context.sample_rate in AAC_RATES else 48000
            self._output = container.add_stream("aac", rate=rate)
            self._output.layout = context.layout.name if context.layout.name in AAC_LAYOUTS else "stereo"
            self._encoder = self._output.codec_context
            self.kind = "aac"
        else:
            logger.warning("%s: its sound cannot be decoded; the output has no sound", self._argument)
            return
        self._packets = self._media.container.demux(self._stream)
        self._waiting = self._next()

    def _fits(self, suffix: str) -> bool:
        """Whether a container supports the track without encoding, tested with its first packets in memory."""
        with Media(self._path, self._name) as media:
            stream = media.container.streams[self._stream.index]
            try:
                with av.open(io.BytesIO(), "w", format=FORMATS[suffix.lower()]) as trial:
                    output = trial.add_stream_from_template(stream)
                    trial.start_encoding()
                    for _, packet in zip(range(TRIED), _timed(media.container.demux(stream)), strict=False):
                        packet.stream = output
                        trial.mux(packet)
                return True
            except (FFmpegError, ValueError, RuntimeError):
                return False

    def write_until(self, time: float, container: Any) -> None:
        """Write the packets before a time, in seconds since the start of the output."""
        while self._waiting is not None and float(self._waiting.dts * self._waiting.time_base) - self._origin < time:
            packet, self._waiting = self._waiting, self._next()
            try:
                self._write(packet, container)
            except FFmpegError as error:
                if error.errno in FATAL:
                    raise
                self._give_up(error)

    def finish(self, container: Any) -> None:
        """Write the remaining packets, and warn of damage."""
        self.write_until(float("inf"), container)
        if self._encoder is not None:
            self._mux(self._encoder.encode(None), container)
        if self._damaged:
            logger.warning("%s: %d packets of its sound are damaged; they are kept", self._argument, self._damaged)

    def _next(self) -> Any:
        try:
            return next(_timed(self._packets), None)
        except FFmpegError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: FFmpegError) -> None:
        logger.warning("%s: its sound ends early: %s", self._argument, error.strerror)
        self._waiting, self._packets, self._damaged = None, iter(()), 0

    def _write(self, packet: Any, container: Any) -> None:
        frames = self._decode(packet)
        if self._encoder is None:
            # Most containers reject times that do not increase.
            if self._last is None or packet.dts > self._last:
                self._last = packet.dts
                shift = round(Fraction(self._origin) / packet.time_base)
                packet.dts -= shift
                packet.pts = packet.dts if packet.pts is None else packet.pts - shift
                self._mux([packet], container)
            return
        for frame in frames:
            if frame.pts is not None:
                frame.pts -= round(Fraction(self._origin) / frame.time_base)
            self._mux(self._encoder.encode(frame), container)

    def _decode(self, packet: Any) -> list[Any]:
        """Decode a packet, to encode it again or to detect damage."""
        if self._stream.codec_context is None:
            return []
        try:
            self._damaged += packet.is_corrupt
            return self._stream.codec_context.decode(packet)
        except FFmpegError:
            self._damaged += 1
            return []

    def _mux(self, packets: list[Any], container: Any) -> None:
        for packet in packets:
            packet.stream = self._output
            container.mux(packet)


def _timed(packets: Iterator[Any]) -> Iterator[Any]:
    """Yield the packets that have content and a time."""
    for packet in packets:
        if packet.size and (packet.dts is not None or packet.pts is not None):
            if packet.dts is None:
                packet.dts = packet.pts
            yield packet
