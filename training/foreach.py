"""Operations on many tensors at once, which torch has under private names, and lists of tensors in parts for them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_MOST_NUMBERS = 2**26
"""Of a part; a tensor with more is a part of its own."""

_torch: Any = torch
foreach_add_: Callable[..., None] = _torch._foreach_add_
foreach_copy_: Callable[..., None] = _torch._foreach_copy_
foreach_lerp_: Callable[..., None] = _torch._foreach_lerp_
foreach_mul_: Callable[..., None] = _torch._foreach_mul_
foreach_sub: Callable[..., list[Tensor]] = _torch._foreach_sub


def in_chunks(*lists: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yields corresponding parts of lists of tensors, so that temporary copies of a part stay small.

    Args:
        lists: of equal length; sizes are those of the first.
    """
    first, size = 0, 0
    for index, tensor in enumerate(lists[0]):
        if index > first and size + tensor.numel() > _MOST_NUMBERS:
            yield tuple(list(tensors[first:index]) for tensors in lists)
            first, size = index, 0
        size += tensor.numel()
    if len(lists[0]) > first:
        yield tuple(list(tensors[first:]) for tensors in lists)
