"""What one forward of a transformer does with its tokens, and which denoising step it belongs to.

Shapes: b batch, n tokens of the grid (s slots where they are arranged), e extra tokens, h heads, d head width.
"""

from typing import Any

import torch
from torch import Tensor

from kinema.generation.attention.functional import sparse_attention
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.patterns import Full, Pattern
from kinema.generation.attention.reduction import TokenReduction
from kinema.generation.attention.schedule import common_order


class ForwardPlan:
    """Patterns of all blocks in one forward, and the order in which its tokens go through them.

    It goes to the attention processors beside the rotary tables, as an argument of the blocks: recomputation under
    gradient checkpointing meets the plan of its own forward. A plain class, because what moves arguments between
    devices (offloading, FSDP) rebuilds tuples and dataclasses, and leaves other objects as they are.

    Attributes:
        grid: the grid.
        batch_size: clips.
        num_leading: extra tokens in front of those of the grid, in the sequence of video tokens.
        patterns: a pattern for each block.
        step: the denoising step; None: outside of sampling.
        backend: name of the backend.
        reduction: merges tokens in blocks that are not dense, all of which see all.
        order: order of the tokens; None: raster order.
    """

    def __init__(
        self,
        grid: Grid,
        patterns: tuple[Pattern, ...],
        *,
        batch_size: int,
        num_leading: int = 0,
        step: int | None = None,
        backend: str = "auto",
        can_reorder: bool = True,
        reduction: TokenReduction | None = None,
        is_reduced: tuple[bool, ...] = (),
    ) -> None:
        self.grid = grid
        self.batch_size = batch_size
        self.num_leading = num_leading
        self.patterns = patterns
        self.step = step
        self.backend = backend
        self.reduction = reduction
        self.is_reduced = is_reduced
        self.order = common_order(grid, patterns) if can_reorder else None

    def arrange(self, x: Tensor, dim: int, num_leading: int | None = None) -> Tensor:
        """Puts tokens along `dim` from raster order into the blocks'; leading ones (default: the plan's) stay."""
        if self.order is None:
            return x
        return _behind(self.order.arrange, x, dim, self.num_leading if num_leading is None else num_leading)

    def restore(self, x: Tensor, dim: int) -> Tensor:
        """Back to raster order."""
        return x if self.order is None else _behind(self.order.restore, x, dim, self.num_leading)

    def carry(self, rotary: Any, dim: int) -> tuple[Any, ...]:
        """Rotary tables (cos, sin; None: there are none) in the blocks' order, and the plan itself."""
        cos, sin = (None, None) if rotary is None else (self.arrange(table, dim) for table in rotary)
        return cos, sin, self

    def is_stock(self, layer: int) -> bool:
        """Whether the stock processor does what the block should: dense attention, in any order without empty slots."""
        if self.reduction is not None and self.is_reduced[layer]:
            return False
        return isinstance(self.patterns[layer], Full) and (self.order is None or not self.order.is_ragged)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, extra_mask: Tensor | None = None) -> Tensor:
        """Attention of one block.

        Args:
            layer: the block.
            query: ``(b, s, h, d)``, with leading extra tokens in front and others behind.
            key: likewise.
            value: likewise.
            extra_mask: ``(b, e)``, which of the extra tokens behind exist; None: all.

        Returns:
            The shape of `query`.
        """
        # Normalised queries and keys are wider than values under autocast.
        query, key = query.to(value.dtype), key.to(value.dtype)
        slots = self.grid.num_tokens if self.order is None else self.order.num_slots
        if self.num_leading:
            query, key, value = (x.roll(-self.num_leading, 1) for x in (query, key, value))
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        options: dict[str, Any] = {
            "num_extra_tokens": query.shape[2] - slots,
            "extra_mask": extra_mask,
            "step": self.step,
        }
        if self.reduction is not None:
            out = self.reduction(query, key, value, self.grid, layer=layer, **options)
        else:
            order = self.order or "raster"
            out = sparse_attention(
                query, key, value, self.patterns[layer], self.grid, backend=self.backend, order=order, **options
            )
        out = out.transpose(1, 2)
        return out.roll(self.num_leading, 1) if self.num_leading else out


def _behind(reorder: Any, x: Tensor, dim: int, num_leading: int) -> Tensor:
    """Reorders what is behind the leading tokens."""
    if not num_leading:
        return reorder(x, dim)
    tokens = reorder(x.narrow(dim, num_leading, x.shape[dim] - num_leading), dim)
    return torch.cat((x.narrow(dim, 0, num_leading), tokens), dim)


class StepCounter:
    """Counts denoising steps by their timesteps: calls of one step (guidance) repeat it, and where it rises, another
    sampling begins. Transformers that share a schedule, as Wan 2.2's for high and low noise, share a counter.

    Attributes:
        num_samplings: how many have begun.
    """

    def __init__(self) -> None:
        self.num_samplings = 0
        self._timestep: float | None = None
        self._step = 0

    def step(self, timestep: Any) -> int | None:
        """The step, from 0; None where clips have timesteps of their own, as in training.

        Args:
            timestep: a number, or ``()``, ``(b)`` or ``(b, n)``; given tokens have lower ones than those to denoise.
        """
        clips = torch.as_tensor(timestep).float()
        clips = clips.reshape(len(clips) if clips.ndim else 1, -1).amax(1)
        low, now = torch.stack(torch.aminmax(clips)).tolist()
        if low != now:
            return None
        if self._timestep is None or now > self._timestep:
            self._step = 0
            self.num_samplings += 1
        elif now < self._timestep:
            self._step += 1
        self._timestep = now
        return self._step
