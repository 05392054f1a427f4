"""Which metrics the suite measures, and which of them can be measured here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kinema.errors import KinemaError
from kinema.eval.generation.requirements import too_little
from kinema.eval.metrics import FRAME_METRICS, GENERATION_METRICS

if TYPE_CHECKING:
    from kinema.eval.fvd import Protocol

RECONSTRUCTION = ("psnr", "ssim", "lpips_alex", "lpips_vgg", "flicker", "warping_error")
"""Of a tokenizer. MS-SSIM (frames of `ms_ssim.MIN_SIDE` pixels and more), VMAF and the sets (thousands of frames) are
asked for by name in `kinema eval reconstruction`."""


@dataclass(frozen=True)
class Choice:
    """What of a list can be measured.

    Attributes:
        metrics: These.
        missing: Why the others cannot be, by name.
    """

    metrics: tuple[str, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


def choose(wanted: Sequence[str], needs: Mapping[str, str | None], fetch: Callable[[str], object]) -> Choice:
    """Splits metrics into those whose weights can be had, and the others.

    Args:
        wanted: The metrics.
        needs: Name of the network that each needs, or None.
        fetch: Gets a network's weights, or raises `KinemaError`; called once a network.
    """
    failures: dict[str, str] = {}
    for network in dict.fromkeys(needs[name] for name in wanted):
        if network is not None:
            try:
                fetch(network)
            except KinemaError as error:
                failures[network] = str(error)
    missing = {name: failures[network] for name in wanted if (network := needs[name]) in failures and network}
    return Choice(tuple(name for name in wanted if name not in missing), missing)


def reconstruction_choice(fetch: Callable[[str], object]) -> Choice:
    """The suite's metrics of a tokenizer that can be measured."""
    return choose(RECONSTRUCTION, {name: FRAME_METRICS[name].network for name in RECONSTRUCTION}, fetch)


def fvd_choice(
    fetch: Callable[[str], object], protocol: "Protocol", *, num_frames: int | None, num_clips: Sequence[int]
) -> Choice:
    """Whether FVD can be measured.

    Args:
        fetch: As of `choose`.
        protocol: FVD's.
        num_frames: Of a clip; None: not known.
        num_clips: Clips on each side.
    """
    if num_frames is not None and num_frames < protocol.frames_needed:
        reason = f"`num_frames` (={num_frames}) must be at least {protocol.frames_needed} for `{protocol.name}`"
        return Choice((), {"fvd": reason})
    if min(num_clips) < 2:
        return Choice((), {"fvd": f"`clips` (={min(num_clips)} of them) must be at least 2"})
    return choose(("fvd",), {"fvd": "i3d"}, fetch)


def generation_choice(
    fetch: Callable[[str], object],
    *,
    clip: bool,
    reference: bool,
    frame_network: str,
    num_clips: int | None = None,
    num_reference: int | None = None,
    num_frames: int | None = None,
) -> Choice:
    """The suite's metrics of a generator that can be measured.

    Args:
        fetch: As of `choose`.
        clip: Whether a CLIP was named, which CLIPScore needs.
        reference: Whether there are real clips, which STREAM needs.
        frame_network: Weights of the features of frames.
        num_clips: Generated clips; None: not known.
        num_reference: Real clips; likewise.
        num_frames: Of a generated clip; likewise.
    """
    reasons: dict[str, str] = {}
    needs: dict[str, str | None] = {}
    for name, metric in GENERATION_METRICS.items():
        if metric.network == "clip" and not clip:
            reasons[name] = "no CLIP was named (`--clip MODEL`, a hub id or a folder)"
        elif metric.inputs == "clip sets" and not reference:
            reasons[name] = "no real clips were given (`--data DIR`)"
        elif (reason := too_little(name, num_clips, num_reference, num_frames)) is not None:
            reasons[name] = reason
        else:
            # A CLIP that was named is loaded when it is used: it is none of `kinema weights`.
            needs[name] = {"frames": frame_network, "clip": None}.get(str(metric.network), metric.network)
    choice = choose(tuple(needs), needs, fetch)
    return Choice(choice.metrics, reasons | dict(choice.missing))
