"""Wan 2.1 and 2.2: self-attention over video tokens, cross-attention to text and image features.

Shapes: b batch, n tokens (s slots if reordered), d width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from kinema.generation.attention.architecture import Architecture
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.family import Entry, SparseProcessor, TransformerFamily, patched_grid, rotate
from kinema.generation.attention.plugin.forward import ForwardPlan


class WanProcessor(SparseProcessor):
    """Self-attention of a Wan block."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        rotary, plan = self._plan(rotary_emb)
        if plan is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        out = plan.attend(self.layer, rotate(query, rotary), rotate(key, rotary), value)
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


class Wan(TransformerFamily):
    """``WanTransformer3DModel``: text-to-video, image-to-video, and the 5B model with one timestep per token."""

    processor: ClassVar[type[SparseProcessor]] = WanProcessor
    sizes: ClassVar = {
        "wan-1.3b": Architecture(1536, 30, 12, 8960, 512),
        "wan-5b": Architecture(3072, 30, 24, 14336, 512, compression=(4, 16, 16)),
        "wan-14b": Architecture(5120, 40, 40, 13824, 512),
    }

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn1 for block in transformer.blocks]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        return patched_grid(arguments["hidden_states"], (2, 3, 4), transformer.config.patch_size), 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [
            (transformer.patch_embedding, _arrange_patches),
            (transformer.rope, partial(ForwardPlan.attach_to_rotary, dim=1)),
            (transformer.condition_embedder, _arrange_timesteps),
        ]


def _arrange_patches(plan: ForwardPlan, patches: Tensor) -> Tensor:
    """Reorder ``(b, d, t, h, w)`` to ``(b, d, s, 1, 1)``, which the transformer flattens like the former."""
    return patches if plan.order is None else plan.arrange(patches.flatten(2), 2)[..., None, None]


def _arrange_timesteps(plan: ForwardPlan, conditions: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reorder per-token modulation of the blocks, ``(b, n, 6 d)``. That of the output is used in raster order."""
    temb, modulation, *others = conditions
    return temb, plan.arrange(modulation, 1) if modulation.ndim == 3 else modulation, *others
