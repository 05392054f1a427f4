"""CogVideoX: joint self-attention of text and video tokens.

Shapes: b batch, e text tokens, n video tokens, d width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.architecture import Architecture
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.family import (
    Entry,
    SparseProcessor,
    TransformerFamily,
    norm_and_rotate,
    patched_grid,
)
from kinema.generation.attention.plugin.forward import ForwardPlan


class CogVideoXProcessor(SparseProcessor):
    """Attention of a CogVideoX block."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        rotary, plan = self._plan(image_rotary_emb)
        if plan is None:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        if attention_mask is not None:
            raise KinemaError(
                f"`attention_mask` (of shape {tuple(attention_mask.shape)}) must be None: masking is not supported"
            )
        split = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        tokens = torch.cat((hidden_states, encoder_hidden_states), dim=1)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in self._project(attn, tokens))
        query, key = norm_and_rotate(query, attn.norm_q, rotary), norm_and_rotate(key, attn.norm_k, rotary)
        out = plan.attend(self.layer, query, key, value)
        video, text = attn.to_out[1](attn.to_out[0](out.flatten(2))).split(split, dim=1)
        return video, text

    def _project(self, attn: Any, tokens: Tensor) -> Sequence[Tensor]:
        # The attention module keeps its fused weights after unfusing, so that only the processor's class tells.
        if type(self.stock).__name__.startswith("Fused"):
            return attn.to_qkv(tokens).chunk(3, dim=-1)
        return [project(tokens) for project in (attn.to_q, attn.to_k, attn.to_v)]


class CogVideoX(TransformerFamily):
    """``CogVideoXTransformer3DModel``: 1.0 and 1.5, text-to-video and image-to-video."""

    processor: ClassVar[type[SparseProcessor]] = CogVideoXProcessor
    sizes: ClassVar = {
        "cogvideox-2b": Architecture(1920, 30, 30, 7680, 226, is_joint=True),
        "cogvideox-5b": Architecture(3072, 42, 48, 12288, 226, is_joint=True),
    }

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn1 for block in transformer.transformer_blocks]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        config = transformer.config
        patch = config.patch_size_t or 1, config.patch_size, config.patch_size
        return patched_grid(arguments["hidden_states"], (1, 3, 4), patch), 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [(transformer.patch_embed, _arrange_tokens)]

    def prepare(self, plan: ForwardPlan, arguments: dict[str, Any]) -> bool:
        arguments["image_rotary_emb"] = plan.attach_to_rotary(arguments.get("image_rotary_emb"), 0)
        return True


def _arrange_tokens(plan: ForwardPlan, tokens: Tensor) -> Tensor:
    """Reorder the video tokens of ``(b, e + n, d)``; text comes first."""
    return plan.arrange(tokens, 1, num_leading=tokens.shape[1] - plan.grid.num_tokens)
