"""Which pattern runs where: by layer, by denoising step, and not at all for short clips."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid, TokenOrder, check_number
from kinema.generation.attention.patterns import Full, Pattern

_MOST_FILL = 1 / 32
"""Empty slots over tokens up to which tokens are put in order once for all blocks. Beyond, what the blocks' linear
layers do for empty slots costs more than it costs to put queries, keys, values and outputs in order at each block."""


@dataclass(frozen=True)
class PatternSchedule:
    """A pattern for each layer and denoising step.

    Args:
        patterns: for each block, taken in turns where there are more blocks: one for all, or (spatial, temporal).
        by_step: (first step, patterns) in the order of steps: from that step on these replace `patterns`, for example
            fewer and fewer tiles.
        dense_layers: the first so many blocks attend densely, or those of these numbers (negative ones from the end).
        dense_steps: the first so many denoising steps are dense; or (first, last) so many at either end: late steps
            settle details, and flicker where they are sparse.
        min_tokens: clips of fewer video tokens are dense; below a few thousand attention is no large part of the work.

    Raises:
        KinemaError: a value is out of its range.
    """

    patterns: tuple[Pattern, ...]
    by_step: tuple[tuple[int, tuple[Pattern, ...]], ...] = ()
    dense_layers: int | tuple[int, ...] = 0
    dense_steps: int | tuple[int, int] = 0
    min_tokens: int = 0

    def __post_init__(self) -> None:
        for name, patterns in (("patterns", self.patterns), *(("by_step", own) for _, own in self.by_step)):
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
        """The pattern of one block in one denoising step.

        Args:
            layer: the block, from 0.
            num_layers: how many there are.
            step: the denoising step, from 0; None: outside of sampling (training), where no step is dense.
            num_steps: how many there are; needed for last dense steps.
            grid: the grid.

        Raises:
            KinemaError: a layer of `dense_layers` does not exist, or last dense steps need `num_steps`.
        """
        if self.is_dense(layer, num_layers, step, num_steps, grid):
            return Full()
        patterns = self.patterns
        for start, own in self.by_step:
            if step is not None and step >= start:
                patterns = own
        return patterns[layer % len(patterns)]

    def is_dense(self, layer: int, num_layers: int, step: int | None, num_steps: int | None, grid: Grid) -> bool:
        """Whether a block attends densely because of where it is, when, or how short the clip is; as `at`."""
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
        """Finds mistakes before any work.

        Args:
            num_layers: blocks.
            num_heads: their heads.
            num_steps: denoising steps, where they are known.

        Raises:
            KinemaError: there are fewer blocks or steps than are to be dense, a block does not exist, or a pattern is
                for another number of heads.
        """
        if isinstance(self.dense_layers, int) and self.dense_layers > num_layers:
            raise KinemaError(
                f"`dense_layers` (={self.dense_layers}) must be at most {num_layers}, the layers of the model"
            )
        self._is_dense_layer(0, num_layers)
        if num_steps is not None and sum(self._dense_ends) > num_steps:
            raise KinemaError(f"`dense_steps` (={self.dense_steps}) must be at most `num_steps` (={num_steps})")
        for patterns in (self.patterns, *(own for _, own in self.by_step)):
            for pattern in patterns:
                pattern.check_heads(num_heads)


def common_order(grid: Grid, patterns: Sequence[Pattern]) -> TokenOrder | None:
    """The order in which tokens go through all blocks: that of most patterns. Others put tokens in order themselves.

    Returns:
        None: raster order, also where tiles are ragged and too many slots would be empty.
    """
    orders = Counter(pattern.order(grid) for pattern in patterns if not isinstance(pattern, Full))
    if not orders:
        return None
    order = orders.most_common(1)[0][0]
    is_filled_up = order.num_slots > grid.num_tokens * (1 + _MOST_FILL)
    return None if order.is_raster or is_filled_up else order


def as_schedule(patterns: "Pattern | PatternSchedule | Sequence[Pattern]") -> PatternSchedule:
    """A schedule of one pattern for all blocks and steps, or of patterns that blocks take in turns."""
    if isinstance(patterns, PatternSchedule):
        return patterns
    return PatternSchedule((patterns,) if isinstance(patterns, Pattern) else tuple(patterns))
