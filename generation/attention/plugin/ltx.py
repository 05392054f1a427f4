"""LTX-Video: full self-attention over video tokens, a timestep for each token, text by cross-attention.

Shapes: b batch, n tokens, d width, e extra tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.family import Entry, Family, SparseProcessor, rotate
from kinema.generation.attention.plugin.forward import ForwardPlan


class LTXProcessor(SparseProcessor):
    """Self-attention of an LTX block."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        rotary, plan = self._plan(image_rotary_emb)
        if plan is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query, key = rotate(attn.norm_q(query), rotary), rotate(attn.norm_k(key), rotary)
        out = plan.attend(self.layer, *(x.unflatten(2, (attn.heads, -1)) for x in (query, key, value)))
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class LTX(Family):
    """``LTXVideoTransformer3DModel``: its pipelines say the latents' size, or give the tokens' coordinates."""

    processor: ClassVar[type[SparseProcessor]] = LTXProcessor

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn1 for block in transformer.transformer_blocks]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        length = arguments["hidden_states"].shape[1]
        coordinates = arguments.get("video_coords")
        if coordinates is not None:
            return grid_of_coordinates(coordinates[0], length)
        sizes = [arguments.get(name) for name in ("num_frames", "height", "width")]
        if None in sizes:
            raise KinemaError(f"`num_frames`, `height` and `width` (={sizes}) must be given, or `video_coords`")
        grid = Grid(*(int(size) for size in sizes if size is not None))
        if grid.num_tokens != length:
            raise KinemaError(f"`hidden_states` (with {length} tokens) must have those of the grid {grid}")
        return grid, 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [
            (transformer.proj_in, partial(ForwardPlan.arrange, dim=1)),
            (transformer.rope, partial(ForwardPlan.carry, dim=1)),
            (transformer.time_embed, _arrange_timesteps),
        ]


def grid_of_coordinates(coordinates: Tensor, length: int) -> tuple[Grid, int]:
    """The grid of the clip's tokens, and the number of tokens in front that belong to given frames.

    Args:
        coordinates: ``(3, e + n)``, time, height and width of each token. Given frames have the clip's size and come
            first, none of them at the clip's first time; the clip comes in raster order.
        length: tokens that there should be.

    Raises:
        KinemaError: the coordinates are not of this form.
    """
    t, h, w = coordinates.detach().cpu().double()
    height, width = len(h.unique()), len(w.unique())
    frame = height * width
    if len(t) != length or length % frame:
        raise KinemaError(
            f"`video_coords` (for {len(t)} tokens in frames of {height}x{width}) must be frames of {length} tokens"
        )
    times = t.view(-1, frame)[:, 0]
    first = int((times == times.min()).nonzero()[-1])
    grid = Grid(len(times) - first, height, width)
    places = torch.stack((t, h, w)).view(3, -1, height, width)[:, first:]
    axes = places[0, :, 0, 0], places[1, 0, :, 0], places[2, 0, 0, :]
    if not torch.equal(places, torch.stack(torch.meshgrid(*axes, indexing="ij"))):
        raise KinemaError(f"`video_coords` (with a last clip of {grid} tokens) must go through it in raster order")
    return grid, first * frame


def _arrange_timesteps(plan: ForwardPlan, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The blocks' modulation ``(b * n, 6 d)``, or ``(b, 6 d)`` as it is. That of the output is used behind them."""
    modulation, embedded = embeddings
    tokens = plan.num_leading + plan.grid.num_tokens
    if plan.order is None or len(modulation) == plan.batch_size:
        return embeddings
    return plan.arrange(modulation.unflatten(0, (-1, tokens)), 1).flatten(0, 1), embedded
