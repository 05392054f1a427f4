"""What a measurement of FVD says: the value, and all that one needs to know to compare it with another."""

from dataclasses import dataclass, field
from typing import Any

from kinema.eval.fvd.protocols import Protocol


@dataclass(frozen=True, kw_only=True)
class FVDResult:
    """A Fréchet Video Distance and what belongs to it.

    Attributes:
        value: The distance, >= 0; exactly 0 for the same clips.
        protocol: How the clips were read.
        weights: Hash of the network's weights.
        num_real: Real windows measured.
        num_fake: Fake windows measured.
        bias: What two samples of these sizes from one Gaussian with the real clips' covariance are apart: what the
            finite numbers add to a small distance at least, as few clips show few directions of the true covariance.
        infinity: The value for endlessly many clips, by extrapolation; None below 800 clips, but for the same
            clips on both sides.
        interval: 95 % interval of the value over other clips, without the bias; None for too few clips.
        scores: Other distances on the same features, by name; None where there are too few clips for one.
        notes: What the reader must be told.
    """

    value: float
    protocol: Protocol
    weights: str
    num_real: int
    num_fake: int
    bias: float
    infinity: float | None
    interval: tuple[float, float] | None
    scores: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; the keys are the metrics' names."""
        return {
            "fvd": self.value,
            "fvd_infinity": self.infinity,
            "fvd_interval": None if self.interval is None else list(self.interval),
            "fvd_bias": self.bias,
            **self.scores,
            "num_real": self.num_real,
            "num_fake": self.num_fake,
            "protocol": self.protocol.as_dict(),
            "weights": self.weights,
            "notes": list(self.notes),
        }

    def describe(self, label: str = "FVD") -> list[str]:
        """The value, the other scores and the whole protocol as lines of text, wherever the value is printed.

        Args:
            label: What the value is called, as "rFVD" for reconstructions.
        """
        lines = [str(self).replace("FVD", label, 1)]
        scores = [f"{name} {value:.4g}" for name, value in self.scores.items() if value is not None]
        if scores:
            lines.append(", ".join(scores))
        infinity = "none (too few clips)" if self.infinity is None else f"{self.infinity:.2f}"
        return [
            *lines,
            f"bias at least {self.bias:.2f}, at infinity {infinity}",
            f"{self.protocol}; weights {self.weights}",
        ]

    def __str__(self) -> str:
        frames = "all" if self.protocol.num_frames is None else str(self.protocol.num_frames)
        spread = "" if self.interval is None else f" [{self.interval[0]:.2f}, {self.interval[1]:.2f}]"
        return (
            f"FVD {self.value:.2f}{spread} (protocol {self.protocol.name}, {frames} frames, stride "
            f"{self.protocol.stride}, {self.num_real} real and {self.num_fake} fake clips)"
        )
