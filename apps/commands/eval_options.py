"""The options that several measures of `kinema eval` have, and their checks before the work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from kinema.errors import KinemaError
from kinema.files import check_input_file, check_other_file, check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import Reading

# Options that need not be given. The hint replaces "(default: None)": their help says what holds without them.
OptionalFile = Annotated[str | None, arg(metavar="FILE", help_behavior_hint="")]
OptionalFolder = Annotated[str | None, arg(metavar="DIR", help_behavior_hint="")]
OptionalName = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
OptionalInt = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
OptionalPixels = Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")]
OptionalRate = Annotated[float | None, arg(metavar="RATE", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where results go.

    Attributes:
        json: Write all figures to a file.
        html: Write a page with plots and clips, one file that needs no network.
        overwrite: Replace files that exist.
    """

    json: OptionalFile = None
    html: OptionalFile = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipReading:
    """How clips are read, and where networks run.

    Attributes:
        max_unreadable: Clips that cannot be read are skipped and named; more than this share of them is an error.
        value_range: What floats in .npy and .safetensors files mean, where the file does not say it: 0,1 (as
            output_type='np' gives) or -1,1.
        layout: Order of the axes in such files, where several fit: thwc, tchw or cthw.
        device: cpu, cuda, ...; else CUDA where there is one.
    """

    max_unreadable: Annotated[float, arg(metavar="SHARE")] = 0.05
    value_range: Annotated[str | None, arg(metavar="RANGE", help_behavior_hint="")] = None
    layout: Annotated[str | None, arg(metavar="AXES", help_behavior_hint="")] = None
    device: OptionalName = None


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """Which frames of a clip are measured, and at which size.

    Attributes:
        num_frames: Measure the first N frames of a clip; else all.
        stride: Take every Nth frame.
        resolution: Scale clips to this short side and crop the square in the middle; else as they are.
    """

    num_frames: OptionalInt = None
    stride: Annotated[int, arg(metavar="N")] = 1
    resolution: OptionalPixels = None

    as_dict = asdict


FITTING_MINIMA: Mapping[str, int] = {"num_frames": 1, "stride": 1, "resolution": 8}


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What every measure of clips has.

    Attributes:
        fps: Take the frames of video files at so many a second, by their times; else as they are stored.
    """

    fps: OptionalRate = None
    outputs: Outputs = Outputs()
    reading: ClipReading = ClipReading()


def check_outputs(options: MeasureOptions, inputs: Mapping[str, str | None], statistics: str | None = None) -> None:
    """Raises `KinemaError` when a result may not be written, or an option of reading is wrong; before the work.

    Args:
        options: Of the measure.
        inputs: Files and folders of clips that are read, by the names of their arguments.
        statistics: The file of `--save-statistics`.
    """
    given = {name: path for name, path in inputs.items() if path is not None}
    seen = dict(given)
    outputs = options.outputs
    for name, path in (("--save-statistics", statistics), ("--json", outputs.json), ("--html", outputs.html)):
        if path is not None:
            check_output_file(path, overwrite=outputs.overwrite, name=name)
            check_other_file(path, name, seen)
            _check_is_no_clip(path, name, given)
            seen[name] = path
    if not 0 <= options.reading.max_unreadable <= 1:
        raise KinemaError(f"`--max-unreadable` (={options.reading.max_unreadable:g}) must be in [0, 1]")
    if options.fps is not None and not 0.001 <= options.fps <= 1000:
        raise KinemaError(f"`--fps` (={options.fps:g}) must be >= 0.001 and <= 1000")
    if options.reading.value_range is not None or options.reading.layout is not None:
        reading_of(options)


def reading_of(options: MeasureOptions, **changes: Any) -> "Reading":
    """How clips are read.

    Args:
        options: Of the measure.
        **changes: Other settings of `Reading`.

    Raises:
        KinemaError: No such range of values or order of axes.
    """
    from kinema.eval.clips import Reading, check_layout, check_value_range

    settings = {
        "fps": options.fps,
        "value_range": check_value_range(options.reading.value_range, "--value-range"),
        "layout": check_layout(options.reading.layout, "--layout"),
    }
    return Reading(**settings | changes)


def _check_is_no_clip(path: str, name: str, inputs: Mapping[str, str]) -> None:
    """Raises `KinemaError` where a result would be, or replace, a clip of a folder that is measured."""
    for input_name, folder in inputs.items():
        if not Path(folder).is_dir() or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
            continue
        from kinema.eval.clips import CLIP_SUFFIXES

        if Path(path).suffix.lower() in CLIP_SUFFIXES:
            raise KinemaError(f"`{name}` (={path!r}) must not be in `{input_name}`, as it would be one of its clips")


def check_weights(weights: str | None) -> None:
    """Raises `KinemaError` unless `--weights` is a file, or not given."""
    if weights is not None:
        check_input_file(weights, "--weights")
