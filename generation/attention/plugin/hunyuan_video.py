"""HunyuanVideo: joint self-attention of video and text tokens, in dual-stream and then single-stream blocks.

Shapes: b batch, n video tokens, e text tokens (some of them padding), d width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

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


class HunyuanVideoProcessor(SparseProcessor):
    """Attention of a dual-stream or single-stream HunyuanVideo block."""

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
        split = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        # The mask is (b, 1, 1, n + e), and is false only for text padding.
        extra_mask = None if attention_mask is None else attention_mask[:, 0, 0, -split[1] :]
        query, key, value = _heads(attn, hidden_states, encoder_hidden_states, rotary)
        out = plan.attend(self.layer, query, key, value, extra_mask).flatten(2)
        video, text = out.split(split, dim=1)
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text


def _heads(attn: Any, video: Tensor, text: Tensor, rotary: Any) -> list[Tensor]:
    """Project to queries, keys and values ``(b, n + e, h, d)``."""
    is_single_stream = attn.add_q_proj is None
    tokens = torch.cat((video, text), dim=1) if is_single_stream else video
    query, key, value = (f(tokens).unflatten(2, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
    heads = [norm_and_rotate(query, attn.norm_q, rotary), norm_and_rotate(key, attn.norm_k, rotary), value]
    if is_single_stream:
        return heads
    projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
    text_heads = (f(text).unflatten(2, (attn.heads, -1)) for f in projections)
    norms = attn.norm_added_q, attn.norm_added_k, None
    text_heads = (norm_and_rotate(x, norm, None) for x, norm in zip(text_heads, norms, strict=True))
    return [torch.cat(pair, dim=1) for pair in zip(heads, text_heads, strict=True)]


class HunyuanVideo(TransformerFamily):
    """``HunyuanVideoTransformer3DModel``: text-to-video and image-to-video. The text refiner is unchanged."""

    processor: ClassVar[type[SparseProcessor]] = HunyuanVideoProcessor
    # 20 dual-stream and 40 single-stream blocks, which cost the same.
    sizes: ClassVar = {"hunyuan-video": Architecture(3072, 60, 24, 12288, 256, is_joint=True)}

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        config = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return patched_grid(arguments["hidden_states"], (2, 3, 4), patch), 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [
            (transformer.x_embedder, partial(ForwardPlan.arrange, dim=1)),
            (transformer.rope, partial(ForwardPlan.attach_to_rotary, dim=0)),
        ]

    def can_reorder(self, transformer: Any) -> bool:
        # With token replacement, blocks select the tokens of the first frame by index.
        return transformer.config.image_condition_type != "token_replace"
