"""Which pattern runs where: by layer, by denoising step, and not at all for short clips."""

from collections.abc import Sequence
from dataclasses import dataclass

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.patterns import Full, Pattern


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
            if not patterns:
                raise KinemaError(f"`{name}` (={getattr(self, name)}) must hold at least one pattern")
        starts = [start for start, _ in self.by_step]
        if starts != sorted(set(starts)) or (starts and starts[0] < 0):
            raise KinemaError(f"`by_step` (starting at {starts}) must start at ascending steps from 0 on")
        if isinstance(self.dense_layers, int) and self.dense_layers < 0:
            raise KinemaError(f"`dense_layers` (={self.dense_layers}) must be at least 0")
        if min(self._dense_ends) < 0:
            raise KinemaError(f"`dense_steps` (={self.dense_steps}) must be at least 0")
        if self.min_tokens < 0:
            raise KinemaError(f"`min_tokens` (={self.min_tokens}) must be at least 0")

    @property
    def _dense_ends(self) -> tuple[int, int]:
        return (self.dense_steps, 0) if isinstance(self.dense_steps, int) else self.dense_steps

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

    def check(self, num_layers: int, num_heads: int) -> None:
        """Finds mistakes before any work.

        Raises:
            KinemaError: a layer does not exist, or a pattern is for another number of heads.
        """
        self._is_dense_layer(0, num_layers)
        for patterns in (self.patterns, *(own for _, own in self.by_step)):
            for pattern in patterns:
                pattern.check_heads(num_heads)


def as_schedule(patterns: "Pattern | PatternSchedule | Sequence[Pattern]") -> PatternSchedule:
    """A schedule of one pattern for all blocks and steps, or of patterns that blocks take in turns."""
    if isinstance(patterns, PatternSchedule):
        return patterns
    return PatternSchedule((patterns,) if isinstance(patterns, Pattern) else tuple(patterns))
