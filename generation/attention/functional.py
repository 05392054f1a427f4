"""Sparse attention: the entry point, and the choice of a backend.

Shapes: b batch, h heads, n video tokens (or s slots of a token order) followed by e extra tokens, d head width.
"""

import logging
from functools import lru_cache

import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.backends import BACKENDS, FALLBACK, Backend, BackendFailed
from kinema.generation.attention.backends.base import check_extra_mask
from kinema.generation.attention.grid import Grid, TokenOrder, reorder
from kinema.generation.attention.layout import BlockLayout
from kinema.generation.attention.patterns import DynamicPattern, Pattern, PerHead
from kinema.machine import autocast_disabled

logger = logging.getLogger(__name__)


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    grid: Grid,
    *,
    num_extra_tokens: int = 0,
    backend: str = "auto",
    order: str | TokenOrder = "raster",
    extra_mask: Tensor | None = None,
    step: int | None = None,
) -> Tensor:
    """Softmax attention in which each video token attends only to the tokens that the pattern allows.

    Extra tokens (text, conditions) follow the video tokens. They attend to all tokens, and all tokens attend to them.

    Args:
        query: ``(b, h, n + e, d)``.
        key: same shape as `query`.
        value: same shape as `query`.
        pattern: which tokens each token attends to.
        grid: number of video tokens along time, height and width.
        num_extra_tokens: number of extra tokens.
        backend: a name in `BACKENDS`, or `auto` for the fastest one that supports this call.
        order: order of the video tokens in the inputs and the result. `raster`: (t h w); `tile`: the slots of
            ``pattern.order(grid)``, as made by its `arrange`; or the slots of another `TokenOrder`.
        extra_mask: ``(b, num_extra_tokens)``, true for extra tokens to attend to (false for padding); None: all.
        step: the denoising step, for patterns that depend on it.

    Returns:
        A tensor with the shape of `query`.

    Raises:
        KinemaError: shapes, pattern, grid or backend do not match.
    """
    check_backend(backend)
    for name, argument, kind in (("pattern", pattern, Pattern), ("grid", grid, Grid)):
        if not isinstance(argument, kind):
            raise KinemaError(f"`{name}` (={argument!r}) must be a {kind.__name__}")
    input_order = _input_order(order, pattern, grid)
    length = (grid.num_tokens if input_order is None else input_order.num_slots) + num_extra_tokens
    where = f"grid {grid} in {'raster' if input_order is None else 'tile'} order"
    _check(query, key, value, extra_mask, num_extra_tokens, length, where)
    pattern.check_heads(query.shape[1])
    groups = pattern.groups(grid) if isinstance(pattern, PerHead) else []
    if len(groups) > 1:  # heads with different tiles are computed separately
        out: dict[int, Tensor] = {}
        for each, heads in groups:
            group_out = sparse_attention(
                *(x[:, heads] for x in (query, key, value)),
                pattern=each,
                grid=grid,
                num_extra_tokens=num_extra_tokens,
                backend=backend,
                order="raster" if input_order is None else input_order,
                extra_mask=extra_mask,
                step=step,
            )
            out |= dict(zip(heads, group_out.unbind(1), strict=True))
        return torch.stack([out[head] for head in range(query.shape[1])], dim=1)
    layout = _plan(pattern, grid, query, key, value, num_extra_tokens, step, input_order)
    return run_layout(query, key, value, layout, backend, extra_mask, input_order)


def _input_order(order: str | TokenOrder, pattern: Pattern, grid: Grid) -> TokenOrder | None:
    """Return the order of the input tokens; None: raster."""
    if isinstance(order, TokenOrder):
        if order.grid != grid:
            raise KinemaError(f"`order` (for grid {order.grid}) must be for `grid` (={grid})")
        return order
    if order not in ("raster", "tile"):
        raise KinemaError(f"`order` (={order}) must be one of raster, tile")
    return pattern.order(grid) if order == "tile" else None


