"""Memory that is used again and again within a call.

New memory costs a CPU more than the copy that fills it: pages are handed over, and zeroed, one by one.
"""

from math import prod

import torch
from torch import Tensor


class Space:
    """Named buffers, as large as the largest tensor they held. What a name held is lost when it is used again."""

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

    def cat(self, name: str, first: Tensor, second: Tensor) -> Tensor:
        """Both, one behind the other along the second axis."""
        shape = (len(first), first.shape[1] + second.shape[1], *first.shape[2:])
        return torch.cat((first, second), dim=1, out=self._take(name, first, shape, first.dtype))

    def to(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in another type; itself where it has it already."""
        return x if x.dtype == dtype else self._take(name, x, tuple(x.shape), dtype).copy_(x)
