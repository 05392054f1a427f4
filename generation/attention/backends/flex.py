"""FlexAttention (torch.nn.attention.flex_attention), compiled: on CUDA forward and backward, on a CPU forward.

Shapes: b batch, h heads, s slots and extra tokens, d head width, e extra tokens, t tiles, x tiles of extra tokens.
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
from kinema.machine import lasting, missing_compiler

logger = logging.getLogger(__name__)

_CHECK_LIMIT = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Differences from gathering up to which a CPU kernel counts as right, for values of about 1."""

_checked: dict[tuple[Any, ...], float] = {}
"""The differences of the CPU kernels of this process, by what they were compiled for and ran on."""


class Flex(Backend):
    """Compiled FlexAttention with a block mask made of the layout's lists: tiles seen wholly have no mask function.

    Compiled once for a kind of mask, head width and type; lengths are dynamic, which may take one compilation more. On
    Hopper and later, FlashAttention's kernels run it where its package is installed. On a CPU each new shape is run
    twice, here and by gathering, and refused for good where the results differ: torch 2.15's kernels are wrong for some
    (docs/decisions.md).
    """

    name: ClassVar[str] = "flex"

    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        if query.is_cuda:
            size = layout.order.tile_size
            return None if size % 16 == 0 else f"tiles of {size} tokens: CUDA kernels need a multiple of 16"
        if query.device.type != "cpu":
            return f"it runs on cuda and cpu, not on {query.device.type}"
        if query.dtype not in _CHECK_LIMIT:
            return f"its CPU kernels do not compute in {query.dtype}"
        if torch.is_grad_enabled() and query.requires_grad:
            return "its CPU kernels have no backward pass"
        return missing_compiler(query.device)

    def slower(self, query: Tensor) -> str | None:
        return (
            None
            if query.is_cuda
            else "gathering needs no compilation on a CPU, and was faster where both were measured"
        )

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
    behind = -length % size
    padded = [pad(x, (0, 0, 0, behind)) if behind else x for x in (query, key, value)]
    *fast, plain = kernel_options(query)
    for options in fast:
        try:
            return _compiled()(*padded, block_mask=block_mask, kernel_options=options)[:, :, :length]
        except RuntimeError as error:  # what compilation and kernels raise
            _say_slow(str(options), one_line(error))
    try:
        return _compiled()(*padded, block_mask=block_mask, kernel_options=plain)[:, :, :length]
    except TorchDynamoException as error:  # inductor's errors are of this kind
        reason = next((line for line in str(error).splitlines() if "error" in line), type(error).__name__)
        raise BackendFailed(f"`backend` (=flex) could not be compiled for this: {reason.strip()[:300]}") from error


def kernel_options(query: Tensor) -> list[dict[str, Any]]:
    """Options of kernels to try, the fastest first; the last ones are torch's own, which run everywhere."""
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
def _say_slow(options: str, reason: str) -> None:
    logger.warning("FlexAttention's kernels %s failed, torch's own run instead: %s", options, reason)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


_block_masks: CallCache[BlockMask] = CallCache(4)
"""Block masks of layouts that are in use: to make one sorts tables of tiles."""


def _block_mask(
    layout: BlockLayout, query: Float[Tensor, "b h s d"], extra_mask: Bool[Tensor, "b e"] | None
) -> BlockMask:
    """The layout with its extra tokens as tiles behind the others, in FlexAttention's terms; made once."""
    call = (query.device, query.shape[2], None if extra_mask is None else len(query))
    made = _block_masks.get(layout, call, extra_mask)
    if made is None:
        with lasting():
            made = _make_block_mask(layout, query, extra_mask)
        _block_masks.put(layout, call, extra_mask, made)
    return made


def _make_block_mask(
    layout: BlockLayout, query: Float[Tensor, "b h s d"], extra_mask: Bool[Tensor, "b e"] | None
) -> BlockMask:
    order, device = layout.order.to(query.device), query.device
    length, tiles, size = query.shape[2], order.num_tiles, order.tile_size
    more = -(-(length - order.num_slots) // size)
    batch = len(query) if extra_mask is not None else layout.indices.shape[0]
    seen, whole = (table.to(device).expand(batch, -1, -1, -1) for table in layout.seen())
    seen, whole = (pad(table, (0, more, 0, more), value=True) for table in (seen, whole))
    keys = key_mask(layout.order, query, extra_mask)
    if keys is None:
        keys = torch.ones(1, length, dtype=torch.bool, device=device)
    keys = pad(keys, (0, (tiles + more) * size - length))
    everything_there = keys.unflatten(1, (-1, size)).all(2)
    whole = whole & everything_there[:, None, None, :]
    partial = seen & ~whole
    lists = [_lists(table) for table in (partial, whole)]
    mask = _mask_function(layout, keys)
    return BlockMask.from_kv_blocks(*lists[0], *lists[1], BLOCK_SIZE=(size, size), mask_mod=mask)


def _lists(table: Tensor) -> tuple[Tensor, Tensor]:
    counts = table.sum(-1, dtype=torch.int32)
    return counts, table.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices.to(torch.int32)


def _mask_function(layout: BlockLayout, keys: Tensor) -> Callable[..., Tensor]:
    """What is seen within tiles that are seen in part, or of which slots are empty."""
    clips = layout.indices.shape[0] > 1
    slots, size, heads = layout.order.num_slots, layout.order.tile_size, layout.num_heads
    tokens = pad(layout.order.to(keys.device).tokens, (0, keys.shape[1] - slots))
    many = len(keys) > 1

    def exists(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return keys[b if many else 0, k]

    if layout.mask is None:
        return exists
    see = layout.mask
    # Tiles that were seen wholly may be here for their empty slots.
    planned = layout.seen()[1].to(keys.device)
    planned = pad(planned, (0, (keys.shape[1] - slots) // size, 0, (keys.shape[1] - slots) // size), value=True)

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        head = b * heads + h if clips else h
        table = planned[b if planned.shape[0] > 1 else 0, h if planned.shape[1] > 1 else 0, q // size, k // size]
        return (table | see(head, tokens[q], tokens[k])) & keys[b if many else 0, k]

    return sees
