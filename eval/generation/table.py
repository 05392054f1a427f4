"""The table of metrics of generated clips. A new one is one file with a function `make`, and one line here."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from kinema.errors import KinemaError


@dataclass(frozen=True, kw_only=True)
class GenerationMetric:
    """A row of the table.

    Attributes:
        module: Whose `make(networks)` gives the measure. Of a "clip" that is a function of a `looks.Look` to
            `looks.Scores`; of a "set" an object with `update(look, real)` and `compute()`, which gives numbers by the
            metrics' names: several metrics may share one.
        kind: "clip" is a number for every clip; "set" one number for all clips, against reference clips.
        higher_is_better: Whether more is better; None where neither is.
        title: As in the head of a table.
        network: What it needs: "clip", which the user must name; "frames" for the frame network; a name in
            `kinema weights`; None: nothing.
        settings: Settings of `looks.Networks` on which its value depends: reports state them.
    """

    module: str
    kind: Literal["clip", "set"] = "clip"
    higher_is_better: bool | None = True
    title: str
    network: str | None = None
    settings: tuple[str, ...] = ()

    @property
    def make(self) -> Callable[[Any], Any]:
        """The measure's maker."""
        return importlib.import_module(self.module).make


METRICS: Mapping[str, GenerationMetric] = MappingProxyType(
    {
        "clip_score": GenerationMetric(module="kinema.eval.text.clip_score", title="CLIPScore", network="clip"),
        "frame_consistency": GenerationMetric(
            module="kinema.eval.text.frame_consistency", title="Frame consistency", network="frames"
        ),
        # A still clip has none, a wild one much: what is wanted depends on the prompt.
        "dynamic_degree": GenerationMetric(
            module="kinema.eval.motion.dynamic_degree",
            title="Dynamic degree",
            network="raft",
            higher_is_better=None,
            settings=("fps", "flow_side"),
        ),
        "motion_smoothness": GenerationMetric(
            module="kinema.eval.motion.motion_smoothness",
            title="Motion smoothness",
            network="raft",
            settings=("flow_side",),
        ),
        "temporal_flickering": GenerationMetric(
            module="kinema.eval.motion.temporal_flickering", title="Temporal flickering"
        ),
        "stream_t": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-T",
            network="frames",
            settings=("stream_frames",),
        ),
        "stream_f": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-F",
            network="frames",
            settings=("stream_frames",),
        ),
        "stream_d": GenerationMetric(
            module="kinema.eval.motion.stream",
            kind="set",
            title="STREAM-D",
            network="frames",
            settings=("stream_frames",),
        ),
    }
)
"""Every metric of generated clips by the name that commands, JSON files and reports use."""

DEFAULT_METRICS = ("frame_consistency", "dynamic_degree", "motion_smoothness", "temporal_flickering")
"""Those that need no reference clips and no network that the user must name."""


def check_metrics(names: Sequence[str], *, clip: bool, reference: bool) -> None:
    """Raise `KinemaError` unless every name is in the table, once, at least one, and what they need is given.

    Args:
        names: The metrics.
        clip: Whether a CLIP was named.
        reference: Whether there are reference clips.
    """
    known = ", ".join(METRICS)
    if not names:
        raise KinemaError(f"`metrics` (={list(names)}) must be at least one of {known}")
    for name in names:
        if name not in METRICS:
            raise KinemaError(f"`metrics` (={name!r}) must be one of {known}")
        if METRICS[name].network == "clip" and not clip:
            raise KinemaError(f"`clip` (=None) must name a CLIP, by hub id or folder, for the metric {name!r}")
        if METRICS[name].kind == "set" and not reference:
            raise KinemaError(f"`reference` (=None) must be clips to compare with, for the metric {name!r}")
    if len(set(names)) < len(names):
        raise KinemaError(f"`metrics` (={list(names)}) must name every metric once")
