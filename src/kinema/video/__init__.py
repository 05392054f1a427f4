"""Reading and writing of video files, and conversion between frame layouts.

Shapes: files and pictures are `t h w c` in uint8, models use `b c t h w` in [-1, 1].

Modules that need PyAV are imported on first use: layouts and training on synthetic clips work without it.
"""

from typing import TYPE_CHECKING

from kinema.images import opaque as opaque
from kinema.images import read_image as read_image
from kinema.images import write_image as write_image
from kinema.lazy import lazy_exports
from kinema.video.frames import contact_sheet as contact_sheet
from kinema.video.frames import to_float as to_float
from kinema.video.frames import to_uint8 as to_uint8

if TYPE_CHECKING:
    from kinema.video.reader import Video as Video
    from kinema.video.reader import VideoReader as VideoReader
    from kinema.video.reader import read_video as read_video
    from kinema.video.sound import Sound as Sound
    from kinema.video.writer import VIDEO_SUFFIXES as VIDEO_SUFFIXES
    from kinema.video.writer import VideoWriter as VideoWriter
    from kinema.video.writer import check_output_video as check_output_video
    from kinema.video.writer import write_video as write_video

_NEEDS_AV = {
    "Video": "reader",
    "VideoReader": "reader",
    "read_video": "reader",
    "Sound": "sound",
    "VIDEO_SUFFIXES": "writer",
    "VideoWriter": "writer",
    "check_output_video": "writer",
    "write_video": "writer",
}

__getattr__ = lazy_exports(__name__, {name: f"{__name__}.{module}" for name, module in _NEEDS_AV.items()})
