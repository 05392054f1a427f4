"""The work that the measures of `kinema eval` share: several processes, and results."""

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
from typing import TYPE_CHECKING, Any, TypeVar

from kinema.apps.commands.eval_options import Fitting, MeasureOptions, Outputs, reading_of
from kinema.errors import KinemaError
from kinema.files import atomic_path, displayed

if TYPE_CHECKING:
    from kinema.eval.clips import ClipFile, ReadableClips, SideRates
    from kinema.eval.fvd import FrechetVideoDistance, FVDResult, LenientDistance
    from kinema.eval.report import Section

Options = TypeVar("Options", bound=MeasureOptions)


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
        """Whether this process prints and writes the results."""
        return self.rank == 0

    def clips(self, clips: "list[ClipFile]", options: MeasureOptions, argument: str, **reading: Any) -> "ReadableClips":
        """This process's share of some clips, read as the options and `**reading` (settings of `Reading`) say."""
        from kinema.eval.clips import ReadableClips, open_clip

        return ReadableClips(
            clips,
            max_unreadable=options.reading.max_unreadable,
            rank=self.rank,
            world_size=self.world_size,
            read=partial(open_clip, reading=reading_of(options, **reading)),
            argument=argument,
        )

    def fitted_clips(
        self, clips: "list[ClipFile]", options: MeasureOptions, argument: str, fitting: Fitting
    ) -> "ReadableClips":
        """The same, cut and scaled as `fitting` says, with a progress bar."""
        share = self.clips(clips, options, argument, **fitting.as_dict())
        share.progress = f"{argument.removeprefix('--')} clips" if self.is_main else None
        return share


@contextlib.contextmanager
def processes(device: str | None) -> Iterator[Processes]:
    """Joins the other processes, if there are any, until the program ends.

    Args:
        device: As given by the user.

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
    protocol: str, weights: str | None, num_frames: int | None, state: Processes, *, lenient: bool
) -> "FrechetVideoDistance | LenientDistance":
    """The FVD that is measured beside other metrics; it hashes pixels, so that the same clips are exactly 0 apart.

    Args:
        protocol: Its name.
        weights: File of I3D weights; None: those of `kinema weights`.
        num_frames: Frames of each clip; None: all that it has.
        state: Where the network runs.
        lenient: Leave FVD out, instead of raising, if a clip is too short.

    Raises:
        KinemaError: No such protocol, or, unless lenient, one that needs more frames than clips will have.
    """
    from kinema.eval.fvd import FrechetVideoDistance, LenientDistance, find_protocol

    minimum = find_protocol(protocol).frames_needed
    if not lenient and num_frames is not None and num_frames < minimum:
        raise KinemaError(f"`--num-frames` (={num_frames}) must be at least {minimum} for `--fvd {protocol}`")

    distance = FrechetVideoDistance(protocol, weights=weights, device=state.device, hash_pixels=True)
    return LenientDistance(distance) if lenient else distance


@dataclass
class Outcome:
    """The result of a measure.

    Attributes:
        title: Title of the page.
        lines: Text for the terminal.
        figures: Content of the JSON file.
        unreadable: Why clips were skipped, by name.
        headline: Top of the page.
        sections: The rest of the page; empty if no page is asked for.
        notes: Limits of the result that the reader must know.
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

    def add_rates(self, sides: "Mapping[str, SideRates]", fps: float | None = None) -> None:
        """Say at which rates clips were stored and sampled, and where these differ, everywhere.

        Args:
            sides: The rates of each set of clips, by what it is called.
            fps: The rate at which video files were sampled; None: as they are stored.
        """
        from kinema.eval.clips import describe_rates, rate_notes

        notes = rate_notes(sides, fps)
        self.lines += describe_rates(sides, fps)
        self.note(*notes)
        self.figures["rates"] = {
            **{side: rates.as_dict() for side, rates in sides.items()},
            "sampled_fps": fps,
            "notes": notes,
        }

    def add_fvd(self, result: "FVDResult", label: str = "FVD") -> None:
        """Print an FVD with its protocol, and what must be known of it."""
        self.lines += result.describe(label)
        self.note(*result.notes)


def run_measure(
    options: Options, check: Callable[[Options], None], measure: Callable[[Options, Processes], Outcome]
) -> None:
    """Checks the options, measures in all processes, and reports in the main one."""
    check(options)
    with processes(options.reading.device) as state:
        outcome = measure(options, state)
        if state.is_main:
            publish(outcome, options.outputs)


def publish(outcome: Outcome, outputs: Outputs) -> None:
    """Prints the lines, and writes the files that were asked for."""
    if outcome.unreadable:
        outcome.lines.append(f"{len(outcome.unreadable)} clips could not be read: {', '.join(outcome.unreadable)}")
    print("\n".join(displayed(line) for line in outcome.lines), flush=True)
    if outputs.json is not None:
        write_json(outcome.figures | {"unreadable": outcome.unreadable}, outputs.json)
    if outputs.html is not None:
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
        write_html(page, outputs.html, overwrite=outputs.overwrite)


def write_json(figures: Mapping[str, Any], path: str | Path) -> None:
    """Write figures to a file, whole or not at all; with the version of kinema that found them."""
    from kinema import __version__

    text = json.dumps(finite({**figures, "kinema": __version__}), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        # Bytes of file names that are no UTF-8 become escapes that JSON knows, and from which Python makes the name.
        temporary.write_bytes(f"{text}\n".encode(errors="backslashreplace"))


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
