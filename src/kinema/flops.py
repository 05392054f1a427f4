"""FLOPs of the operations that run in a block of code, the same on every version of torch.

torch's own counter has no formula for some attention kernels, and which ones depends on its version: what has no
formula counts as zero. All formulas used here are kinema's, and a test checks that every attention kernel has one.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


class FlopCounter(FlopCounterMode):
    """Counts FLOPs: `with FlopCounter() as counter: model(x)`, then `counter.get_total_flops()`.

    A multiply-add is two FLOPs. Matrix products, convolutions and `scaled_dot_product_attention` are counted, forward
    and backward, including padding and masked pairs; biases, softmax, norms, activations and FlexAttention are not. On
    the meta device the count is the same and nothing is computed. `get_flop_counts()` gives it by module and operation.
    """

    def __init__(self) -> None:
        formulas = _formulas()
        super().__init__(display=False, custom_mapping=formulas)
        self.flop_registry = {operation: self.flop_registry[operation] for operation in formulas}


def _product(left: Shape, right: Shape, **_: Any) -> int:
    """(..., m, k) · (..., k, n), or with a vector in place of either matrix."""
    return 2 * prod(left) * (right[-1] if len(right) > 1 else 1)


def _added_product(added: Shape, left: Shape, right: Shape, **_: Any) -> int:
    return _product(left, right)


def _convolution(
    x: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any,
    out_shape: Shape, **_: Any,
) -> int:  # fmt: skip
    """Weights are (out, in / groups, ...), and (in, out / groups, ...) of a transposed convolution."""
    return 2 * prod(x if transposed else out_shape) * prod(weight[1:])


def _convolution_backward(
    grad: Shape, x: Shape, weight: Shape, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    """The gradient of the input and that of the weight, where asked for, cost as much as the forward pass each."""
    return sum(output_mask[:2]) * 2 * prod(x if transposed else grad) * prod(weight[1:])


def _attention(query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    """Scores, and the weighted sums of values. Shapes are (b, heads, n, d); keys and values may have fewer heads."""
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad: Shape, query: Shape, key: Shape, value: Shape, *rest: Any, **_: Any) -> int:
    """Scores once more, then the gradients of queries and keys, of values and of attention weights."""
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
    """The formulas of the operations that this version of torch has."""
    aten = torch.ops.aten
    return {getattr(aten, name): formula for name, formula in _FORMULAS.items() if hasattr(aten, name)}
