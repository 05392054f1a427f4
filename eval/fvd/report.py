"""The report on two sets of videos: FVD, its bias and its interval, other scores on the same features, and notes."""

from collections.abc import Collection

from kinema.eval.distributions import gaussian_bias
from kinema.eval.fvd.accumulator import FeatureAccumulator, distance, identical
from kinema.eval.fvd.groups import MIN_CLIPS, fvd_at_infinity, fvd_interval
from kinema.eval.fvd.protocols import Protocol
from kinema.eval.fvd.result import FVDResult
from kinema.eval.metrics import FEATURE_METRICS


def make_report(
    real: FeatureAccumulator,
    fake: FeatureAccumulator,
    *,
    protocol: Protocol,
    weights: str,
    extra: Collection[str] = (),
    sizes: Collection[tuple[int, int]] = (),
    resamples: int = 32,
) -> FVDResult:
    """Reports on two sets of windows.

    Args:
        real: The real windows.
        fake: The generated windows.
        protocol: How the videos were read.
        weights: Hash of the network's weights.
        extra: Names of `FEATURE_METRICS` to compute, too; both sets must have kept their features.
        sizes: Heights and widths of the videos.
        resamples: Draws of the bootstrap for the interval; 0 for none.

    Raises:
        KinemaError: A set has fewer than two windows.
    """
    covariance = protocol.covariance
    value = distance(real, fake, covariance)
    same, num_real, num_fake = identical(real, fake), real.num_windows, fake.num_windows
    bias = 0.0 if same else gaussian_bias(real.sums.total.covariance(covariance), num_real, num_fake)
    return FVDResult(
        value=value,
        protocol=protocol,
        weights=weights,
        num_real=num_real,
        num_fake=num_fake,
        bias=bias,
        infinity=0.0 if same else fvd_at_infinity(real.sums, fake.sums, covariance),
        interval=(0.0, 0.0) if same else fvd_interval(real.sums, fake.sums, covariance, resamples=resamples),
        scores=_scores(real, fake, extra, same),
        notes=() if same else _notes(num_real, num_fake, value, bias, sizes),
    )


def _scores(
    real: FeatureAccumulator, fake: FeatureAccumulator, extra: Collection[str], same: bool
) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for name in extra:
        if same and FEATURE_METRICS[name].direction == "lower":
            scores[name] = 0.0  # an unbiased estimate of a distance would be a little below
        elif name not in scores:
            scores |= FEATURE_METRICS[name].make()(real.all_features(), fake.all_features())
    return {name: scores[name] for name in extra}


def _notes(
    num_real: int, num_fake: int, value: float, bias: float, sizes: Collection[tuple[int, int]]
) -> tuple[str, ...]:
    notes: list[str] = []
    number = min(num_real, num_fake)
    if number < MIN_CLIPS and value < bias:
        notes.append(
            f"{number} clips are fewer than {MIN_CLIPS}: two independent sets of so few would be {bias:.3g} apart, but "
            "these share clips, or one is made from the other; compare the value only with values of such sets"
        )
    elif number < MIN_CLIPS:
        notes.append(
            f"{number} clips are fewer than {MIN_CLIPS}: the value is too high, by {bias:.0f} at least for two "
            "independent sets that are alike; compare it only with values of as many clips"
        )
    if num_real != num_fake:
        notes.append(f"{num_real} real and {num_fake} fake clips: all are measured, and none is resampled")
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:5])
        more = ", ..." if len(sizes) > 5 else ""
        notes.append(f"clips have {len(sizes)} sizes ({listed}{more}): sharpness differs with them")
    return tuple(notes)
