"""Frame metrics between clips and their references: PSNR, SSIM, LPIPS, VMAF, ..."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from kinema.apps.commands.eval_common import Outcome, Processes, fetch_in_turn, run_measure
from kinema.apps.commands.eval_options import FITTING_MINIMA, Fitting, MeasureOptions, check_outputs
from kinema.command_line import check_at_least
from kinema.eval.frames import DEFAULT_METRICS, METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.eval.clips import Frames
    from kinema.eval.reconstruction import ReconstructionReport
    from kinema.eval.report import Clips
    from kinema.eval.round_trip import LongReconstruction

SHOWN = 4
"""Clips on the page."""

FrameMetrics = Annotated[
    tuple[str, ...],
    arg(metavar="NAME", help_behavior_hint=lambda default: f"{METRICS.describe()} (default: {default})"),
]


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """Frame metrics between clips and their references: PSNR, SSIM, LPIPS, VMAF, ...

    REFERENCE and CLIPS are folders in which clips pair by name, whatever their kinds of files are.
    `accelerate launch -m kinema eval compare ...` shares the work among processes, with the same result.

    Attributes:
        reference: A folder of clips as they should be.
        clips: A folder of clips of the same names, lengths and sizes.
        metrics: What to measure:
    """

    reference: Annotated[Positional[str], arg(metavar="REFERENCE")]
    clips: Annotated[Positional[str], arg(metavar="CLIPS")]
    metrics: FrameMetrics = DEFAULT_METRICS
    fitting: Fitting = field(default_factory=Fitting)


def run(options: Options) -> None:
    """Checks, measures, reports."""
    run_measure(options, check, measure)


def check(options: Options) -> None:
    """Raises `KinemaError` over a mistake that shows before the work."""
    check_at_least(options.fitting, FITTING_MINIMA)
    check_outputs(options, {"reference": options.reference, "clips": options.clips})
    METRICS.check(options.metrics)


def measure(options: Options, state: Processes) -> Outcome:
    """What `run` reports."""
    from kinema.eval.clips import list_clips, pair_clips, read_pairs
    from kinema.eval.reconstruction import compare_clips

    sides = [list_clips(getattr(options, name), argument=name) for name in ("reference", "clips")]
    pairs = pair_clips(sides[0], sides[1], ("reference", "clips"))
    fetch_in_turn(state, *METRICS.networks(options.metrics).values())
    shown = Shown(state, ("reference", "clip"))
    left = state.fitted_clips(sides[0], options, "reference", options.fitting)
    right = state.fitted_clips(sides[1], options, "clips", options.fitting)
    result = compare_clips(read_pairs(pairs, left, right), options.metrics, device=state.device, watch=shown)
    outcome = Outcome("Clips against their references", describe(result), result.as_dict())
    outcome.figures["protocol"] = protocol_of(options.fitting, options.metrics)
    outcome.add_rates({"reference": left.side_rates, "clips": right.side_rates}, options.fps)
    for side, clips in (("reference", left), ("clips", right)):
        outcome.unreadable |= {f"{side}/{name}": reason for name, reason in clips.unreadable.items()}
    if options.outputs.html is not None and state.is_main:
        from kinema.eval.report.sections import metrics_headline, reconstruction_section

        outcome.headline = metrics_headline(result.metrics)
        outcome.sections = [reconstruction_section(result, clips=shown.rows())]
    return outcome


def protocol_of(fitting: Fitting, metrics: tuple[str, ...]) -> dict[str, Any]:
    """What a value means, for JSON: which frames are measured and how they are averaged, and the metrics' networks."""
    means = {"mean": "over frames, then over clips", "networks": METRICS.networks(metrics)}
    return fitting.as_dict() | means


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

    number_of_clips = len(result.clips)
    lines = [f"{number_of_clips} clip{'s' * (number_of_clips != 1)}, {result.num_frames} frames"]
    lines.append(f"{'':18}{'mean':>12}{'first frame':>14}{'borders':>12}")
    for name, value in result.metrics.items():
        cells = (value, result.first_frame.get(name), result.chunk_border.get(name))
        mean, first, border = (number(cell) for cell in cells)
        lines.append(f"{METRICS[name].title:18}{mean:>12}{first:>14}{border:>12}")
    return lines