def _plan(
    pattern: Pattern,
    grid: Grid,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_extra_tokens: int,
    step: int | None,
    input_order: TokenOrder | None,
) -> BlockLayout:
    """Return the pattern's layout for tensors in `input_order`."""
    if not isinstance(pattern, DynamicPattern):
        return pattern.plan(grid, query.shape[1], num_extra_tokens, step=step)
    order = pattern.order(grid)
    query, key, value = (reorder(x, input_order, order)[:, :, : order.num_slots] for x in (query, key, value))
    with autocast_disabled(query.device):  # scores in a lower precision would tie
        return pattern.plan_slots(order, num_extra_tokens, query, key, step, value)


def run_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    backend: str = "auto",
    extra_mask: Tensor | None = None,
    input_order: TokenOrder | None = None,
) -> Tensor:
    """Compute attention under a layout, for tensors in `input_order` (None: raster); see `sparse_attention`."""
    chosen = choose_backend(backend, layout, query)
    try:
        return chosen.run_from(input_order, query, key, value, layout, extra_mask)
    except BackendFailed as error:
        if backend != "auto":
            raise
        _log_failure_once(chosen.name, str(error))
        return BACKENDS[FALLBACK].run_from(input_order, query, key, value, layout, extra_mask)


def check_backend(name: str) -> None:
    """Validate a backend name. Raises KinemaError if `name` is not registered."""
    if name != "auto" and name not in BACKENDS:
        raise KinemaError(f"`backend` (={name}) must be one of auto, {', '.join(BACKENDS)}")


def choose_backend(name: str, layout: BlockLayout, query: Tensor) -> Backend:
    """Return the backend called `name`, or for `auto` the fastest one that supports the layout.

    Raises:
        KinemaError: `name` is not registered, or that backend does not support the layout on this device.
    """
    check_backend(name)
    reasons: dict[str, str] = {}
    for other, backend in BACKENDS.items():
        reason = backend.missing(layout, query) or backend.slower(query)
        if reason is None:
            break
        reasons[other] = reason
    else:
        raise AssertionError("the last backend supports every layout")
    if name == "auto":
        _log_once(other, query.device.type, str(query.dtype), layout.order.tile_size, tuple(reasons.items()))
        return backend
    reason = BACKENDS[name].missing(layout, query)
    if reason is not None:
        raise KinemaError(f"`backend` (={name}) cannot run this: {reason}; auto would use {other}")
    return BACKENDS[name]


@lru_cache(maxsize=256)
def _log_failure_once(name: str, reason: str) -> None:
    logger.warning("attention backend %s failed, %s runs instead: %s", name, FALLBACK, reason)


@lru_cache(maxsize=256)
def _log_once(name: str, device: str, dtype: str, tile_size: int, others: tuple[tuple[str, str], ...]) -> None:
    """Log the chosen backend once for each kind of call."""
    because = "; ".join(f"not {other}: {reason}" for other, reason in others) or "nothing is faster"
    logger.info("attention backend %s on %s, %s, tiles of %d tokens (%s)", name, device, dtype, tile_size, because)


def _check(
    query: Tensor, key: Tensor, value: Tensor, extra_mask: Tensor | None, num_extra_tokens: int, length: int, of: str
) -> None:
    if num_extra_tokens < 0:
        raise KinemaError(f"`num_extra_tokens` (={num_extra_tokens}) must be at least 0")
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or x.shape[2] != length:
            raise KinemaError(
                f"`{name}` (of shape {tuple(x.shape)}) must be (b, heads, {length} tokens, d): {of} and"
                f" {num_extra_tokens} extra tokens"
            )
        if not x.shape[3]:
            raise KinemaError(f"`{name}` (of shape {tuple(x.shape)}) must have heads of a width of at least 1")
        if x.shape != query.shape:
            raise KinemaError(f"`{name}` (of shape {tuple(x.shape)}) must fit `query` (of shape {tuple(query.shape)})")
        if x.dtype != query.dtype or x.device != query.device:
            raise KinemaError(f"`{name}` (={x.dtype} on {x.device}) must be {query.dtype} on {query.device} as `query`")
    if extra_mask is not None:
        check_extra_mask(extra_mask, len(query), num_extra_tokens)
