"""The table of metrics. A new metric is one file with a function `make`, and one entry here.

Importing it imports no torch: a metric's module is imported when its `make` is asked for.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from kinema.errors import KinemaError

Inputs = Literal["frame pairs", "frame sets", "clip", "clip sets", "feature sets", "generated features"]


@dataclass(frozen=True)
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
    _: KW_ONLY
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


_LPIPS = "kinema.eval.frames.lpips"
_MOTION = "kinema.eval.motion"
_DISTRIBUTIONS = "kinema.eval.distributions"

# Columns: name, title, help, direction, inputs, module; then what differs from the defaults.
# fmt: off
for _spec in (
    MetricSpec("psnr", "PSNR (dB)", "peak signal-to-noise ratio", "higher", "frame pairs", "kinema.eval.frames.psnr"),
    MetricSpec("ssim", "SSIM", "structural similarity", "higher", "frame pairs", "kinema.eval.frames.ssim"),
    MetricSpec("ms_ssim", "MS-SSIM", "multi-scale SSIM", "higher", "frame pairs", "kinema.eval.frames.ms_ssim"),
    MetricSpec("lpips_alex", "LPIPS (AlexNet)", "perceptual distance, AlexNet", "lower", "frame pairs", _LPIPS,
               network="lpips-alex", options=MappingProxyType({"net": "alex"})),
    MetricSpec("lpips_vgg", "LPIPS (VGG)", "perceptual distance, VGG", "lower", "frame pairs", _LPIPS,
               network="lpips-vgg", options=MappingProxyType({"net": "vgg"})),
    # VMAF's motion is the smaller of those from the previous frame and to the next.
    MetricSpec("vmaf", "VMAF", "Netflix's fusion of perceptual features", "higher", "frame pairs",
               "kinema.eval.frames.vmaf", before=1, after=1),
    MetricSpec("warping_error", "Warping error", "distance to the previous frame warped along the optical flow",
               "lower", "frame pairs", "kinema.eval.frames.warping_error", network="raft", before=1),
    MetricSpec("flicker", "Flicker (levels)", "change from frame to frame that the reference does not have",
               "lower", "frame pairs", "kinema.eval.frames.flicker", before=1),
    MetricSpec("fid", "FID", "Fréchet distance of Inception features of frames", "lower", "frame sets",
               "kinema.eval.frames.fid", network="inception"),
    MetricSpec("kid", "KID", "kernel distance of Inception features of frames", "lower", "frame sets",
               "kinema.eval.frames.kid", network="inception"),
    MetricSpec("clip_score", "CLIPScore", "similarity of frames and prompt, needs a CLIP", "higher", "clip",
               "kinema.eval.text.clip_score", network="clip"),
    MetricSpec("frame_consistency", "Frame consistency", "similarity of features between frames", "higher", "clip",
               "kinema.eval.text.frame_consistency", network="frames"),
    # The prompt decides how much a clip should move.
    MetricSpec("dynamic_degree", "Dynamic degree", "share of clips that move, by optical flow", "neither", "clip",
               f"{_MOTION}.dynamic_degree", network="raft", settings=("fps", "flow_side")),
    MetricSpec("motion_smoothness", "Motion smoothness", "how well neighbours predict every second frame", "higher",
               "clip", f"{_MOTION}.motion_smoothness", network="raft", settings=("flow_side",)),
    MetricSpec("temporal_flickering", "Temporal flickering", "how little pixels change from frame to frame", "higher",
               "clip", f"{_MOTION}.temporal_flickering"),
    *(MetricSpec(name, title, f"{help}, against real clips", "higher", "clip sets", f"{_MOTION}.stream",
                 network="frames", settings=("stream_frames",), min_clips=6)
      for name, title, help in (
          ("stream_t", "STREAM-T", "change over time"),
          ("stream_f", "STREAM-F", "fidelity"),
          ("stream_d", "STREAM-D", "diversity"),
      )),
    MetricSpec("kvd", "KVD (cubic kernel, unbiased)", "kernel video distance", "lower", "feature sets",
               f"{_DISTRIBUTIONS}.mmd", network="i3d", options=MappingProxyType({"score": "kvd"})),
    MetricSpec("mmd", "MMD (quadratic kernel, biased, times 100)", "maximum mean discrepancy, as JEDi's", "lower",
               "feature sets", f"{_DISTRIBUTIONS}.mmd", network="i3d", options=MappingProxyType({"score": "mmd"})),
    *(MetricSpec(name, name.capitalize(), help, "higher", "feature sets", f"{_DISTRIBUTIONS}.manifold", network="i3d")
      for name, help in (
          ("precision", "share of generated clips near a real one"),
          ("recall", "share of real clips near a generated one"),
          ("density", "number of real clips near a generated one"),
          ("coverage", "share of real clips with a generated one near"),
      )),
    MetricSpec("inception_score", "Video inception score", "confident and varied classes", "higher",
               "generated features", f"{_DISTRIBUTIONS}.inception_score", network="i3d"),
):
    add_metric(_spec)
# fmt: on
