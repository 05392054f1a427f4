"""Tokens wherever memory has them, and memory that is used again and again within a call.

Shapes: b batch, h heads, n tokens, d head width.
"""

from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of all heads and clips as rows, in whatever order and with whatever else between them.

    Attributes:
        rows: the memory from the first token to the last, seen as rows.
        strides: rows from a clip, a head, a token to the next.
    """

    rows: Float[Tensor, "_ d"]
    strides: tuple[int, int, int]

    @classmethod
    def of(cls, x: Float[Tensor, "b h n d"]) -> "Tokens":
        """Those of a tensor; a view where its numbers stand in rows, as those of transposed and sliced tensors do."""
        x = x if _has_rows(x) else x.contiguous()
        width = x.shape[3]
        # Where there is one clip, head or token only, a stride says nothing.
        clip, head, token = (
            stride // width * (size > 1) for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)
        )
        last = sum((size - 1) * stride for size, stride in zip(x.shape[:3], (clip, head, token), strict=True))
        return cls(x.as_strided((last + 1, width), (width, 1)), (clip, head, token))

    def index(self, lanes: Int[Tensor, "l r"], num_heads: int, places: Int[Tensor, "r x"]) -> Int[Tensor, " lrx"]:
        """Rows of tokens at places of lanes, which are heads, those of the second clip behind those of the first."""
        clip, head, token = self.strides
        first = lanes // num_heads * clip + lanes % num_heads * head
        return (first[:, :, None] + places * token).flatten()


def _has_rows(x: Tensor) -> bool:
    return x.stride(3) == 1 and not any(
        stride % x.shape[3] for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1
    )


def zeros_like(x: Float[Tensor, "b h n d"], dtype: torch.dtype | None = None) -> Float[Tensor, "b h n d"]:
    """Zeros that stand as those of another tensor, but in rows."""
    return empty_like(x, dtype).zero_()


def empty_like(x: Float[Tensor, "b h n d"], dtype: torch.dtype | None = None) -> Float[Tensor, "b h n d"]:
    """Memory of the shape of another tensor, that stands as that does, but in rows."""
    empty = torch.empty_like(x, dtype=dtype)
    return empty if _has_rows(empty) else torch.empty_like(empty, memory_format=torch.contiguous_format)


class Space:
    """Named buffers, as large as the largest tensor they held. What a name held is lost when it is used again.

    New memory costs a CPU more than the copy that fills it: pages are handed over, and zeroed, one by one.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def _take(self, name: str, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size, held = prod(shape), self._buffers.get(name)
        if held is None or held.numel() < size or held.dtype != dtype:
            held = self._buffers[name] = like.new_empty(size, dtype=dtype)
        return held[:size].view(shape)

    def select(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """``x[index]``."""
        return torch.index_select(x, 0, index, out=self._take(name, x, (len(index), *x.shape[1:]), x.dtype))

    def to(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in another type; itself where it has it already."""
        return x if x.dtype == dtype else self._take(name, x, tuple(x.shape), dtype).copy_(x)
