"""Compiled FlexAttention (torch.nn.attention.flex_attention): forward and backward on CUDA, forward only on a CPU.

Shapes: b batch, h heads, s slots followed by extra tokens, d head width, e extra tokens.
"""

import functools
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from kinema.generation.attention.backends.base import Backend, BackendFailed, CallCache, key_mask
from kinema.generation.attention.backends.gather import Gather
from kinema.generation.attention.layout import BlockLayout
from kinema.loading import one_line
from kinema.machine import inference_mode_disabled, missing_compiler

logger = logging.getLogger(__name__)

_CHECK_LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference from the gather backend that is accepted of a CPU kernel, relative to the largest value."""

_checked: dict[tuple[Any, ...], float] = {}
"""Measured differences of CPU kernels in this process, by kind of call."""


class Flex(Backend):
    """Compiled FlexAttention with a block mask made from the layout.

    Compiled once per kind of mask, head width and dtype; lengths are dynamic, which may cause one more compilation. On
    Hopper and later GPUs, FlashAttention's kernels are used if installed. On a CPU, the first call with each shape is
    compared with the gather backend, and the shape is rejected if results differ: some kernels of torch 2.15 are wrong
    (docs/decisions.md).
    """

    name: ClassVar[str] = "flex"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        if query.is_cuda:
            size = layout.order.tile_size
            return None if size % 16 == 0 else f"tiles have {size} tokens, and CUDA kernels need a multiple of 16"
        if query.device.type != "cpu":
            return f"it runs on cuda and cpu, not on {query.device.type}"
        if query.dtype not in _CHECK_LIMIT:
            return f"its CPU kernels do not compute in {query.dtype}"
        if torch.is_grad_enabled() and query.requires_grad:
            return "its CPU kernels have no backward pass"
        return missing_compiler(query.device)

    def slower(self, query: Tensor) -> str | None:
        return None if query.is_cuda else "on a CPU, gather needs no compilation and was faster in all measurements"

    def run(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h s d"]:
        if query.is_cuda:
            return _run(query, key, value, layout, extra_mask)
        if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
            raise BackendFailed("`backend` (=flex) cannot run this: its CPU kernels have no backward pass")
        kind = (*query.shape, query.dtype, layout.order.tile_size, layout.mask is None, extra_mask is None)
        if kind in _checked:
            _raise_wrong(query, _checked[kind])
            return _run(query, key, value, layout, extra_mask)
        out = _run(query, key, value, layout, extra_mask)
        wanted = Gather().run(query, key, value, layout, extra_mask)
        scale = value.abs().max().clamp(min=1.0)
        _checked[kind] = ((out - wanted).abs().max() / scale).nan_to_num(torch.inf).item()
        _raise_wrong(query, _checked[kind])
        return out


def _raise_wrong(query: Tensor, difference: float) -> None:
    if difference > _CHECK_LIMIT[query.dtype]:
        raise BackendFailed(
            f"`backend` (=flex) gives wrong results for {tuple(query.shape)} on this CPU: they differ from those of"
            f" gather by {difference:.2g} of the largest value"
        )


def _run(
    query: Float[Tensor, "b h s d"],
    key: Float[Tensor, "b h s d"],
    value: Float[Tensor, "b h s d"],
    layout: BlockLayout,
    extra_mask: Bool[Tensor, "b e"] | None,
) -> Float[Tensor, "b h s d"]:
    length, size = query.shape[2], layout.order.tile_size
    block_mask = _block_mask(layout, query, extra_mask)
    padding = -length % size
    padded = [pad(x, (0, 0, 0, padding)) if padding else x for x in (query, key, value)]
    *fast, default = kernel_options(query)
    for options in fast:
        try:
            return _compiled()(*padded, block_mask=block_mask, kernel_options=options)[:, :, :length]
        except RuntimeError as error:  # raised by compilation and by kernels
            _log_fallback_once(str(options), one_line(error))
    try:
        return _compiled()(*padded, block_mask=block_mask, kernel_options=default)[:, :, :length]
    except TorchDynamoException as error:  # the base class of inductor's errors
        reason = next((line for line in str(error).splitlines() if "error" in line), type(error).__name__)
        raise BackendFailed(f"`backend` (=flex) could not be compiled for this: {reason.strip()[:300]}") from error


def kernel_options(query: Tensor) -> list[dict[str, Any]]:
    """Return kernel options to try, fastest first; the last are torch's defaults, which run everywhere."""
    is_hopper = query.is_cuda and torch.cuda.get_device_capability(query.device) >= (9, 0)
    flash = [{"BACKEND": "FLASH"}] if is_hopper and _has_flash() else []
    return [*flash, {}]


