"""VBench's dimensions in kinema (Huang et al. 2024, "Comprehensive Benchmark Suite for Video Generative Models").

Only those that one of our metrics corresponds to, and what differs. VBench's total, (4 · quality + semantic) / 5 of
rescaled means over 16 dimensions, cannot be had from these, so none is offered; nor can a value stand beside those of
VBench's own leaderboard unless `same_network` says so and the prompts and the sampling are VBench's too.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from kinema.eval.metrics import GENERATION_METRICS as METRICS


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A dimension of VBench.

    Attributes:
        metric: Our metric of it, in `kinema.eval.metrics.METRICS`.
        scale: VBench's value is ours times this.
        network: What VBench uses.
        role: What our network is called in a report's `protocol["networks"]`; None: there is none.
        identity: The name of our network there when it is VBench's; None: it never is.
        difference: What else differs.
    """

    metric: str
    scale: float = 1.0
    network: str
    role: str | None = None
    identity: str | None = None
    difference: str


@dataclass(frozen=True, kw_only=True)
class VBenchScore:
    """One of our numbers under VBench's name.

    Attributes:
        name: VBench's.
        value: On VBench's scale.
        metric: Ours.
        vbench_network: What VBench uses.
        network: What was used here.
        same_network: Whether it was the same.
        difference: What else differs.
    """

    name: str
    value: float
    metric: str
    vbench_network: str
    network: str
    same_network: bool
    difference: str

    def as_dict(self) -> dict[str, Any]:
        """All but the name, as JSON takes it."""
        return {key: value for key, value in asdict(self).items() if key != "name"}


VBENCH: Mapping[str, Dimension] = MappingProxyType(
    {
        "subject_consistency": Dimension(
            metric="frame_consistency",
            network="DINO ViT-B/16",
            role="frame_consistency",
            identity="facebook/dino-vitb16",
            difference="a mean over clips, not over the frames of all clips",
        ),
        "background_consistency": Dimension(
            metric="frame_consistency",
            network="CLIP ViT-B/32",
            role="frame_consistency",
            identity="openai/clip-vit-base-patch32",
            difference="a mean over clips, not over the frames of all clips",
        ),
        "temporal_flickering": Dimension(
            metric="temporal_flickering",
            network="none",
            difference="VBench leaves out clips that move, by RAFT; here every clip counts",
        ),
        "motion_smoothness": Dimension(
            metric="motion_smoothness",
            network="AMT-S, frame interpolation",
            role="flow",
            difference="frames are warped to the middle, and what becomes visible there is not painted, so values lie"
            " somewhat lower",
        ),
        "dynamic_degree": Dimension(
            metric="dynamic_degree",
            network="RAFT (things), 20 updates",
            role="flow",
            difference="12 updates of RAFT in place of 20; frames below 256 pixels are enlarged for it; in a clip of"
            " two frames one pair must move, while VBench calls all such clips dynamic",
        ),
        "overall_consistency": Dimension(
            metric="clip_score",
            scale=0.01,
            network="ViCLIP, one vector for 8 frames",
            role="clip",
            difference="a cosine of frames and prompt, not of the whole clip and prompt",
        ),
    }
)
"""VBench's names -> ours."""

assert all(dimension.metric in METRICS for dimension in VBENCH.values())


def vbench_scores(
    metrics: Mapping[str, float | None], *, consistency: str | None = None, networks: Mapping[str, str] | None = None
) -> list[VBenchScore]:
    """A report's metrics under VBench's names, on VBench's scale.

    Args:
        metrics: Numbers by our names, as `GenerationReport.metrics`; others than VBench's are left out.
        consistency: Which dimension `frame_consistency` stands for: "background_consistency" when its features are of a
            CLIP, "subject_consistency" when they are of another network of pictures; None: neither.
        networks: The networks that were used, by role, as in a report's protocol.
    """
    both = ("subject_consistency", "background_consistency")
    result: list[VBenchScore] = []
    for name, dimension in VBENCH.items():
        value = metrics.get(dimension.metric)
        if value is None or (name in both and name != consistency):
            continue
        used = "none" if dimension.role is None else (networks or {}).get(dimension.role, "not stated")
        result.append(
            VBenchScore(
                name=name,
                value=value * dimension.scale,
                metric=dimension.metric,
                vbench_network=dimension.network,
                network=used,
                same_network=dimension.role is None or used == dimension.identity,
                difference=dimension.difference,
            )
        )
    return result
