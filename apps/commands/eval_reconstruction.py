"""How much a tokenizer keeps of a folder of clips: frame metrics, first frames and borders apart, and rFVD.

`accelerate launch -m kinema eval reconstruction ...` shares the work among processes, with the same result.
"""

import argparse
from typing import TYPE_CHECKING, Any

from kinema.apps.commands.eval_common import (
    Outcome,
    Processes,
    add_fitting_arguments,
    add_output_arguments,
    add_reading_arguments,
    check_at_least,
    check_outputs,
    fetch_in_turn,
    processes,
    publish,
)
from kinema.apps.commands.eval_compare import (
    Shown,
    add_metrics_argument,
    chosen_metrics,
    describe,
    fitting_of,
    networks_of,
)
from kinema.files import check_input_file
from kinema.weights import model_dir

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.eval.fvd import FrechetVideoDistance, FVDResult
    from kinema.eval.reconstruction import ReconstructionReport

HELP = "how much a tokenizer keeps of a folder of clips"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("--tokenizer", metavar="DIR", help="a tokenizer's folder; else the embedded general one")
    parser.add_argument("--data", required=True, metavar="DIR", help="a folder of clips")
    add_metrics_argument(parser)
    parser.add_argument("--fvd", metavar="PROTOCOL", help="also rFVD under this protocol: styleganv, vidtok, ...")
    parser.add_argument("--weights", metavar="FILE", help="I3D weights for rFVD; else those of `kinema weights`")
    parser.add_argument(
        "--chunk",
        type=int,
        default=65,
        metavar="N",
        help="frames that go through the tokenizer at once, each chunk for itself; 0 takes whole clips (%(default)s)",
    )
    add_fitting_arguments(parser)
    add_output_arguments(parser)
    add_reading_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Check, measure, report."""
    check(arguments)
    with processes(arguments.device) as state:
        outcome = measure(arguments, state)
        if state.is_main:
            publish(outcome, arguments)


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, {"num_frames": 1, "stride": 1, "resolution": 8, "chunk": 0})
    check_outputs(arguments, {"--weights": arguments.weights})
    if arguments.weights is not None:
        check_input_file(arguments.weights, "--weights")
    model_dir(arguments.tokenizer, embedded="kl-4x8x8-c16", name="tokenizer")


def measure(arguments: argparse.Namespace, state: Processes) -> Outcome:
    """What `run` reports."""
    from kinema.apps.loading import load_tokenizer
    from kinema.eval.clips import list_clips
    from kinema.eval.fvd import FrechetVideoDistance, find_protocol
    from kinema.eval.reconstruction import evaluate_reconstruction

    metrics = chosen_metrics(arguments)
    protocol = None if arguments.fvd is None else find_protocol(arguments.fvd)
    clips = state.fitted_clips(list_clips(arguments.data, argument="--data"), arguments, "--data")
    fetch_in_turn(state, *networks_of(metrics), *(["i3d"] if protocol and arguments.weights is None else []))
    tokenizer = load_tokenizer(arguments.tokenizer, device=state.device)
    distance = None
    if protocol is not None:
        distance = FrechetVideoDistance(protocol, weights=arguments.weights, device=state.device)
        distance.to(state.device)  # processes with GPUs add their sums there
    shown = Shown(state, ("original", "reconstruction"))
    result = evaluate_reconstruction(
        tokenizer,
        clips,
        metrics,
        chunk=arguments.chunk or None,
        device=state.device,
        watch=Watchers(shown, distance),
    )
    fvd = None if distance is None else distance.result()
    outcome = Outcome("Reconstruction", describe(result), result.as_dict(), clips.unreadable)
    outcome.figures |= {"protocol": fitting_of(arguments), "tokenizer": facts_of(tokenizer, arguments)}
    if fvd is not None:
        outcome.figures |= {"rfvd": fvd.value, "rfvd_details": fvd.as_dict()}
        outcome.lines.append(f"r{fvd}")
        outcome.notes = list(fvd.notes)
        outcome.lines += [f"note: {note}" for note in fvd.notes]
    if arguments.html is not None and state.is_main:
        _add_page(outcome, result, shown, fvd)
    return outcome


def _add_page(outcome: Outcome, result: "ReconstructionReport", shown: Shown, fvd: "FVDResult | None") -> None:
    from kinema.eval.report.sections import fvd_headline, fvd_section, reconstruction_headline, reconstruction_section

    outcome.headline = reconstruction_headline(result)
    outcome.sections = [reconstruction_section(result, "Reconstruction", clips=shown.rows())]
    if fvd is not None:
        outcome.headline += fvd_headline(fvd, "rFVD")
        outcome.sections.append(fvd_section(fvd, "Fréchet Video Distance of the reconstructions"))


class Watchers:
    """What looks at each clip besides the frame metrics.

    Args:
        shown: Keeps some for the page.
        distance: Counts all for rFVD, both sides under the clip's name, so that they are cut alike.
    """

    def __init__(self, shown: Shown, distance: "FrechetVideoDistance | None") -> None:
        self.shown = shown
        self.distance = distance

    def __call__(self, name: str, reference: "Tensor", clip: "Tensor") -> None:
        """Take a pair, uint8 `t h w 3`."""
        self.shown(name, reference, clip)
        if self.distance is not None:
            for frames, real in ((reference, True), (clip, False)):
                self.distance.update(frames.permute(3, 0, 1, 2)[None], real=real, names=[name])


def facts_of(tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a figure of a tokenizer is worth little without: how much smaller its latents are."""
    ratio, side, channels = (
        getattr(tokenizer, name)
        for name in ("temporal_compression_ratio", "spatial_compression_ratio", "latent_channels")
    )
    return {
        "name": arguments.tokenizer or "kl-4x8x8-c16 (embedded)",
        "temporal_compression_ratio": ratio,
        "spatial_compression_ratio": side,
        "latent_channels": channels,
        "values_ratio": 3 * ratio * side**2 / channels,
    }