def _has_flash() -> bool:
    """Whether FlashAttention's kernels for FlexAttention (flash-attn-4, module flash_attn.cute) are installed."""
    try:
        return find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


@functools.lru_cache(maxsize=16)
def _log_fallback_once(options: str, reason: str) -> None:
    logger.warning("FlexAttention's kernels %s failed, torch's own run instead: %s", options, reason)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


_block_masks: CallCache[BlockMask] = CallCache(4)
"""Cached block masks: making one sorts tables of tile pairs."""


def _block_mask(
    layout: BlockLayout, query: Float[Tensor, "b h s d"], extra_mask: Bool[Tensor, "b e"] | None
) -> BlockMask:
    """Convert the layout to FlexAttention's block mask, with extra tokens as additional tiles at the end. Cached."""
    call = (query.device, query.shape[2], None if extra_mask is None else len(query))
    made = _block_masks.get(layout, call, extra_mask)
    if made is None:
        with inference_mode_disabled():
            made = _make_block_mask(layout, query, extra_mask)
        _block_masks.put(layout, call, extra_mask, made)
    return made


def _make_block_mask(
    layout: BlockLayout, query: Float[Tensor, "b h s d"], extra_mask: Bool[Tensor, "b e"] | None
) -> BlockMask:
    order, device = layout.order.to(query.device), query.device
    length, tiles, size = query.shape[2], order.num_tiles, order.tile_size
    extra_tiles = -(-(length - order.num_slots) // size)
    batch = len(query) if extra_mask is not None else layout.indices.shape[0]
    seen, whole = (table.to(device).expand(batch, -1, -1, -1) for table in layout.seen())
    seen, whole = (pad(table, (0, extra_tiles, 0, extra_tiles), value=True) for table in (seen, whole))
    keys = key_mask(layout.order, query, extra_mask)
    if keys is None:
        keys = torch.ones(1, length, dtype=torch.bool, device=device)
    keys = pad(keys, (0, (tiles + extra_tiles) * size - length))
    all_valid = keys.unflatten(1, (-1, size)).all(2)
    whole = whole & all_valid[:, None, None, :]
    partial = seen & ~whole
    lists = [_lists(table) for table in (partial, whole)]
    mask = _mask_function(layout, keys)
    return BlockMask.from_kv_blocks(*lists[0], *lists[1], BLOCK_SIZE=(size, size), mask_mod=mask)


def _lists(table: Tensor) -> tuple[Tensor, Tensor]:
    counts = table.sum(-1, dtype=torch.int32)
    return counts, table.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices.to(torch.int32)


def _mask_function(layout: BlockLayout, keys: Tensor) -> Callable[..., Tensor]:
    """Return the mask function for partial tiles and for tiles with unused slots."""
    has_batch = layout.indices.shape[0] > 1
    slots, size, heads = layout.order.num_slots, layout.order.tile_size, layout.num_heads
    tokens = pad(layout.order.to(keys.device).tokens, (0, keys.shape[1] - slots))
    keys_have_batch = len(keys) > 1

    def exists(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return keys[b if keys_have_batch else 0, k]

    if layout.mask is None:
        return exists
    token_mask = layout.mask
    # Full tiles of the layout are partial here if some of their slots are unused.
    planned = layout.seen()[1].to(keys.device)
    planned = pad(planned, (0, (keys.shape[1] - slots) // size, 0, (keys.shape[1] - slots) // size), value=True)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        head = b * heads + h if has_batch else h
        table = planned[b if planned.shape[0] > 1 else 0, h if planned.shape[1] > 1 else 0, q // size, k // size]
        return (table | token_mask(head, tokens[q], tokens[k])) & keys[b if keys_have_batch else 0, k]

    return sees
