"""HunyuanVideo: video and text tokens in one self-attention, with streams of their own first, then in one stream.

Shapes: b batch, n video tokens, e text tokens (some of them padding), d width.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinema.generation.attention.grid import Grid
from kinema.generation.attention.plugin.family import Entry, Family, SparseProcessor, patched_grid, turn
from kinema.generation.attention.plugin.forward import ForwardPlan


class HunyuanVideoProcessor(SparseProcessor):
    """Attention of a HunyuanVideo block, of either kind."""

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
        # The mask is (b, 1, 1, n + e), and hides padding of the text alone.
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
    """Queries, keys and values ``(b, n + e, h, d)``."""
    is_one_stream = attn.add_q_proj is None
    tokens = torch.cat((video, text), dim=1) if is_one_stream else video
    query, key, value = (f(tokens).unflatten(2, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
    heads = [turn(query, attn.norm_q, rotary), turn(key, attn.norm_k, rotary), value]
    if is_one_stream:
        return heads
    projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
    of_text = (f(text).unflatten(2, (attn.heads, -1)) for f in projections)
    norms = attn.norm_added_q, attn.norm_added_k, None
    of_text = (turn(x, norm, None) for x, norm in zip(of_text, norms, strict=True))
    return [torch.cat(pair, dim=1) for pair in zip(heads, of_text, strict=True)]


class HunyuanVideo(Family):
    """``HunyuanVideoTransformer3DModel``: text-to-video and both kinds of image-to-video. Its refiner of the text stays
    as it is."""

    processor: ClassVar[type[SparseProcessor]] = HunyuanVideoProcessor

    def attentions(self, transformer: Any) -> Sequence[Any]:
        return [block.attn for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]

    def grid(self, transformer: Any, arguments: dict[str, Any]) -> tuple[Grid, int]:
        config = transformer.config
        patch = config.patch_size_t, config.patch_size, config.patch_size
        return patched_grid(arguments["hidden_states"], (2, 3, 4), patch), 0

    def entries(self, transformer: Any) -> Sequence[Entry]:
        return [
            (transformer.x_embedder, partial(ForwardPlan.arrange, dim=1)),
            (transformer.rope, partial(ForwardPlan.carry, dim=0)),
        ]

    def can_reorder(self, transformer: Any) -> bool:
        # Its blocks find the tokens of the given first frame by their place.
        return transformer.config.image_condition_type != "token_replace"
