"""Base class of the transformer families that the plugin supports.

Shapes: b batch, n tokens, h heads, d head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.generation.attention.architecture import Architecture
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.forward import ForwardPlan

Entry = tuple[nn.Module, Callable[[ForwardPlan, Any], Any]]
"""A module before the blocks, and a function that reorders its output: tokens, or values for each token."""


class SparseProcessor:
    """An attention processor that follows the plan that is passed along with the rotary tables.

    The stock processor runs if there is no plan, or if the plan requires dense attention.

    Args:
        stock: the processor that this one replaces.
        layer: index of the block.
    """

    def __init__(self, stock: Any, layer: int) -> None:
        self.stock = stock
        self.layer = layer

    @property
    def _attention_backend(self) -> Any:
        """diffusers' setting of the dense attention backend, forwarded to the stock processor."""
        return self.stock._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.stock._attention_backend = backend

    def _plan(self, rotary: Any) -> tuple[tuple[Tensor, Tensor] | None, ForwardPlan | None]:
        """Split into rotary tables and the plan; the plan is None if the stock processor should run."""
        if rotary is None or len(rotary) == 2:
            return rotary, None
        cos, sin, plan = rotary
        return None if cos is None else (cos, sin), None if plan.uses_stock_attention(self.layer) else plan


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply the rotary embedding to neighbouring pairs (RoFormer, arXiv 2104.09864, eq. 34), in float32.

    Args:
        x: ``(..., d)``.
        rotary: (cos, sin), each value repeated for both channels of a pair, broadcastable to `x`; None: no embedding.
    """
    if rotary is None:
        return x
    cos, sin = rotary
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((-second, first), dim=-1).flatten(-2)
    return (x.float() * cos + rotated * sin).to(x.dtype)


def norm_and_rotate(x: Tensor, norm: Any, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Normalise queries or keys, and apply the rotary embedding to the n video tokens, which come first.

    Args:
        x: ``(b, n + e, h, d)``.
        norm: a normalisation module; None: no normalisation.
        rotary: (cos, sin), ``(n, d)`` each; None: no embedding.
    """
    x = x if norm is None else norm(x)
    if rotary is None:
        return x
    cos, sin = (table[:, None] for table in rotary)
    return torch.cat((rotate(x[:, : len(cos)], (cos, sin)), x[:, len(cos) :]), dim=1)


class TransformerFamily(ABC):
    """How the transformers of one diffusers class arrange their tokens, and the sizes of its published models.

    Attributes:
        processor: class of the attention processors.
        sizes: sizes of the published models by name, for `kinema attention report`.
    """

    processor: ClassVar[type[SparseProcessor]]
    sizes: ClassVar[dict[str, Architecture]] = {}

    @abstractmethod
    def attentions(self, transformer: Any) -> Sequence[Any]:
        """Return the attention module of each block with attention between video tokens."""

    @abstractmethod
    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        """Return the token grid of a forward call, and the number of extra tokens before the video tokens."""

    @abstractmethod
    def entries(self, transformer: Any) -> Sequence[Entry]:
        """Return where tokens and per-token values enter the blocks. They leave at ``transformer.norm_out``."""

    def can_reorder(self, transformer: Any) -> bool:
        """Whether the blocks treat all tokens alike, so that tokens may be reordered."""
        return True

    def prepare(self, plan: ForwardPlan, arguments: dict[str, Any]) -> bool:
        """Modify the arguments if they carry the plan or per-token values; return whether they were modified."""
        return False


def patched_grid(latents: Any, axes: Sequence[int], patch: Sequence[int]) -> Grid:
    """Return the token grid of latents that are divided into patches.

    Raises:
        KinemaError: `latents` are smaller than a patch, or do not have five axes.
    """
    if latents.ndim != 5:
        raise KinemaError(f"`hidden_states` (of shape {tuple(latents.shape)}) must have five axes")
    return Grid(*(latents.shape[axis] // size for axis, size in zip(axes, patch, strict=True)))
