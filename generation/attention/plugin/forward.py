"""The plan of one forward pass, and the counting of denoising steps.

Shapes: b batch, n video tokens (s slots if reordered), e extra tokens, h heads, d head width.
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
    """The patterns of all blocks in one forward pass, and the token order in the blocks.

    The plan is passed to the attention processors with the rotary tables, as an argument of the blocks, so that
    recomputation in gradient checkpointing uses the plan of its own forward pass. It is a plain class because code that
    moves arguments between devices (offloading, FSDP) rebuilds tuples and dataclasses, but not other objects.

    Attributes:
        grid: the grid of video tokens.
        batch_size: number of clips.
        num_leading: number of extra tokens before the video tokens.
        patterns: the pattern of each block.
        step: the denoising step; None: not sampling.
        backend: name of the backend.
        reduction: token reduction, applied in blocks that are not dense; None: none.
        order: the token order; None: raster order.
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
        """Reorder tokens along `dim` from raster order to the order of the blocks, except leading ones."""
        if self.order is None:
            return x
        return _reorder_after_leading(
            self.order.arrange, x, dim, self.num_leading if num_leading is None else num_leading
        )

    def restore(self, x: Tensor, dim: int) -> Tensor:
        """Reorder tokens along `dim` back to raster order, except leading ones."""
        return x if self.order is None else _reorder_after_leading(self.order.restore, x, dim, self.num_leading)

    def attach_to_rotary(self, rotary: Any, dim: int) -> tuple[Any, ...]:
        """Return rotary tables (cos, sin; or None) in the order of the blocks, followed by the plan itself."""
        cos, sin = (None, None) if rotary is None else (self.arrange(table, dim) for table in rotary)
        return cos, sin, self

    def uses_stock_attention(self, layer: int) -> bool:
        """Whether the stock processor can run the block: dense attention without unused slots."""
        if self.reduction is not None and self.is_reduced[layer]:
            return False
        return isinstance(self.patterns[layer], Full) and (self.order is None or not self.order.is_ragged)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, extra_mask: Tensor | None = None) -> Tensor:
        """Compute the attention of one block.

        Args:
            layer: index of the block.
            query: ``(b, num_leading + s + e, h, d)``.
            key: same shape as `query`.
            value: same shape as `query`.
            extra_mask: ``(b, e)``, which trailing extra tokens may be attended to; None: all.

        Returns:
            A tensor with the shape of `query`.
        """
        # Under autocast, normalised queries and keys have a wider dtype than values.
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


def _reorder_after_leading(reorder: Any, x: Tensor, dim: int, num_leading: int) -> Tensor:
    """Apply `reorder` to the tokens after the leading ones."""
    if not num_leading:
        return reorder(x, dim)
    tokens = reorder(x.narrow(dim, num_leading, x.shape[dim] - num_leading), dim)
    return torch.cat((x.narrow(dim, 0, num_leading), tokens), dim)


class StepCounter:
    """Counts denoising steps by timestep: an equal one is the same step (guidance), a higher one starts a new sampling.

    Transformers that share a schedule, such as Wan 2.2's for high and low noise, share a counter.

    Attributes:
        num_samplings: number of samplings started.
    """

    def __init__(self) -> None:
        self.num_samplings = 0
        self._timestep: float | None = None
        self._step = 0

    def step(self, timestep: Any) -> int | None:
        """Return the step, starting at 0, or None if timesteps differ between clips, as in training.

        Args:
            timestep: a number, or of shape ``()``, ``(b)`` or ``(b, n)``; the maximum over the tokens of a clip counts.
        """
        clips = torch.as_tensor(timestep).float()
        clips = clips.reshape(len(clips) if clips.ndim else 1, -1).amax(1)
        lowest, current = torch.stack(torch.aminmax(clips)).tolist()
        if lowest != current:
            return None
        if self._timestep is None or current > self._timestep:
            self._step = 0
            self.num_samplings += 1
        elif current < self._timestep:
            self._step += 1
        self._timestep = current
        return self._step
