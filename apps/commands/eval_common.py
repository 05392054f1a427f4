"""What the measures of `kinema eval` share: options, checks before the work, several processes, results."""

import argparse
import atexit
import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_input_file, check_other_file, check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import ClipFile, ReadableClips
    from kinema.eval.fvd import FrechetVideoDistance, FVDResult, LenientDistance
    from kinema.eval.report import Section

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
        "--device": {"metavar": "NAME", "help": "cpu, cuda, ...; else CUDA where there is one"},
    }
)
"""How clips are read, and where networks run."""

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


@dataclass(frozen=True)
class Processes:
    """The processes that `accelerate launch` or `torchrun` started for one measurement.

    Attributes:
        rank: This one's number.
        world_size: How many there are.
        device: Where this one computes.
    """

    rank: int
    world_size: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this one says and writes the results."""
        return self.rank == 0

    def clips(self, clips: "list[ClipFile]", arguments: argparse.Namespace, argument: str) -> "ReadableClips":
        """This process's share of some clips."""
        from kinema.eval.clips import ReadableClips

        return ReadableClips(
            clips,
            max_unreadable=arguments.max_unreadable,
            rank=self.rank,
            world_size=self.world_size,
            argument=argument,
        )

    def fitted_clips(self, clips: "list[ClipFile]", arguments: argparse.Namespace, argument: str) -> "ReadableClips":
        """The same, cut and scaled as `FITTING_OPTIONS` say."""
        from kinema.eval.clips import read_fitted

        share = self.clips(clips, arguments, argument)
        share.read = partial(read_fitted, **fitting_of(arguments))
        share.progress = f"{argument.removeprefix('--')} clips" if self.is_main else None
        return share


def fitting_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """How clips are read, by what `FITTING_OPTIONS` say; also for JSON."""
    return {name: getattr(arguments, name) for name in FITTING_LEAST}


@contextlib.contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Joins the other processes, where there are any, until the program ends.

    Args:
        device: What the user asked for.

    Raises:
        KinemaError: No such device.
    """
    from kinema.apps.loading import pick_device

    name = pick_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes(0, 1, name)
        return

    from accelerate import PartialState

    state = PartialState(cpu=name == "cpu")
    # Networks are fetched by one process; the others find them in the cache.
    own = name if name == "cpu" or ":" in name else str(state.device)
    yield Processes(state.process_index, state.num_processes, own)
    # Not after an error: the others may never come to that point, and there is nothing to wait for.
    atexit.register(_leave)


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def fetch_in_turn(state: Processes, *networks: str) -> None:
    """Has the main process get weights that are missing, so that processes do not fetch the same file at once."""
    if state.world_size < 2:
        return
    import torch

    from kinema.eval.weights import fetch_weights

    failure: list[Any] = [None]
    if state.is_main:
        try:
            for network in networks:
                fetch_weights(network)
        except KinemaError as error:
            failure = [str(error)]
    torch.distributed.broadcast_object_list(failure)
    if failure[0] is not None:
        raise KinemaError(failure[0])


def make_distance(
    protocol: str, arguments: argparse.Namespace, state: Processes, *, lenient: bool
) -> "FrechetVideoDistance | LenientDistance":
    """The distance of FVD that counts clips beside other measures.

    Args:
        protocol: Its name.
        arguments: With `weights` and `num_frames`.
        state: Where the network runs.
        lenient: A clip that is too short ends the distance alone.

    Raises:
        KinemaError: No such protocol, or, unless lenient, one that needs more frames than clips will have.
    """
    from kinema.eval.fvd import FrechetVideoDistance, LenientDistance, find_protocol

    least = find_protocol(protocol).frames_needed
    if not lenient and arguments.num_frames is not None and arguments.num_frames < least:
        raise KinemaError(f"`--num-frames` (={arguments.num_frames}) must be at least {least} for `--fvd {protocol}`")

    distance = FrechetVideoDistance(protocol, weights=arguments.weights, device=state.device)
    return LenientDistance(distance) if lenient else distance


@dataclass
class Outcome:
    """What a measure found.

    Attributes:
        title: Of the page.
        lines: For the terminal.
        figures: For JSON.
        unreadable: Why clips were skipped, by name.
        headline: What stands at the top of the page.
        sections: All else on the page; empty where none is wanted.
        notes: What the reader must be told.
    """

    title: str
    lines: list[str]
    figures: dict[str, Any]
    unreadable: dict[str, str] = field(default_factory=dict)
    headline: "list[tuple[str, Any, str]]" = field(default_factory=list)
    sections: "list[Section]" = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, *notes: str) -> None:
        """Tell the reader, in the terminal and on the page."""
        self.notes += notes
        self.lines += [f"note: {note}" for note in notes]

    def leave_out(self, missing: Mapping[str, str]) -> None:
        """Say why metrics have no number, everywhere."""
        self.figures["not_measured"] = {**self.figures.get("not_measured", {}), **missing}
        self.lines += [f"not measured: {metric}: {reason}" for metric, reason in missing.items()]
        self.notes += [f"Not measured: {metric}: {reason}" for metric, reason in missing.items()]

    def add_fvd(self, result: "FVDResult", label: str = "FVD") -> None:
        """Print an FVD with its protocol, and what must be known of it."""
        self.lines += result.describe(label)
        self.note(*result.notes)


def run_measure(
    arguments: argparse.Namespace,
    check: Callable[[argparse.Namespace], None],
    measure: Callable[[argparse.Namespace, Processes], Outcome],
) -> None:
    """Check, measure in all processes, report in one."""
    check(arguments)
    with processes(arguments.device) as state:
        outcome = measure(arguments, state)
        if state.is_main:
            publish(outcome, arguments)


def publish(outcome: Outcome, arguments: argparse.Namespace) -> None:
    """Print the lines, and write the files that were asked for."""
    if outcome.unreadable:
        outcome.lines.append(f"{len(outcome.unreadable)} clips could not be read: {', '.join(outcome.unreadable)}")
    print("\n".join(outcome.lines), flush=True)
    if arguments.json is not None:
        write_json(outcome.figures | {"unreadable": outcome.unreadable}, arguments.json)
    if arguments.html is not None:
        from kinema.eval.report import Report
        from kinema.eval.report.html import write_html
        from kinema.eval.report.sections import unreadable_section

        page = Report(
            title=outcome.title,
            headline=outcome.headline,
            notes=outcome.notes,
            sections=[*outcome.sections, *unreadable_section(outcome.unreadable)],
            command=command_line(),
        )
        write_html(page, arguments.html, overwrite=arguments.overwrite)


def write_json(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write figures to a file, whole or not at all; with the version of kinema that found them."""
    from kinema import __version__

    text = json.dumps(finite({**figures, "kinema": __version__}), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def finite(value: Any) -> Any:
    """Figures as JSON takes them: what is no finite number is null, and a tuple a list."""
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def command_line() -> str:
    """How this program was called, for the page."""
    return shlex.join(["kinema", *sys.argv[1:]])
