"""LTX-Video: self-attention over video tokens, one timestep per token, cross-attention to text.

Shapes: b batch, n tokens, d width, e extra tokens.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.architecture import Architecture
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.family import Entry, SparseProcessor, TransformerFamily, rotate
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


class LTX(TransformerFamily):
    """``LTXVideoTransformer3DModel``; its pipelines pass the size of the latents, or the coordinates of the tokens."""

    processor: ClassVar[type[SparseProcessor]] = LTXProcessor
    sizes: ClassVar = {"ltx-video": Architecture(2048, 28, 32, 8192, 128, patch=(1, 1, 1), compression=(8, 32, 32))}

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn1 for block in transformer.transformer_blocks]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        length = arguments["hidden_states"].shape[1]
        coordinates = arguments.get("video_coords")
        if coordinates is not None:
            return grid_of_coordinates(coordinates[0], length)
        sizes = [arguments.get(name) for name in ("num_frames", "height", "width")]
        if None in sizes:
            raise KinemaError(f"`num_frames`, `height` and `width` (={sizes}) must be given if `video_coords` is not")
        grid = Grid(*(int(size) for size in sizes if size is not None))
        if grid.num_tokens != length:
            raise KinemaError(f"`hidden_states` (with {length} tokens) must have as many as the grid {grid}")
        return grid, 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [
            (transformer.proj_in, partial(ForwardPlan.arrange, dim=1)),
            (transformer.rope, partial(ForwardPlan.attach_to_rotary, dim=1)),
            (transformer.time_embed, _arrange_timesteps),
        ]


def grid_of_coordinates(coordinates: Tensor, length: int) -> tuple[Grid, int]:
    """Return the grid of the clip, and the number of leading tokens that belong to conditioning frames.

    Args:
        coordinates: ``(3, e + n)``, time, height and width of each token. Conditioning frames come first, have the size
            of the clip, and are not at its first time; the clip follows in raster order.
        length: expected number of tokens.

    Raises:
        KinemaError: the coordinates do not have this form.
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
    positions = torch.stack((t, h, w)).view(3, -1, height, width)[:, first:]
    axes = positions[0, :, 0, 0], positions[1, 0, :, 0], positions[2, 0, 0, :]
    if not torch.equal(positions, torch.stack(torch.meshgrid(*axes, indexing="ij"))):
        raise KinemaError(f"`video_coords` (with a clip of {grid} tokens at the end) must list it in raster order")
    return grid, first * frame


def _arrange_timesteps(plan: ForwardPlan, embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Reorder per-token modulation of the blocks, ``(b * n, 6 d)``. That of the output is used in raster order."""
    modulation, embedded = embeddings
    tokens = plan.num_leading + plan.grid.num_tokens
    if plan.order is None or len(modulation) == plan.batch_size:
        return embeddings
    return plan.arrange(modulation.unflatten(0, (-1, tokens)), 1).flatten(0, 1), embedded
