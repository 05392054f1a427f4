"""Schedules that choose the attention pattern by layer, denoising step and clip length."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_number
from kinema.generation.attention.patterns import Full, Pattern

_MAX_FILL = 1 / 32
"""Largest ratio of unused slots to tokens at which tokens are reordered once for all blocks. Above it, computing the
linear layers on unused slots costs more than reordering queries, keys, values and outputs in each block."""


@dataclass(frozen=True)
class PatternSchedule:
    """A pattern for each layer and denoising step.

    Args:
        patterns: patterns that the blocks cycle through: one for all blocks, or for example (spatial, temporal).
        by_step: pairs (first step, patterns) in ascending order; from that step on, the patterns replace `patterns`.
        dense_layers: number of first blocks with dense attention, or a tuple of block indices (negative: from the end).
        dense_steps: number of first denoising steps with dense attention, or (first, last) for both ends. Late steps
            refine details; sparse attention there can cause flicker.
        min_tokens: clips with fewer video tokens use dense attention: attention is a small part of their cost.

    Raises:
        KinemaError: a value is out of range.
    """

    patterns: tuple[Pattern, ...]
    by_step: tuple[tuple[int, tuple[Pattern, ...]], ...] = ()
    dense_layers: int | tuple[int, ...] = 0
    dense_steps: int | tuple[int, int] = 0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, patterns in (("patterns", self.patterns), *(("by_step", later) for _, later in self.by_step)):
            is_tuple = isinstance(patterns, tuple) and len(patterns) > 0
            if not is_tuple or not all(isinstance(each, Pattern) for each in patterns):
                raise KinemaError(f"`{name}` (={getattr(self, name)}) must be a tuple of at least one pattern")
        starts = [start for start, _ in self.by_step]
        if starts != sorted(set(starts)) or (starts and starts[0] < 0):
            raise KinemaError(f"`by_step` (starting at {starts}) must start at ascending steps from 0 on")
        if not isinstance(self.dense_layers, tuple):
            check_number("dense_layers", self.dense_layers, 0)
        if isinstance(self.dense_steps, tuple) and len(self.dense_steps) != 2:
            raise KinemaError(f"`dense_steps` (={self.dense_steps}) must be a number, or two: (first, last)")
        if not all(isinstance(number, int) and number >= 0 for number in self._dense_ends):
            raise KinemaError(f"`dense_steps` (={self.dense_steps}) must be at least 0, and integers")
        check_number("min_tokens", self.min_tokens, 0)

    @property
    def _dense_ends(self) -> tuple[int, int]:
        return self.dense_steps if isinstance(self.dense_steps, tuple) else (self.dense_steps, 0)

    def at(self, layer: int, num_layers: int, step: int | None, num_steps: int | None, grid: Grid) -> Pattern:
        """Return the pattern of one block in one denoising step.

        Args:
            layer: index of the block.
            num_layers: number of blocks.
            step: index of the denoising step; None: not sampling (training), `dense_steps` and `by_step` do not apply.
            num_steps: number of denoising steps; required if the last steps are dense.
            grid: the grid of video tokens.

        Raises:
            KinemaError: `dense_layers` names a block that does not exist, or `num_steps` is required and None.
        """
        if self.is_dense(layer, num_layers, step, num_steps, grid):
            return Full()
        patterns = self.patterns
        for start, later in self.by_step:
            if step is not None and step >= start:
                patterns = later
        return patterns[layer % len(patterns)]

    def is_dense(self, layer: int, num_layers: int, step: int | None, num_steps: int | None, grid: Grid) -> bool:
        """Whether layer, step or clip length force dense attention; arguments and errors as in `at`."""
        return (
            grid.num_tokens < self.min_tokens
            or self._is_dense_layer(layer, num_layers)
            or self._is_dense_step(step, num_steps)
        )

    def _is_dense_layer(self, layer: int, num_layers: int) -> bool:
        if isinstance(self.dense_layers, int):
            return layer < self.dense_layers
        for other in self.dense_layers:
            if not -num_layers <= other < num_layers:
                raise KinemaError(f"`dense_layers` (with {other}) must lie in {-num_layers}..{num_layers - 1}")
        return layer in {other % num_layers for other in self.dense_layers}

    def _is_dense_step(self, step: int | None, num_steps: int | None) -> bool:
        first, last = self._dense_ends
        if step is None:
            return False
        if last and num_steps is None:
            raise KinemaError(f"`num_steps` (=None) must be known for `dense_steps` (={self.dense_steps}) at the end")
        return step < first or (num_steps is not None and step >= num_steps - last)

    def check(self, num_layers: int, num_heads: int, num_steps: int | None = None) -> None:
        """Validate the schedule for a model.

        Args:
            num_layers: number of blocks.
            num_heads: attention heads per block.
            num_steps: number of denoising steps, if known.

        Raises:
            KinemaError: more layers or steps are dense than exist, a layer index does not exist, or a pattern is for
                another number of heads.
        """
        if isinstance(self.dense_layers, int) and self.dense_layers > num_layers:
            raise KinemaError(
                f"`dense_layers` (={self.dense_layers}) must be at most {num_layers}, the layers of the model"
            )
        self._is_dense_layer(0, num_layers)
        if num_steps is not None and sum(self._dense_ends) > num_steps:
            raise KinemaError(f"`dense_steps` (={self.dense_steps}) must be at most `num_steps` (={num_steps})")
        for patterns in (self.patterns, *(later for _, later in self.by_step)):
            for pattern in patterns:
                pattern.check_heads(num_heads)


def common_order(grid: Grid, patterns: Sequence[Pattern]) -> TokenOrder | None:
    """Return the token order for all blocks: the most common one. Blocks with another order reorder tokens themselves.

    Returns:
        The order; None for raster order, also if the common order has too many unused slots.
    """
    orders = Counter(pattern.order(grid) for pattern in patterns if not isinstance(pattern, Full))
    if not orders:
        return None
    order = orders.most_common(1)[0][0]
    has_many_unused = order.num_slots > grid.num_tokens * (1 + _MAX_FILL)
    return None if order.is_raster or has_many_unused else order


def as_schedule(patterns: "Pattern | PatternSchedule | Sequence[Pattern]") -> PatternSchedule:
    """Convert one pattern for all blocks, or patterns that blocks cycle through, to a schedule."""
    if isinstance(patterns, PatternSchedule):
        return patterns
    return PatternSchedule((patterns,) if isinstance(patterns, Pattern) else tuple(patterns))
