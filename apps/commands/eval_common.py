"""What the measures of `kinema eval` share: options, checks before the work, several processes, results."""

import argparse
import atexit
import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError
from kinema.files import atomic_path, check_other_file, check_output_file

if TYPE_CHECKING:
    from kinema.eval.clips import ClipFile, ReadableClips
    from kinema.eval.report import Section


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where results go."""
    parser.add_argument("--json", metavar="FILE", help="write all figures to a file")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with plots and clips, one file that needs no network"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how clips are read and where networks run."""
    parser.add_argument(
        "--max-unreadable",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="clips that cannot be read are skipped and named; more than this share of them is an error (%(default)s)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; else CUDA where there is one")


def add_fitting_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which frames of a clip are measured, and at which size."""
    parser.add_argument("--num-frames", type=int, metavar="N", help="measure the first N frames of a clip; else all")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="take every Nth frame (%(default)s)")
    parser.add_argument(
        "--resolution",
        type=int,
        metavar="PIXELS",
        help="scale clips to this short side and cut out the square in the middle; else as they are",
    )


def check_outputs(arguments: argparse.Namespace, inputs: Mapping[str, str | None] | None = None) -> None:
    """Raise `KinemaError` when a result may not be written; before the work.

    Args:
        arguments: With `json`, `html` and `overwrite`.
        inputs: Files that are read, by what their arguments are called.
    """
    seen = {name: path for name, path in (inputs or {}).items() if path is not None}
    for name in ("json", "html"):
        path = getattr(arguments, name)
        if path is not None:
            check_output_file(path, overwrite=arguments.overwrite, name=f"--{name}")
            check_other_file(path, f"--{name}", seen)
            seen[f"--{name}"] = path
    if not 0 <= arguments.max_unreadable <= 1:
        raise KinemaError(f"`--max-unreadable` (={arguments.max_unreadable:g}) must be in [0, 1]")


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
        """The same, cut and scaled as `add_fitting_arguments` declares."""
        from kinema.eval.clips import read_fitted

        share = self.clips(clips, arguments, argument)
        share.read = partial(
            read_fitted, num_frames=arguments.num_frames, stride=arguments.stride, resolution=arguments.resolution
        )
        return share


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
