"""The options that the measures of `kinema eval` share, and the checks of them before the work."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError
from kinema.files import check_input_file, check_other_file, check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import Reading

Options = Mapping[str, Mapping[str, Any]]

OPTIONS: Options = MappingProxyType(
    {
        "--tokenizer": {"metavar": "NAME", "help": "a tokenizer's folder, or as of `kinema reconstruct`"},
        "--prompts": {"metavar": "FILE", "help": "a text file (UTF-8) with a prompt a line"},
        "--model": {"metavar": "DIR", "help": "a pipeline's folder; else the embedded model"},
        "--clip": {"metavar": "MODEL", "help": "the CLIP of clip_score: a hub id or a folder"},
        "--seed": {"type": int, "default": 0, "metavar": "N", "help": "of the first clip; each next takes one more"},
        "--weights": {"metavar": "FILE"},
        "--metrics": {"metavar": "NAME"},
    }
)
"""Options that several measures have, by their flags; what differs is given to `add_options`."""

OUTPUT_OPTIONS: Options = MappingProxyType(
    {
        "--json": {"metavar": "FILE", "help": "write all figures to a file"},
        "--html": {"metavar": "FILE", "help": "write a page with plots and clips, one file that needs no network"},
        "--overwrite": {"action": "store_true", "help": "replace files that exist"},
    }
)
"""Where results go."""

READING_OPTIONS: Options = MappingProxyType(
    {
        "--max-unreadable": {
            "type": float,
            "default": 0.05,
            "metavar": "SHARE",
            "help": "clips that cannot be read are skipped and named; more than this share of them is an error"
            " (%(default)s)",
        },
        "--value-range": {
            "metavar": "RANGE",
            "help": "what floats in .npy and .safetensors files mean, where the file does not say it: 0,1 (as"
            " output_type='np' gives) or -1,1",
        },
        "--layout": {
            "metavar": "AXES",
            "help": "order of the axes in such files, where several fit: thwc, tchw or cthw",
        },
        "--device": {"metavar": "NAME", "help": "cpu, cuda, ...; else CUDA where there is one"},
    }
)
"""How clips are read, and where networks run."""

RATE_OPTIONS: Options = MappingProxyType(
    {
        "--fps": {
            "type": float,
            "metavar": "RATE",
            "help": "take the frames of video files at so many a second, by their times; else as they are stored",
        },
    }
)
"""At which rate clips are sampled."""

FITTING_OPTIONS: Options = MappingProxyType(
    {
        "--num-frames": {"type": int, "metavar": "N", "help": "measure the first N frames of a clip; else all"},
        "--stride": {"type": int, "default": 1, "metavar": "N", "help": "take every Nth frame (%(default)s)"},
        "--resolution": {
            "type": int,
            "metavar": "PIXELS",
            "help": "scale clips to this short side and cut out the square in the middle; else as they are",
        },
    }
)
"""Which frames of a clip are measured, and at which size."""

FITTING_LEAST: Mapping[str, int] = MappingProxyType({"num_frames": 1, "stride": 1, "resolution": 8})
"""What `FITTING_OPTIONS` may be at least."""

_OUTPUTS = ("save_statistics", "json", "html")  # those of the options that are files to write


def add_option(parser: argparse.ArgumentParser, flag: str, **changes: Any) -> None:
    """Declare an option of `OPTIONS`, with what this measure says otherwise."""
    parser.add_argument(flag, **{**OPTIONS[flag], **changes})


def add_options(parser: argparse.ArgumentParser, *tables: Options) -> None:
    """Declare all options of some tables."""
    for table in tables:
        for flag, settings in table.items():
            parser.add_argument(flag, **settings)


def check_outputs(arguments: argparse.Namespace, inputs: Mapping[str, str | None] | None = None) -> None:
    """Raise `KinemaError` when a result may not be written; before the work.

    Args:
        arguments: With `json`, `html` and `overwrite`.
        inputs: Files and folders of clips that are read, by what their arguments are called.
    """
    given = {name: path for name, path in (inputs or {}).items() if path is not None}
    seen = dict(given)
    for attribute in _OUTPUTS:
        path = getattr(arguments, attribute, None)
        if path is not None:
            name = f"--{attribute.replace('_', '-')}"
            check_output_file(path, overwrite=arguments.overwrite, name=name)
            check_other_file(path, name, seen)
            _check_is_no_clip(path, name, given)
            seen[name] = path
    if not 0 <= arguments.max_unreadable <= 1:
        raise KinemaError(f"`--max-unreadable` (={arguments.max_unreadable:g}) must be in [0, 1]")
    check_reading(arguments)


def check_reading(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake in how clips are to be read."""
    fps = getattr(arguments, "fps", None)
    if fps is not None and not 0.001 <= fps <= 1000:
        raise KinemaError(f"`--fps` (={fps:g}) must be >= 0.001 and <= 1000")
    if arguments.value_range is not None or arguments.layout is not None:
        from kinema.eval.clips import check_layout, check_value_range

        check_value_range(arguments.value_range, "--value-range")
        check_layout(arguments.layout, "--layout")


def reading_of(arguments: argparse.Namespace, **changes: Any) -> "Reading":
    """How clips are read.

    Args:
        arguments: With `READING_OPTIONS`, and `fps` or not.
        **changes: Other settings of `Reading`.
    """
    from kinema.eval.clips import Reading, check_layout, check_value_range

    settings = {
        "fps": getattr(arguments, "fps", None),
        "value_range": check_value_range(arguments.value_range, "--value-range"),
        "layout": check_layout(arguments.layout, "--layout"),
    }
    return Reading(**settings | changes)


def _check_is_no_clip(path: str, name: str, inputs: Mapping[str, str]) -> None:
    """Raise `KinemaError` where a result would be, or replace, a clip of a folder that is measured."""
    for input_name, folder in inputs.items():
        if not Path(folder).is_dir() or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
            continue
        from kinema.eval.clips import CLIP_SUFFIXES

        if Path(path).suffix.lower() in CLIP_SUFFIXES:
            raise KinemaError(f"`{name}` (={path!r}) must not be in `{input_name}`, as it would be one of its clips")


def check_weights(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` unless `--weights` is a file, or not given."""
    if arguments.weights is not None:
        check_input_file(arguments.weights, "--weights")


def check_at_least(arguments: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raise `KinemaError` where a number that was given is too small."""
    for name, value in least.items():
        given = getattr(arguments, name)
        if given is not None and given < value:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={given}) must be >= {value}")


def fitting_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """How clips are read, by what `FITTING_OPTIONS` say; also for JSON."""
    return {name: getattr(arguments, name) for name in FITTING_LEAST}
