"""Frame metrics between clips and their references: PSNR, SSIM, LPIPS, VMAF, ...

REFERENCE and CLIPS are folders in which clips pair by name, whatever their kinds of files are.
`accelerate launch -m kinema eval compare ...` shares the work among processes, with the same result.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    fetch_in_turn,
    run_measure,
)
from kinema.apps.commands.eval_options import (
    FITTING_LEAST,
    FITTING_OPTIONS,
    OUTPUT_OPTIONS,
    RATE_OPTIONS,
    READING_OPTIONS,
    add_option,
    add_options,
    check_at_least,
    check_outputs,
    fitting_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.eval.clips import Frames
    from kinema.eval.reconstruction import ReconstructionReport
    from kinema.eval.report import Clips
    from kinema.eval.round_trip import LongReconstruction

HELP = "frame metrics of a folder of clips against a folder of references"

SHOWN = 4
"""Clips on the page."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("reference", metavar="REFERENCE", help="a folder of clips as they should be")
    parser.add_argument("clips", metavar="CLIPS", help="a folder of clips of the same names, lengths and sizes")
    add_metrics_argument(parser)
    add_options(parser, FITTING_OPTIONS, RATE_OPTIONS, OUTPUT_OPTIONS, READING_OPTIONS)


def add_metrics_argument(parser: argparse.ArgumentParser) -> None:
    """Declare which frame metrics are measured."""
    add_option(
        parser,
        "--metrics",
        nargs="+",
        help="psnr ssim flicker (these without it), ms_ssim lpips_alex lpips_vgg vmaf warping_error fid kid",
    )


def chosen_metrics(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The frame metrics that were asked for.

    Raises:
        KinemaError: One is unknown or named twice.
    """
    from kinema.eval.frames import check_metrics
    from kinema.eval.reconstruction import DEFAULT_METRICS

    names = DEFAULT_METRICS if arguments.metrics is None else tuple(arguments.metrics)
    check_metrics(names)
    return names


def networks_of(metrics: tuple[str, ...]) -> list[str]:
    """Names of the weights that metrics need."""
    from kinema.eval.frames import METRICS

    return sorted({network for name in metrics if (network := METRICS[name].network) is not None})


def run(arguments: argparse.Namespace) -> None:
    """Check, measure, report."""
    run_measure(arguments, check, measure)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, FITTING_LEAST)
    check_outputs(arguments, {"reference": arguments.reference, "clips": arguments.clips})


def measure(arguments: argparse.Namespace, state: Processes) -> Outcome:
    """What `run` reports."""
    from kinema.eval.clips import list_clips, pair_clips, read_pairs
    from kinema.eval.reconstruction import compare_clips

    metrics = chosen_metrics(arguments)
    sides = [list_clips(getattr(arguments, name), argument=name) for name in ("reference", "clips")]
    pairs = pair_clips(sides[0], sides[1], ("reference", "clips"))
    fetch_in_turn(state, *networks_of(metrics))
    shown = Shown(state, ("reference", "clip"))
    left = state.fitted_clips(sides[0], arguments, "reference")
    right = state.fitted_clips(sides[1], arguments, "clips")
    result = compare_clips(read_pairs(pairs, left, right), metrics, device=state.device, watch=shown)
    outcome = Outcome("Clips against their references", describe(result), result.as_dict())
    outcome.figures["protocol"] = fitting_of(arguments) | averaging_of(metrics)
    outcome.add_rates({"reference": left.side_rates, "clips": right.side_rates}, arguments.fps)
    for side, clips in (("reference", left), ("clips", right)):
        outcome.unreadable |= {f"{side}/{name}": reason for name, reason in clips.unreadable.items()}
    if arguments.html is not None and state.is_main:
        from kinema.eval.report.sections import reconstruction_headline, reconstruction_section

        outcome.headline = reconstruction_headline(result)
        outcome.sections = [reconstruction_section(result, clips=shown.rows())]
    return outcome


def averaging_of(metrics: Sequence[str]) -> dict[str, Any]:
    """What a value means, for JSON: how frames and clips are averaged, and the network of each metric that has one."""
    from kinema.eval.frames import METRICS

    networks = {name: METRICS[name].network for name in metrics if METRICS[name].network is not None}
    return {"mean": "over frames, then over clips", "networks": networks}


class Shown:
    """Keeps the first clips that are measured, for the page.

    Args:
        state: Only the main process keeps any.
        labels: Of the reference and of the clip.
    """

    def __init__(self, state: Processes, labels: tuple[str, str]) -> None:
        self.labels = labels
        self._most = SHOWN if state.is_main else 0
        self._kept: list[tuple[str, Tensor, Tensor]] = []

    def __call__(self, name: str, reference: "Frames", clip: "Frames | LongReconstruction") -> None:
        """Take a pair."""
        from kinema.eval.report.media import MOST_FRAMES

        if len(self._kept) < self._most:
            self._kept.append((name, reference[:MOST_FRAMES].clone(), clip[:MOST_FRAMES].clone()))

    def rows(self) -> "list[Clips]":
        """Reference, clip and their difference side by side."""
        from kinema.eval.report.media import difference, side_by_side

        labels = (*self.labels, "difference, four times")
        return [side_by_side((a, b, difference(a, b)), labels, name) for name, a, b in self._kept]


def describe(result: "ReconstructionReport") -> list[str]:
    """A table of means as lines of text."""
    from kinema.eval.report import number
    from kinema.eval.report.sections import title_of

    number_of_clips = len(result.clips)
    lines = [f"{number_of_clips} clip{'s' * (number_of_clips != 1)}, {result.num_frames} frames"]
    lines.append(f"{'':18}{'mean':>12}{'first frame':>14}{'borders':>12}")
    for name, value in result.metrics.items():
        cells = (value, result.first_frame.get(name), result.chunk_border.get(name))
        mean, first, border = (number(cell) for cell in cells)
        lines.append(f"{title_of(name):18}{mean:>12}{first:>14}{border:>12}")
    return lines
