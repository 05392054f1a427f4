"""How the tokens of one forward pass are ordered, and what each block's self-attention sees.

Shapes: b batch, n tokens in raster order (t h w), s slots of the order, k heads, e head width, g groups of tokens that
share a timestep, d width.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kinema.generation.attention.functional import sparse_attention
from kinema.generation.attention.grid import Grid, TokenOrder
from kinema.generation.attention.patterns import Full, Pattern
from kinema.generation.attention.schedule import PatternSchedule

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values ``(b, n, k, e)`` to what the queries see, of that shape."""


@dataclass(frozen=True, eq=False)
class Arrangement:
    """Tokens are put into order once, before the first block, and back behind the last.

    Attributes:
        grid: numbers of tokens along t, h, w.
        patterns: what each block sees.
        order: the order that the blocks work in, that of the first pattern which is not full; None: raster order.
        backend: name of the backend of sparse attention.
        step: the denoising step, from 0; None: outside of sampling.
    """

    grid: Grid
    patterns: tuple[Pattern, ...]
    order: TokenOrder | None
    backend: str
    step: int | None

    @classmethod
    def make(
        cls,
        schedule: PatternSchedule | None,
        grid: tuple[int, int, int],
        num_layers: int,
        backend: str = "auto",
        step: int | None = None,
        num_steps: int | None = None,
    ) -> "Arrangement":
        """The arrangement of one forward pass.

        Raises:
            KinemaError: the schedule has a layer that does not exist, or needs the number of steps.
        """
        tokens = Grid(*grid)
        layers = range(num_layers)
        if schedule is None:
            return cls(tokens, tuple(Full() for _ in layers), None, backend, step)
        patterns = tuple(schedule.at(layer, num_layers, step, num_steps, tokens) for layer in layers)
        orders = [pattern.order(tokens) for pattern in patterns if not isinstance(pattern, Full)]
        order = orders[0] if orders and not orders[0].is_raster else None
        return cls(tokens, patterns, order, backend, step)

    def put(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Something of every token, from raster order into this one."""
        return x if self.order is None else self.order.arrange(x, dim)

    def back(self, x: Float[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
        """Something of every slot, back into raster order."""
        return x if self.order is None else self.order.restore(x, dim)

    def put_groups(self, x: Float[Tensor, "b g p d"]) -> Float[Tensor, "b groups p d"]:
        """Something of every group of tokens: of the whole clip (g = 1), of every latent step, or of every token."""
        if self.order is None or x.shape[1] == 1:
            return x
        if x.shape[1] == self.grid.num_tokens:
            return self.order.arrange(x, 1)
        firsts = self.order.to(x.device).tokens[:: self.order.run]
        return x.index_select(1, firsts // (self.grid.h * self.grid.w))

    def attention(self, layer: int) -> Attention | None:
        """What a block's self-attention does; None: all tokens see all."""
        pattern, order = self.patterns[layer], self.order
        if isinstance(pattern, Full) and (order is None or not order.is_ragged):
            return None

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            heads_first = (x.transpose(1, 2) for x in (query, key, value))
            given = "raster" if order is None else order
            out = sparse_attention(*heads_first, pattern, self.grid, backend=self.backend, order=given, step=self.step)
            return out.transpose(1, 2)

        return attend
