"""FLOP counting with the same result on every version of torch.

torch's counter counts operations without a formula as zero, and which attention kernels lack one depends on its
version. The formulas here are kinema's, and a test checks that every attention kernel has one.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


class FlopCounter(FlopCounterMode):
    """Counts FLOPs: `with FlopCounter() as counter: model(x)`, then `counter.get_total_flops()`.

    A multiply-add counts as two FLOPs. Matrix products, convolutions and `scaled_dot_product_attention` are counted,
    forward and backward, including padding and masked pairs; biases, softmax, norms, activations and FlexAttention are
    not. Counting also works on the meta device. `get_flop_counts()` returns counts by module and operation.
    """

    def __init__(self) -> None:
        formulas = _formulas()
        super().__init__(display=False, custom_mapping=formulas)
        self.flop_registry = {operation: self.flop_registry[operation] for operation in formulas}


def _product(left: Shape, right: Shape, **_: Any) -> int:
    """Count the product (..., m, k) · (..., k, n), where either matrix may be a vector."""
    return 2 * prod(left) * (right[-1] if len(right) > 1 else 1)


def _added_product(added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return _product(left, right)


def _convolution(
    x: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any,
    out_shape: Shape, **_: Any,
) -> int:  # fmt: skip
    """Count a convolution, with weights (out, in / groups, ...), or (in, out / groups, ...) if transposed."""
    return 2 * prod(x if transposed else out_shape) * prod(weight[1:])


def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """Count the gradients of input and weight, if requested; each costs as much as the forward pass."""
    return sum(output_mask[:2]) * 2 * prod(x if transposed else grad) * prod(weight[1:])


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    """Count scores and weighted sums of values, of shape (b, heads, n, d); keys and values may have fewer heads."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    """Count recomputed scores and the gradients of queries, keys, values and attention weights."""
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


_KERNELS = (
    *("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"),
    *("fused_attention_overrideable", "attention_math_for_mps"),
)
_FORMULAS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), _product),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added_product),
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), _convolution),
    "convolution_backward": _convolution_backward,
    **{f"_scaled_dot_product_{kernel}": _attention for kernel in _KERNELS},
    **{f"_scaled_dot_product_{kernel}_backward": _attention_backward for kernel in _KERNELS},
}


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the formulas of the operations that exist in this version of torch."""
    aten = torch.ops.aten
    return {getattr(aten, name): formula for name, formula in _FORMULAS.items() if hasattr(aten, name)}
