"""The table of metrics. A new metric is one file with a function `make`, and one entry here.

Importing it imports no torch: a metric's module is imported when its `make` is asked for.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from kinema.errors import KinemaError

Inputs = Literal["frame pairs", "frame sets", "clip", "clip sets", "feature sets", "generated features"]


@dataclass(frozen=True, kw_only=True)
class MetricSpec:
    """One metric: what it is called, what it compares, and where its code is.

    Attributes:
        name: As in commands, JSON files and reports.
        title: As in tables and plots, with the unit.
        help: One phrase for `--help`.
        direction: Which values are better; "neither" where that depends on what is wanted.
        inputs: What it measures, and what its `make` takes and returns:
            "frame pairs": `make(device, weights)` returns a `frames.FrameMeasure`, a value per frame.
            "frame sets": `make(device)` returns a `frames.SetMeasure`, one value for all frames.
            "clip": `make(networks)` returns a `generation.looks.ClipMeasure`, a value per generated clip.
            "clip sets": `make(networks)` returns an object with `update(look, real)` and `compute()`, a mapping from
            metric name to value; metrics of one module share it.
            "feature sets": `make()` returns a function of the I3D features of real and generated videos, `n d` and
            `m d`, to a mapping from metric name to value or None; metrics of one module share it.
            "generated features": The same, but the features of the real videos are not used and may be empty.
        module: The module with the function `make`.
        options: Keyword arguments of `make`.
        network: The weights that it needs, by name in `kinema weights`; "clip": a CLIP that the user must name;
            "frames": the frame network; None: none.
        before: Frames before a frame on which its value depends, so that long clips are measured in windows.
        after: Frames after it, likewise.
        settings: Attributes of `generation.looks.Networks` on which its value depends; reports state them.
        min_clips: Clips that it needs on either side.
    """

    name: str
    title: str
    help: str
    direction: Literal["higher", "lower", "neither"]
    inputs: Inputs
    module: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    network: str | None = None
    before: int = 0
    after: int = 0
    settings: tuple[str, ...] = ()
    min_clips: int = 1

    @property
    def make(self) -> Callable[..., Any]:
        """The function `make` of its module, with `options`."""
        return partial(importlib.import_module(self.module).make, **self.options)

    @property
    def remark(self) -> str:
        """Which values are better, in words."""
        return "neither more nor less is better" if self.direction == "neither" else f"{self.direction} is better"


METRICS: dict[str, MetricSpec] = {}
"""Every metric by its name; `add_metric` adds to it."""


def add_metric(spec: MetricSpec) -> None:
    """Adds a metric to commands, their help and reports.

    Raises:
        KinemaError: There is one of this name.
    """
    if spec.name in METRICS:
        raise KinemaError(f"`name` (={spec.name!r}) must not be the name of another metric")
    METRICS[spec.name] = spec


class MetricFamily(Mapping[str, MetricSpec]):
    """The metrics of `METRICS` with some kinds of inputs, by name, including those added later."""

    def __init__(self, *inputs: Inputs) -> None:
        self.inputs = inputs

    def __getitem__(self, name: str) -> MetricSpec:
        if METRICS[name].inputs not in self.inputs:
            raise KeyError(name)
        return METRICS[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, spec in METRICS.items() if spec.inputs in self.inputs)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def check(self, names: Sequence[str]) -> None:
        """Raises `KinemaError` unless `names` has at least one name, each of this family and none twice."""
        known = ", ".join(self)
        if not names:
            raise KinemaError(f"`metrics` (={list(names)}) must be at least one of {known}")
        for name in names:
            if name not in self:
                raise KinemaError(f"`metrics` (={name!r}) must be one of {known}")
        if len(set(names)) < len(names):
            raise KinemaError(f"`metrics` (={list(names)}) must name every metric once")

    def describe(self) -> str:
        """Names and what they are, for `--help`."""
        return ", ".join(f"{name} ({spec.help})" for name, spec in self.items())

    def networks(self, names: Collection[str]) -> dict[str, str]:
        """The network of each of the named metrics that has one."""
        return {name: network for name in names if (network := self[name].network) is not None}


FRAME_METRICS = MetricFamily("frame pairs", "frame sets")
"""Of clips against references of the same length and size."""

GENERATION_METRICS = MetricFamily("clip", "clip sets")
"""Of generated clips."""

FEATURE_METRICS = MetricFamily("feature sets", "generated features")
"""Of I3D features, beside FVD."""


_STREAM: Mapping[str, Any] = MappingProxyType(
    {
        "direction": "higher",
        "inputs": "clip sets",
        "module": "kinema.eval.motion.stream",
        "network": "frames",
        "settings": ("stream_frames",),
        "min_clips": 6,
    }
)
_MANIFOLD: Mapping[str, Any] = MappingProxyType(
    {
        "direction": "higher",
        "inputs": "feature sets",
        "module": "kinema.eval.distributions.manifold",
        "network": "i3d",
    }
)

for _spec in (
    MetricSpec(
        name="psnr",
        title="PSNR (dB)",
        help="peak signal-to-noise ratio",
        direction="higher",
        inputs="frame pairs",
        module="kinema.eval.frames.psnr",
    ),
    MetricSpec(
        name="ssim",
        title="SSIM",
        help="structural similarity",
        direction="higher",
        inputs="frame pairs",
        module="kinema.eval.frames.ssim",
    ),
    MetricSpec(
        name="ms_ssim",
        title="MS-SSIM",
        help="multi-scale structural similarity",
        direction="higher",
        inputs="frame pairs",
        module="kinema.eval.frames.ms_ssim",
    ),
    MetricSpec(
        name="lpips_alex",
        title="LPIPS (AlexNet)",
        help="perceptual distance, AlexNet",
        direction="lower",
        inputs="frame pairs",
        module="kinema.eval.frames.lpips",
        options=MappingProxyType({"net": "alex"}),
        network="lpips-alex",
    ),
    MetricSpec(
        name="lpips_vgg",
        title="LPIPS (VGG)",
        help="perceptual distance, VGG",
        direction="lower",
        inputs="frame pairs",
        module="kinema.eval.frames.lpips",
        options=MappingProxyType({"net": "vgg"}),
        network="lpips-vgg",
    ),
    MetricSpec(
        name="vmaf",
        title="VMAF",
        help="Netflix's fusion of perceptual features",
        direction="higher",
        inputs="frame pairs",
        module="kinema.eval.frames.vmaf",
        before=1,  # its motion is the smaller of those from the previous frame and to the next
        after=1,
    ),
    MetricSpec(
        name="warping_error",
        title="Warping error",
        help="distance to the previous frame warped along the optical flow",
        direction="lower",
        inputs="frame pairs",
        module="kinema.eval.frames.warping_error",
        network="raft",
        before=1,
    ),
    MetricSpec(
        name="flicker",
        title="Flicker (levels)",
        help="change from frame to frame that the reference does not have",
        direction="lower",
        inputs="frame pairs",
        module="kinema.eval.frames.flicker",
        before=1,
    ),
    MetricSpec(
        name="fid",
        title="FID",
        help="Fréchet distance of Inception features of frames",
        direction="lower",
        inputs="frame sets",
        module="kinema.eval.frames.fid",
        network="inception",
    ),
    MetricSpec(
        name="kid",
        title="KID",
        help="kernel distance of Inception features of frames",
        direction="lower",
        inputs="frame sets",
        module="kinema.eval.frames.kid",
        network="inception",
    ),
    MetricSpec(
        name="clip_score",
        title="CLIPScore",
        help="similarity of frames and prompt, needs a CLIP",
        direction="higher",
        inputs="clip",
        module="kinema.eval.text.clip_score",
        network="clip",
    ),
    MetricSpec(
        name="frame_consistency",
        title="Frame consistency",
        help="similarity of features between frames",
        direction="higher",
        inputs="clip",
        module="kinema.eval.text.frame_consistency",
        network="frames",
    ),
    MetricSpec(
        name="dynamic_degree",
        title="Dynamic degree",
        help="share of clips that move, by optical flow",
        direction="neither",  # the prompt decides how much a clip should move
        inputs="clip",
        module="kinema.eval.motion.dynamic_degree",
        network="raft",
        settings=("fps", "flow_side"),
    ),
    MetricSpec(
        name="motion_smoothness",
        title="Motion smoothness",
        help="how well neighbours predict every second frame",
        direction="higher",
        inputs="clip",
        module="kinema.eval.motion.motion_smoothness",
        network="raft",
        settings=("flow_side",),
    ),
    MetricSpec(
        name="temporal_flickering",
        title="Temporal flickering",
        help="how little pixels change from frame to frame",
        direction="higher",
        inputs="clip",
        module="kinema.eval.motion.temporal_flickering",
    ),
    MetricSpec(name="stream_t", title="STREAM-T", help="change over time, against real clips", **_STREAM),
    MetricSpec(name="stream_f", title="STREAM-F", help="fidelity, against real clips", **_STREAM),
    MetricSpec(name="stream_d", title="STREAM-D", help="diversity, against real clips", **_STREAM),
    MetricSpec(
        name="kvd",
        title="KVD (cubic kernel, unbiased)",
        help="kernel video distance",
        direction="lower",
        inputs="feature sets",
        module="kinema.eval.distributions.mmd",
        options=MappingProxyType({"score": "kvd"}),
        network="i3d",
    ),
    MetricSpec(
        name="mmd",
        title="MMD (quadratic kernel, biased, times 100)",
        help="maximum mean discrepancy, as JEDi's",
        direction="lower",
        inputs="feature sets",
        module="kinema.eval.distributions.mmd",
        options=MappingProxyType({"score": "mmd"}),
        network="i3d",
    ),
    MetricSpec(name="precision", title="Precision", help="share of generated clips near a real one", **_MANIFOLD),
    MetricSpec(name="recall", title="Recall", help="share of real clips near a generated one", **_MANIFOLD),
    MetricSpec(name="density", title="Density", help="number of real clips near a generated one", **_MANIFOLD),
    MetricSpec(name="coverage", title="Coverage", help="share of real clips with a generated one near", **_MANIFOLD),
    MetricSpec(
        name="inception_score",
        title="Video inception score",
        help="confident and varied classes",
        direction="higher",
        inputs="generated features",
        module="kinema.eval.distributions.inception_score",
        network="i3d",
    ),
):
    add_metric(_spec)
