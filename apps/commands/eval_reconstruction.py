"""How much a tokenizer keeps of a folder of clips: frame metrics, first frames and borders apart, and rFVD.

`accelerate launch -m kinema eval reconstruction ...` shares the work among processes, with the same result.
"""

import argparse
from typing import TYPE_CHECKING, Any

from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    fetch_in_turn,
    make_distance,
    run_measure,
)
from kinema.apps.commands.eval_compare import (
    Shown,
    add_metrics_argument,
    averaging_of,
    chosen_metrics,
    describe,
    networks_of,
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
    check_weights,
    fitting_of,
)

if TYPE_CHECKING:
    from kinema.eval.reconstruction import ReconstructionReport

HELP = "how much a tokenizer keeps of a folder of clips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    add_option(parser, "--tokenizer")
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder of clips")
    add_metrics_argument(parser)
    parser.add_argument("--fvd", metavar="PROTOCOL", help="also rFVD under this protocol: styleganv, vidtok, ...")
    add_option(parser, "--weights", help="I3D weights for rFVD; else those of `kinema weights`")
    parser.add_argument(
        "--chunk",
        type=int,
        default=65,
        metavar="N",
        help="frames that go through the tokenizer at once, each chunk for itself; 0 takes whole clips (%(default)s)",
    )
    add_options(parser, FITTING_OPTIONS, RATE_OPTIONS, OUTPUT_OPTIONS, READING_OPTIONS)


def run(arguments: argparse.Namespace) -> None:
    """Check, measure, report."""
    run_measure(arguments, check, measure)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, {**FITTING_LEAST, "chunk": 0})
    check_outputs(arguments, {"--data": arguments.data, "--weights": arguments.weights})
    check_weights(arguments)
    if arguments.tokenizer is not None:
        from kinema.tokenizers.published.loading import check_name

        check_name(arguments.tokenizer)


def measure(arguments: argparse.Namespace, state: Processes, *, lenient: bool = False) -> Outcome:
    """What `run` reports.

    Args:
        arguments: The command's.
        state: The processes.
        lenient: Leave rFVD out where it cannot be measured, and say so.
    """
    from kinema.apps.loading import load_tokenizer
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import find_protocol
    from kinema.eval.reconstruction import evaluate_reconstruction

    metrics = chosen_metrics(arguments)
    if arguments.fvd is not None:
        find_protocol(arguments.fvd)  # a mistake in its name shows before weights are fetched
    clips = state.fitted_clips(list_clips(arguments.data, argument="--data"), arguments, "--data")
    fetch_in_turn(state, *networks_of(metrics), *(["i3d"] if arguments.fvd and arguments.weights is None else []))
    tokenizer = load_tokenizer(arguments.tokenizer, device=state.device)
    distance = None if arguments.fvd is None else make_distance(arguments.fvd, arguments, state, lenient=lenient)
    shown = Shown(state, ("original", "reconstruction"))
    result = evaluate_reconstruction(
        tokenizer,
        clips,
        metrics,
        chunk=arguments.chunk or None,
        device=state.device,
        fvd=distance,
        watch=shown,
    )
    outcome = Outcome("Reconstruction", describe(result), result.as_dict(), clips.unreadable)
    outcome.figures |= {
        "protocol": fitting_of(arguments) | averaging_of(metrics),
        "tokenizer": facts_of(tokenizer, arguments),
    }
    outcome.add_rates({"data": clips.side_rates}, arguments.fps)
    if result.fvd is not None:
        outcome.add_fvd(result.fvd, "rFVD")
    elif distance is not None:
        outcome.leave_out({"rfvd": str(getattr(distance, "failure", None))})
    if arguments.html is not None and state.is_main:
        _add_page(outcome, result, shown)
    return outcome


def _add_page(outcome: Outcome, result: "ReconstructionReport", shown: Shown) -> None:
    from kinema.eval.report.sections import fvd_headline, fvd_section, reconstruction_headline, reconstruction_section

    outcome.headline = reconstruction_headline(result)
    outcome.sections = [reconstruction_section(result, "Reconstruction", clips=shown.rows())]
    if result.fvd is not None:
        outcome.headline += fvd_headline(result.fvd, "rFVD")
        outcome.sections.append(fvd_section(result.fvd, "Fréchet Video Distance of the reconstructions"))


def facts_of(tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a figure of a tokenizer is worth little without: how much smaller its latents are."""
    ratio, side, channels = (
        getattr(tokenizer, name)
        for name in ("temporal_compression_ratio", "spatial_compression_ratio", "latent_channels")
    )
    config: Any = getattr(tokenizer, "config", {})
    tokens = config.get("num_tokens", 1)  # a holistic tokenizer's cell is a window of many tokens
    return {
        "name": arguments.tokenizer or "kl-4x8x8-c16 (embedded)",
        "temporal_compression_ratio": ratio,
        "spatial_compression_ratio": side,
        "latent_channels": channels,
        "values_ratio": 3 * ratio * side**2 / (channels * tokens),
    }
