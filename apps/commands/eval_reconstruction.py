"""How much a tokenizer keeps of a folder of clips: frame metrics, first frames and borders apart, and rFVD."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from kinema.apps.commands.eval_common import Outcome, Processes, fetch_in_turn, make_distance, run_measure
from kinema.apps.commands.eval_compare import FrameMetrics, Shown, describe, protocol_of
from kinema.apps.commands.eval_options import (
    FITTING_MINIMA,
    Fitting,
    MeasureOptions,
    OptionalFile,
    OptionalName,
    check_outputs,
    check_weights,
)
from kinema.command_line import check_at_least
from kinema.eval.frames import DEFAULT_METRICS, METRICS

if TYPE_CHECKING:
    from kinema.eval.reconstruction import ReconstructionReport


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """How much a tokenizer keeps of a folder of clips: frame metrics, first frames and borders apart, and rFVD.

    `accelerate launch -m kinema eval reconstruction ...` shares the work among processes, with the same result.

    Attributes:
        data: A folder of clips.
        tokenizer: A tokenizer's folder, or a name as in `kinema reconstruct`; else the embedded one.
        metrics: What to measure:
        fvd: Also measure rFVD under this protocol: styleganv, vidtok, ...
        weights: I3D weights for rFVD; else those of `kinema weights`.
        chunk: Frames that go through the tokenizer at once, each chunk on its own; 0 takes whole clips.
    """

    data: Annotated[str, arg(metavar="DIR")]
    tokenizer: OptionalName = None
    metrics: FrameMetrics = DEFAULT_METRICS
    fvd: Annotated[str | None, arg(metavar="PROTOCOL", help_behavior_hint="")] = None
    weights: OptionalFile = None
    chunk: Annotated[int, arg(metavar="N")] = 65
    fitting: Fitting = field(default_factory=Fitting)


def run(options: Options) -> None:
    """Checks, measures, reports."""
    run_measure(options, check, measure)


def check(options: Options) -> None:
    """Raises `KinemaError` over a mistake that shows before the work."""
    check_at_least(options.fitting, FITTING_MINIMA)
    check_at_least(options, {"chunk": 0})
    check_outputs(options, {"--data": options.data, "--weights": options.weights})
    check_weights(options.weights)
    METRICS.check(options.metrics)
    if options.tokenizer is not None:
        from kinema.tokenizers.published.loading import check_name

        check_name(options.tokenizer)
    if options.fvd is not None:
        from kinema.eval.fvd import find_protocol

        find_protocol(options.fvd)


def measure(options: Options, state: Processes, *, lenient: bool = False) -> Outcome:
    """What `run` reports.

    Args:
        options: Of the command.
        state: The processes.
        lenient: Leave rFVD out where it cannot be measured, and say so.
    """
    from kinema.apps.loading import load_tokenizer
    from kinema.eval.clips import list_clips
    from kinema.eval.reconstruction import evaluate_reconstruction

    clips = state.fitted_clips(list_clips(options.data, argument="--data"), options, "--data", options.fitting)
    i3d = ["i3d"] if options.fvd and options.weights is None else []
    fetch_in_turn(state, *METRICS.networks(options.metrics).values(), *i3d)
    tokenizer = load_tokenizer(options.tokenizer, device=state.device)
    distance = None
    if options.fvd is not None:
        distance = make_distance(options.fvd, options.weights, options.fitting.num_frames, state, lenient=lenient)
    shown = Shown(state, ("original", "reconstruction"))
    result = evaluate_reconstruction(
        tokenizer,
        clips,
        options.metrics,
        chunk=options.chunk or None,
        device=state.device,
        fvd=distance,
        watch=shown,
    )
    outcome = Outcome("Reconstruction", describe(result), result.as_dict(), clips.unreadable)
    outcome.figures |= {
        "protocol": protocol_of(options.fitting, options.metrics),
        "tokenizer": facts_of(tokenizer, options.tokenizer),
    }
    outcome.add_rates({"data": clips.side_rates}, options.fps)
    if result.fvd is not None:
        outcome.add_fvd(result.fvd, "rFVD")
    elif distance is not None:
        outcome.leave_out({"rfvd": str(getattr(distance, "failure", None))})
    if options.outputs.html is not None and state.is_main:
        _add_page(outcome, result, shown)
    return outcome


def _add_page(outcome: Outcome, result: "ReconstructionReport", shown: Shown) -> None:
    from kinema.eval.report.sections import fvd_headline, fvd_section, metrics_headline, reconstruction_section

    outcome.headline = metrics_headline(result.metrics)
    outcome.sections = [reconstruction_section(result, "Reconstruction", clips=shown.rows())]
    if result.fvd is not None:
        outcome.headline += fvd_headline(result.fvd, "rFVD")
        outcome.sections.append(fvd_section(result.fvd, "Fréchet Video Distance of the reconstructions"))


def facts_of(tokenizer: Any, name: str | None) -> dict[str, Any]:
    """How much smaller the latents are than the pixels, without which figures of a tokenizer say little."""
    ratio, side, channels = (
        getattr(tokenizer, key)
        for key in ("temporal_compression_ratio", "spatial_compression_ratio", "latent_channels")
    )
    config: Any = getattr(tokenizer, "config", {})
    tokens = config.get("num_tokens", 1)  # a holistic tokenizer's cell is a window of many tokens
    return {
        "name": name or "kl-4x8x8-c16 (embedded)",
        "temporal_compression_ratio": ratio,
        "spatial_compression_ratio": side,
        "latent_channels": channels,
        "values_ratio": 3 * ratio * side**2 / (channels * tokens),
    }
