"""Tiny transformers of diffusers, all parameters random; inputs for them, and dense masked attention in them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from kinema.generation.attention import Full, Grid, SlidingTile, Spatial, Temporal, Window
from kinema.generation.attention.plugin.forward import ForwardPlan

GRID = Grid(3, 4, 6)
TILED = SlidingTile(tile=(1, 2, 3), window=(3, 1, 1))
"""Divides `GRID`: no slot is empty, and the order is not raster."""
RAGGED = SlidingTile(tile=(2, 3, 4), window=(1, 1, 3))
PATTERNS = {
    "tiled": (TILED,),
    "ragged": (RAGGED,),
    "factorised": (Spatial(), Temporal()),
    "ragged-mixed": (RAGGED, Full()),
    "mixed": (TILED, Full(), Window(size=(2, 3, 5))),
    "heads": (SlidingTile(tile=(1, 2, 3), window=((3, 1, 1), (1, 1, 1))),),
}


@dataclass(frozen=True)
class Case:
    """A family's tiny transformer, and inputs for it on `GRID`."""

    model: Callable[..., Any]
    inputs: Callable[[int], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    # A fixed seed, and no parameter left at zero.
    seed: int = 0

    def make(self, **settings: Any) -> Any:
        torch.manual_seed(self.seed)
        model = self.model(**{**self.settings, **settings}).eval()
        for name, parameter in model.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_gain), std=0.2)
        return model

    def run(self, model: Any, batch: int = 2, **changes: Any) -> Tensor:
        torch.manual_seed(1)
        return model(**{**self.inputs(batch), **changes}, return_dict=False)[0]


def wan_inputs(batch: int, channels: int = 4, text: int = 7, per_token: bool = False) -> dict[str, Any]:
    timestep = torch.full((batch,), 500.0)
    if per_token:
        timestep = torch.full((batch, GRID.num_tokens), 500.0)
        timestep[:, 1::5] = 0
    return dict(
        hidden_states=torch.randn(batch, channels, GRID.t, 2 * GRID.h, 2 * GRID.w),
        timestep=timestep,
        encoder_hidden_states=torch.randn(batch, text, 12),
    )


def wan_image_inputs(batch: int) -> dict[str, Any]:
    # The stock processor counts on 512 text tokens behind those of the image.
    image = torch.randn(batch, 6, 10)
    return dict(wan_inputs(batch, channels=9, text=512), encoder_hidden_states_image=image)


def ltx_inputs(batch: int, per_token: bool = False) -> dict[str, Any]:
    timestep = torch.full((batch,), 500.0)
    if per_token:
        timestep = torch.full((batch, GRID.num_tokens), 500.0)
        timestep[:, 1::5] = 100
    mask = torch.ones(batch, 7)
    mask[0, 4:] = 0
    return dict(
        hidden_states=torch.randn(batch, GRID.num_tokens, 4),
        encoder_hidden_states=torch.randn(batch, 7, 12),
        timestep=timestep,
        encoder_attention_mask=mask,
        num_frames=GRID.t,
        height=GRID.h,
        width=GRID.w,
    )


def ltx_condition_inputs(batch: int) -> dict[str, Any]:
    """A clip behind the tokens of a frame that is given in its middle, as `LTXConditionPipeline` arranges them."""
    inputs = ltx_inputs(batch)
    sizes = [inputs.pop(name) for name in ("num_frames", "height", "width")]
    coordinates = torch.stack(torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")).flatten(1).float()
    given = coordinates[:, : GRID.h * GRID.w] + torch.tensor([1.0, 0, 0])[:, None]
    coordinates = torch.cat((given, coordinates), dim=1).expand(batch, -1, -1)
    timestep = torch.full((batch, coordinates.shape[2]), 500.0)
    timestep[:, : given.shape[1]] = 0
    return dict(
        inputs, hidden_states=torch.randn(batch, timestep.shape[1], 4), video_coords=coordinates, timestep=timestep
    )


def cogvideox_inputs(
    batch: int, channels: int = 4, rotary: bool = True, patch_t: int = 1, ofs: bool = False
) -> dict[str, Any]:
    inputs: dict[str, Any] = dict(
        hidden_states=torch.randn(batch, GRID.t * patch_t, channels, 2 * GRID.h, 2 * GRID.w),
        encoder_hidden_states=torch.randn(batch, 7, 12),
        timestep=torch.full((batch,), 500),
    )
    if rotary:
        inputs["image_rotary_emb"] = get_3d_rotary_pos_embed(
            16, ((0, 0), (GRID.h, GRID.w)), (GRID.h, GRID.w), GRID.t, device=torch.device("cpu")
        )
    if ofs:
        inputs["ofs"] = torch.full((1,), 2.0)
    return inputs


def hunyuan_inputs(batch: int, channels: int = 4) -> dict[str, Any]:
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[0, 4:] = 0
    return dict(
        hidden_states=torch.randn(batch, channels, GRID.t, 2 * GRID.h, 2 * GRID.w),
        timestep=torch.full((batch,), 500.0),
        encoder_hidden_states=torch.randn(batch, 7, 12),
        encoder_attention_mask=mask,
        pooled_projections=torch.randn(batch, 10),
        guidance=torch.full((batch,), 6000.0),
    )


WAN = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=12, freq_dim=16, ffn_dim=32,
    num_layers=3, rope_max_seq_len=32,
)  # fmt: skip
LTX = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=3,
    caption_channels=12,
)  # fmt: skip
COGVIDEOX = dict(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=12,
    num_layers=3, sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=7,
    use_rotary_positional_embeddings=True,
)  # fmt: skip
HUNYUAN = dict(
    in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, num_single_layers=2,
    num_refiner_layers=1, text_embed_dim=12, pooled_projection_dim=10, rope_axes_dim=(4, 6, 6),
)  # fmt: skip

