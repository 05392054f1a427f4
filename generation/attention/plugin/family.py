"""What the plugin needs to know about a family of transformers.

Shapes: b batch, n tokens, h heads, d head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.forward import ForwardPlan

Entry = tuple[nn.Module, Callable[[ForwardPlan, Any], Any]]
"""A module before the blocks, and what becomes of its output: tokens, or what is given for each, put in order."""


class SparseProcessor:
    """An attention processor that follows the plan which comes with the rotary tables.

    Where there is no plan, or it wants dense attention, the stock processor runs.

    Args:
        stock: the processor that was there.
        layer: number of the block.
    """

    def __init__(self, stock: Any, layer: int) -> None:
        self.stock = stock
        self.layer = layer

    @property
    def _attention_backend(self) -> Any:
        """diffusers' setting for dense attention is that of the stock processor."""
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend

    def _plan(self, rotary: Any) -> tuple[tuple[Tensor, Tensor] | None, ForwardPlan | None]:
        """Rotary tables, and the plan where this block should follow it."""
        if rotary is None or len(rotary) == 2:
            return rotary, None
        cos, sin, plan = rotary
        return None if cos is None else (cos, sin), None if plan.is_stock(self.layer) else plan


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Rotary embedding of neighbouring pairs (RoFormer, arXiv 2104.09864, eq. 34), in float32; None: none.

    Args:
        x: ``(..., d)``.
        rotary: (cos, sin), each number twice, in shapes that broadcast with `x`.
    """
    if rotary is None:
        return x
    cos, sin = rotary
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-second, first), dim=-1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)


def turn(x: Tensor, norm: Any, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Heads ``(b, n + e, h, d)``, normalised; those of the n video tokens, which come first, are turned by their place.

    Args:
        x: the heads.
        norm: a module; None: none.
        rotary: (cos, sin), ``(n, d)`` each; None: none.
    """
    x = x if norm is None else norm(x)
    if rotary is None:
        return x
    cos, sin = (table[:, None] for table in rotary)
    return torch.cat((rotate(x[:, : len(cos)], (cos, sin)), x[:, len(cos) :]), dim=1)


class Family(ABC):
    """How the transformers of a family take and pass on their tokens.

    Attributes:
        processor: the attention processor.
    """

    processor: ClassVar[type[SparseProcessor]]

    @abstractmethod
    def attentions(self, transformer: Any) -> Sequence[Any]:
        """The attention module of each block in which video tokens see each other."""

    @abstractmethod
    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        """The grid of a forward with these arguments, and how many extra tokens stand in front of its tokens."""

    @abstractmethod
    def entries(self, transformer: Any) -> Sequence[Entry]:
        """Where tokens, and what is given for each, enter the blocks. They leave at ``transformer.norm_out``."""

    def can_reorder(self, transformer: Any) -> bool:
        """Whether the blocks treat all tokens alike, so that they may come in another order."""
        return True

    def prepare(self, plan: ForwardPlan, arguments: dict[str, Any]) -> bool:
        """Changes the arguments where the plan, or what is put in order, comes with them; whether it did."""
        return False


def patched_grid(latents: Any, axes: Sequence[int], patch: Sequence[int]) -> Grid:
    """The grid of latents that are cut into patches.

    Raises:
        KinemaError: they are smaller than a patch, or no five-dimensional tensor.
    """
    if latents.ndim != 5:
        raise KinemaError(f"`hidden_states` (of shape {tuple(latents.shape)}) must have five axes")
    return Grid(*(latents.shape[axis] // size for axis, size in zip(axes, patch, strict=True)))
