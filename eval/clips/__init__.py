"""Clips on disk, as metrics take them: video files, folders of pictures, and tensors, one after the other.

Shapes: frames `t h w 3` in uint8. A clip's name is its path below the folder, without the suffix, so that the clips of
two folders pair whatever their kinds of files are.
"""

from kinema.eval.clips.listing import CLIP_SUFFIXES, IMAGE_SUFFIXES, TENSOR_SUFFIXES, ClipFile, list_clips, pair_clips
from kinema.eval.clips.rates import Rate, SideRates, describe_rates, first_fps, rate_notes, read_fps, read_rate
from kinema.eval.clips.reading import (
    WHOLE_BYTES,
    Frames,
    LongClip,
    Reading,
    WindowPicker,
    iterate_clip,
    open_clip,
    pick_windows,
    read_clip,
    read_fitted,
)
from kinema.eval.clips.sets import DEFAULT_MAX_UNREADABLE, ReadableClips, read_pairs
from kinema.eval.clips.tensors import (
    VALUE_RANGES,
    Layout,
    UndecidedClip,
    ValueRange,
    check_layout,
    check_value_range,
    write_clip,
)

__all__ = [
    "CLIP_SUFFIXES",
    "DEFAULT_MAX_UNREADABLE",
    "IMAGE_SUFFIXES",
    "TENSOR_SUFFIXES",
    "VALUE_RANGES",
    "WHOLE_BYTES",
    "ClipFile",
    "Frames",
    "Layout",
    "LongClip",
    "Rate",
    "ReadableClips",
    "Reading",
    "SideRates",
    "UndecidedClip",
    "ValueRange",
    "WindowPicker",
    "check_layout",
    "check_value_range",
    "describe_rates",
    "first_fps",
    "iterate_clip",
    "list_clips",
    "open_clip",
    "pair_clips",
    "pick_windows",
    "rate_notes",
    "read_clip",
    "read_fitted",
    "read_fps",
    "read_pairs",
    "read_rate",
    "write_clip",
]