CASES = {
    "wan": Case(WanTransformer3DModel, wan_inputs, WAN),
    "wan-image": Case(
        WanTransformer3DModel,
        wan_image_inputs,
        {**WAN, "in_channels": 9, "image_dim": 10, "added_kv_proj_dim": 32},
    ),
    "wan-token-timesteps": Case(WanTransformer3DModel, lambda b: wan_inputs(b, per_token=True), WAN),
    "ltx": Case(LTXVideoTransformer3DModel, ltx_inputs, LTX),
    "ltx-token-timesteps": Case(LTXVideoTransformer3DModel, lambda b: ltx_inputs(b, per_token=True), LTX),
    "ltx-given-frame": Case(LTXVideoTransformer3DModel, ltx_condition_inputs, LTX),
    "cogvideox": Case(CogVideoXTransformer3DModel, cogvideox_inputs, COGVIDEOX),
    "cogvideox-2b": Case(
        CogVideoXTransformer3DModel,
        lambda b: cogvideox_inputs(b, rotary=False),
        {**COGVIDEOX, "use_rotary_positional_embeddings": False},
    ),
    "cogvideox-1.5-image": Case(
        CogVideoXTransformer3DModel,
        lambda b: cogvideox_inputs(b, channels=8, patch_t=2, ofs=True),
        {**COGVIDEOX, "in_channels": 8, "patch_size_t": 2, "ofs_embed_dim": 8, "patch_bias": False},
    ),
    "hunyuan": Case(HunyuanVideoTransformer3DModel, hunyuan_inputs, HUNYUAN),
    "hunyuan-latent-concat": Case(
        HunyuanVideoTransformer3DModel,
        lambda b: hunyuan_inputs(b, channels=9),
        {**HUNYUAN, "in_channels": 9, "image_condition_type": "latent_concat"},
    ),
    "hunyuan-token-replace": Case(
        HunyuanVideoTransformer3DModel,
        hunyuan_inputs,
        {**HUNYUAN, "image_condition_type": "token_replace"},
    ),
}
FIRST = ["wan", "ltx", "cogvideox", "hunyuan"]
"""A case of each family."""


Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Self-attention by the number of the block: queries, keys and values ``(b, h, n + e, d)``, and a mask of tokens."""


@contextmanager
def replaced(monkeypatch: pytest.MonkeyPatch, model: Any, attend: Attend) -> Iterator[None]:
    """Puts something else into the stock self-attention of the blocks, at the dispatcher."""
    is_cogvideox = type(model).__name__.startswith("Cog")
    calls = 0

    def dispatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **others: Any) -> Tensor:
        nonlocal calls
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        # Short sequences are text.
        if query.shape[2] == key.shape[2] >= GRID.num_tokens:
            calls += 1
            return attend(calls - 1, query, key, value, attn_mask).transpose(1, 2)
        return sdpa(query, key, value, attn_mask=attn_mask).transpose(1, 2)

    def dispatch_heads(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
        others = {"attn_mask": others.get("attn_mask")}
        return dispatch(*(x.transpose(1, 2) for x in (query, key, value)), **others).transpose(1, 2)

    sdpa = torch.nn.functional.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        if is_cogvideox:
            patch.setattr("diffusers.models.attention_processor.F.scaled_dot_product_attention", dispatch_heads)
        else:
            patch.setattr(sys.modules[type(model).__module__], "dispatch_attention_fn", dispatch)
        yield
    assert calls


def has_leading(model: Any) -> bool:
    """Whether extra tokens stand in front of those of the grid."""
    return type(model).__name__.startswith(("Cog", "LTX"))


@contextmanager
def masked(monkeypatch: pytest.MonkeyPatch, model: Any, patterns: tuple[Any, ...]) -> Iterator[None]:
    """Puts dense masks into the stock attention of the blocks (the reference)."""
    heads = model.config.num_attention_heads
    tables = [
        torch.stack([pattern.mask(GRID, head if pattern.num_heads else 0) for head in range(heads)])
        for pattern in patterns
    ]
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        extra = key.shape[2] - GRID.num_tokens
        sides = (extra, 0) * 2 if has_leading(model) else (0, extra) * 2
        table = torch.nn.functional.pad(tables[layer % len(tables)], sides, value=True)[None]
        return sdpa(query, key, value, attn_mask=table if mask is None else table & mask)

    with replaced(monkeypatch, model, attend):
        yield


def assert_near(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Equal, but for the round-off of float32."""
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=rtol)


def plans(model: Any) -> list[ForwardPlan]:
    """Collects the plans of coming forwards."""
    seen: list[ForwardPlan] = []

    def look(*_: Any) -> None:
        plugin = vars(model).get("_kinema_sparse_attention")
        if plugin is not None:
            seen.append(plugin.plan)

    model.norm_out.register_forward_pre_hook(look)
    return seen
