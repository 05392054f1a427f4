"""VBench's dimensions in kinema (Huang et al. 2024, "Comprehensive Benchmark Suite for Video Generative Models").

Only those that one of our metrics corresponds to, and what differs. VBench's total, (4 · quality + semantic) / 5 of
rescaled means over 16 dimensions, cannot be had from these, so none is offered; nor can a value stand beside those of
VBench's own leaderboard unless `same_network` says so and the prompts and the sampling are VBench's too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kinema.eval.generation.table import METRICS


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A dimension of VBench.

    Attributes:
        metric: Our metric of it, in `kinema.eval.generation.METRICS`.
        scale: VBench's value is ours times this.
        network: What VBench uses.
        ours: What we use.
        same_network: Whether the two can be the same.
        difference: What else differs.
    """

    metric: str
    scale: float = 1.0
    network: str
    ours: str
    same_network: bool
    difference: str


VBENCH: Mapping[str, Dimension] = MappingProxyType(
    {
        "subject_consistency": Dimension(
            metric="frame_consistency",
            network="DINO ViT-B/16",
            ours="EfficientNet-lite0, or any vision model: `facebook/dino-vitb16` is VBench's",
            same_network=True,
            difference="a mean over clips, not over the frames of all clips",
        ),
        "background_consistency": Dimension(
            metric="frame_consistency",
            network="CLIP ViT-B/32",
            ours="any CLIP: `openai/clip-vit-base-patch32` is VBench's",
            same_network=True,
            difference="a mean over clips, not over the frames of all clips",
        ),
        "temporal_flickering": Dimension(
            metric="temporal_flickering",
            network="none",
            ours="none",
            same_network=True,
            difference="VBench leaves out clips that move, by RAFT; here every clip counts",
        ),
        "motion_smoothness": Dimension(
            metric="motion_smoothness",
            network="AMT-S, frame interpolation",
            ours="RAFT, warped to the middle",
            same_network=False,
            difference="what becomes visible between two frames is not painted, so values lie somewhat lower",
        ),
        "dynamic_degree": Dimension(
            metric="dynamic_degree",
            network="RAFT (things), 20 updates",
            ours="RAFT (things), 12 updates",
            same_network=True,
            difference="frames below 256 pixels are enlarged for RAFT; in a clip of two frames one pair must move,"
            " while VBench calls all such clips dynamic",
        ),
        "overall_consistency": Dimension(
            metric="clip_score",
            scale=0.01,
            network="ViCLIP, one vector for 8 frames",
            ours="any CLIP, one vector a frame",
            same_network=False,
            difference="a cosine of frames and prompt, not of the whole clip and prompt",
        ),
    }
)
"""VBench's names -> ours."""

assert all(dimension.metric in METRICS for dimension in VBENCH.values())


def vbench_scores(metrics: Mapping[str, float | None], consistency: str | None = None) -> dict[str, float]:
    """A report's metrics under VBench's names, on VBench's scale.

    Args:
        metrics: Numbers by our names, as `GenerationReport.metrics`; others than VBench's are left out.
        consistency: Which dimension `frame_consistency` stands for: "subject_consistency" when its features are of a
            vision model as DINO, "background_consistency" when they are of a CLIP; None: neither, as of EfficientNet.
    """
    both = ("subject_consistency", "background_consistency")
    result = {}
    for name, dimension in VBENCH.items():
        value = metrics.get(dimension.metric)
        if value is not None and (name not in both or name == consistency):
            result[name] = value * dimension.scale
    return result
