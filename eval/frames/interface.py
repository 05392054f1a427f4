"""What the function `make` of a frame metric's module returns."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
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
