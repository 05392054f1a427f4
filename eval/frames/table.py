"""The table of frame metrics. A new one is one file with a function `make`, and one line here."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from kinema.errors import KinemaError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@runtime_checkable
class FrameMeasure(Protocol):
    """A number for every frame: `(reference, clip)`, both `b c t h w` in [-1, 1] or uint8, to `b t`, on the CPU or not.

    A frame for which the metric is not defined (one without a predecessor, for a metric of motion) is NaN.
    """

    def __call__(self, reference: "Tensor", clip: "Tensor", /) -> "Tensor": ...


@runtime_checkable
class SetMeasure(Protocol):
    """One number for all frames of all clips together, from feature vectors of frames (`features.load_features`)."""

    def update(self, reference: "Tensor", clip: "Tensor") -> None:
        """Counts the features `n d` of some frames of both sides."""
        ...

    def compute(self) -> "Tensor":
        """The number, a scalar, of what was counted so far by all processes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A row of the table.

    Attributes:
        module: File of this package whose `make(device, weights, **options)` gives the measure.
        kind: "frame" gives a `FrameMeasure`, "set" a `SetMeasure`.
        higher_is_better: Whether more is better.
        title: As in the head of a table, with the unit.
        network: Weights that it needs, by their name in `kinema weights`; None: none. For a "set" they are those of
            the features that it compares.
        options: What `make` is given besides.
        before: Frames before a frame on which its number depends, so that long clips can be measured in windows.
        after: Frames after it, likewise.
    """

    module: str
    kind: Literal["frame", "set"] = "frame"
    higher_is_better: bool
    title: str
    network: str | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    before: int = 0
    after: int = 0

    def load(
        self, device: "torch.device | str" = "cpu", weights: str | Path | None = None
    ) -> "FrameMeasure | SetMeasure":
        """The measure, with its network on `device`.

        Args:
            device: Where to compute.
            weights: File of the network's weights; None: the cache, or where `kinema weights` gets them. A "set" loads
                none: its features come from `features.load_features(self.network, ...)`.

        Raises:
            KinemaError: The weights cannot be had.
        """
        import torch

        make = importlib.import_module(f"{__package__}.{self.module}").make
        path = None if weights is None else Path(weights)
        return cast("FrameMeasure | SetMeasure", make(torch.device(device), path, **self.options))


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "psnr": Metric(module="psnr", higher_is_better=True, title="PSNR (dB)"),
        "ssim": Metric(module="ssim", higher_is_better=True, title="SSIM"),
        "ms_ssim": Metric(module="ms_ssim", higher_is_better=True, title="MS-SSIM"),
        "lpips_alex": Metric(
            module="lpips",
            higher_is_better=False,
            title="LPIPS (AlexNet)",
            network="lpips-alex",
            options=MappingProxyType({"net": "alex"}),
        ),
        "lpips_vgg": Metric(
            module="lpips",
            higher_is_better=False,
            title="LPIPS (VGG)",
            network="lpips-vgg",
            options=MappingProxyType({"net": "vgg"}),
        ),
        # Its motion is the smaller of those from the frame before and to the frame after.
        "vmaf": Metric(module="vmaf", higher_is_better=True, title="VMAF", before=1, after=1),
        "warping_error": Metric(
            module="warping_error", higher_is_better=False, title="Warping error", network="raft", before=1
        ),
        "flicker": Metric(module="flicker", higher_is_better=False, title="Flicker (levels)", before=1),
        "fid": Metric(module="fid", kind="set", higher_is_better=False, title="FID", network="inception"),
        "kid": Metric(module="kid", kind="set", higher_is_better=False, title="KID", network="inception"),
    }
)
"""Every frame metric by the name that commands, JSON files and reports use."""


def check_metrics(names: Sequence[str]) -> None:
    """Raise `KinemaError` unless every name is in the table, once, and there is at least one."""
    known = ", ".join(METRICS)
    if not names:
        raise KinemaError(f"`metrics` (={list(names)}) must be at least one of {known}")
    for name in names:
        if name not in METRICS:
            raise KinemaError(f"`metrics` (={name!r}) must be one of {known}")
    if len(set(names)) < len(names):
        raise KinemaError(f"`metrics` (={list(names)}) must name every metric once")
