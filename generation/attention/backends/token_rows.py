"""Views of tensors as rows of tokens, and reusable buffers.

Shapes: b batch, h heads, n tokens, d head width.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The memory of a ``(b, h, n, d)`` tensor as rows of width d, addressed by clip, head and token.

    Attributes:
        rows: memory from the first token to the last; may contain rows of other tensors.
        strides: distance in rows between clips, heads and tokens.
    """

    rows: Float[Tensor, "_ d"]
    strides: tuple[int, int, int]

    @classmethod
    def of(cls, x: Float[Tensor, "b h n d"]) -> "TokenRows":
        """Make the rows of a tensor: a view where strides allow it, as for transposed and sliced tensors."""
        x = x if _has_rows(x) else x.contiguous()
        width = x.shape[3]
        # The stride of an axis of size 1 is arbitrary.
        clip, head, token = (
            stride // width * (size > 1) for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
        last = sum((size - 1) * stride for size, stride in zip(x.shape[:3], (clip, head, token), strict=True))
        return cls(x.as_strided((last + 1, width), (width, 1)), (clip, head, token))

    def index(self, lanes: Int[Tensor, "l r"], num_heads: int, positions: Int[Tensor, "r x"]) -> Int[Tensor, " lrx"]:
        """Return the rows of tokens at `positions` of `lanes` (heads, numbered clip by clip)."""
        clip, head, token = self.strides
        first = lanes // num_heads * clip + lanes % num_heads * head
        return (first[:, :, None] + positions * token).flatten()


def _has_rows(x: Tensor) -> bool:
    return x.stride(3) == 1 and not any(
        stride % x.shape[3] for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1
    )


def zeros_like(x: Float[Tensor, "b h n d"], dtype: torch.dtype | None = None) -> Float[Tensor, "b h n d"]:
    """`torch.zeros_like` that keeps strides only if they form rows."""
    return empty_like(x, dtype).zero_()


def empty_like(x: Float[Tensor, "b h n d"], dtype: torch.dtype | None = None) -> Float[Tensor, "b h n d"]:
    """`torch.empty_like` that keeps strides only if they form rows."""
    empty = torch.empty_like(x, dtype=dtype)
    return empty if _has_rows(empty) else torch.empty_like(empty, memory_format=torch.contiguous_format)


class Buffers:
    """Named buffers that grow to the largest tensor they held. Reusing a name overwrites its previous tensor.

    On a CPU, allocating new memory costs more than filling it, because the system zeroes new pages.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def _take(self, name: str, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size, held = prod(shape), self._buffers.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            held = self._buffers[name] = like.new_empty(size, dtype=dtype)
        return held[:size].view(shape)

    def select(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """Return ``x[index]`` in the named buffer."""
        return torch.index_select(x, 0, index, out=self._take(name, x, (len(index), *x.shape[1:]), x.dtype))

    def to(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert `x` to a dtype in the named buffer; return `x` itself if it has that dtype."""
        return x if x.dtype == dtype else self._take(name, x, tuple(x.shape), dtype).copy_(x)
