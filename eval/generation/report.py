"""What an evaluation of generated clips found."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kinema.eval.reconstruction import ClipScores

if TYPE_CHECKING:
    from kinema.eval.vbench import VBenchScore


@dataclass(frozen=True, kw_only=True)
class GeneratedClip(ClipScores):
    """What was measured of one generated clip. A number that is not defined is None.

    Attributes:
        prompt: What it should show.
    """

    prompt: str


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What was measured of all generated clips. A number that is not defined is None.

    Attributes:
        metrics: By metric, the mean over clips, or the one number of the set.
        protocol: What the numbers depend on: the networks, frames a second, STREAM's number of frames.
        curves: By metric that has one, the mean over clips of every frame index; clips that are shorter count in as far
            as they go.
        clips: Each clip, in counting order of names.
        num_reference: Reference clips.
        not_measured: Why a metric that was asked for has no number, by metric.
        consistency: The dimension of VBench that frame consistency stands for, by the network of its features: the
            subject's, or the background's of a CLIP; None: it was not measured.
    """

    metrics: Mapping[str, float | None]
    protocol: Mapping[str, Any]
    curves: Mapping[str, Sequence[float | None]] = field(repr=False)
    clips: Sequence[GeneratedClip] = field(repr=False)
    num_reference: int = 0
    not_measured: Mapping[str, str] = field(default_factory=dict)
    consistency: str | None = None

    @property
    def num_frames(self) -> int:
        """Frames of all clips together."""
        return sum(clip.num_frames for clip in self.clips)

    def vbench(self) -> "list[VBenchScore]":
        """What was measured under VBench's names, and with which networks."""
        from kinema.eval.vbench import vbench_scores  # which needs the table beside this file

        return vbench_scores(self.metrics, consistency=self.consistency, networks=self.protocol.get("networks", {}))

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it: the metrics by their names, `vbench` by VBench's names, then all the rest."""
        scores = self.vbench()
        return {
            **self.metrics,
            "vbench": {score.name: score.value for score in scores},
            "vbench_details": {score.name: score.as_dict() for score in scores},
            "not_measured": dict(self.not_measured),
            "protocol": dict(self.protocol),
            "num_clips": len(self.clips),
            "num_frames": self.num_frames,
            "num_reference": self.num_reference,
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "clips": [asdict(clip) for clip in self.clips],
        }
