"""Attention under a pattern: the one entry point.

Shapes: b batch, h heads, n tokens of the grid (or s slots of the pattern's order) with e extra tokens behind, d width.
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
from kinema.machine import as_given

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
    """Softmax attention in which video tokens see what the pattern says.

    Extra tokens (text, conditions), behind those of the grid, see all tokens and are seen by all.

    Args:
        query: ``(b, h, n, d)``.
        key: likewise; as many heads as queries.
        value: likewise.
        pattern: which tokens see which.
        grid: numbers of video tokens along time, height and width.
        num_extra_tokens: tokens behind those of the grid.
        backend: a name in `BACKENDS`, or `auto`: the fastest that can run this here.
        order: `raster`: video tokens come (t h w); `tile`: in the slots of ``pattern.order(grid)``, as its `arrange`
            puts them; or another order whose slots they come in. The result has the same order.
        extra_mask: ``(b, num_extra_tokens)``, which of them exist as keys (padding does not); None: all.
        step: the denoising step, for a pattern that changes with it.

    Returns:
        The shape of `query`.

    Raises:
        KinemaError: shapes, pattern, grid and backend do not fit; nothing was computed.
    """
    check_backend(backend)
    for name, argument, kind in (("pattern", pattern, Pattern), ("grid", grid, Grid)):
        if not isinstance(argument, kind):
            raise KinemaError(f"`{name}` (={argument!r}) must be a {kind.__name__}")
    given = _given_order(order, pattern, grid)
    length = (grid.num_tokens if given is None else given.num_slots) + num_extra_tokens
    where = f"grid {grid} in {'raster' if given is None else 'tile'} order"
    _check(query, key, value, extra_mask, num_extra_tokens, length, where)
    pattern.check_heads(query.shape[1])
    groups = pattern.groups(grid) if isinstance(pattern, PerHead) else []
    if len(groups) > 1:  # tiles of several kinds
        out: dict[int, Tensor] = {}
        for each, heads in groups:
            own = sparse_attention(
                *(x[:, heads] for x in (query, key, value)),
                pattern=each,
                grid=grid,
                num_extra_tokens=num_extra_tokens,
                backend=backend,
                order="raster" if given is None else given,
                extra_mask=extra_mask,
                step=step,
            )
            out |= dict(zip(heads, own.unbind(1), strict=True))
        return torch.stack([out[head] for head in range(query.shape[1])], dim=1)
    layout = _plan(pattern, grid, query, key, value, num_extra_tokens, step, given)
    return run_layout(query, key, value, layout, backend, extra_mask, given)


def _given_order(order: str | TokenOrder, pattern: Pattern, grid: Grid) -> TokenOrder | None:
    """The order that tokens come in; None: raster."""
    if isinstance(order, TokenOrder):
        if order.grid != grid:
            raise KinemaError(f"`order` (of the grid {order.grid}) must be of the grid {grid}")
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
    given: TokenOrder | None,
) -> BlockLayout:
    """The pattern's layout for tensors in a given order."""
    if not isinstance(pattern, DynamicPattern):
        return pattern.plan(grid, query.shape[1], num_extra_tokens, step=step)
    order = pattern.order(grid)
    query, key, value = (reorder(x, given, order)[:, :, : order.num_slots] for x in (query, key, value))
    with as_given(query.device):  # rounded scores have ties
        return pattern.plan_slots(order, num_extra_tokens, query, key, step, value)


def run_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    backend: str = "auto",
    extra_mask: Tensor | None = None,
    given: TokenOrder | None = None,
) -> Tensor:
    """Attention under a layout, for tensors in a given order (None: raster); see `sparse_attention`."""
    chosen = choose_backend(backend, layout, query)
    try:
        return chosen.run_from(given, query, key, value, layout, extra_mask)
    except BackendFailed as error:
        if backend != "auto":
            raise
        _say_failure(chosen.name, str(error))
        return BACKENDS[FALLBACK].run_from(given, query, key, value, layout, extra_mask)


def check_backend(name: str) -> None:
    """Raises an error where there is no backend of this name.

    Raises:
        KinemaError: so it is.
    """
    if name != "auto" and name not in BACKENDS:
        raise KinemaError(f"`backend` (={name}) must be one of auto, {', '.join(BACKENDS)}")


def choose_backend(name: str, layout: BlockLayout, query: Tensor) -> Backend:
    """The backend of a name, or the first that can run the layout.

    Raises:
        KinemaError: the name is unknown, or the backend cannot run this here; the message says what would.
    """
    check_backend(name)
    reasons: dict[str, str] = {}
    for other, backend in BACKENDS.items():
        reason = backend.missing(layout, query) or backend.slower(query)
        if reason is None:
            break
        reasons[other] = reason
    else:
        raise AssertionError("the last backend runs everything")
    if name == "auto":
        _say(other, query.device.type, str(query.dtype), layout.order.tile_size, tuple(reasons.items()))
        return backend
    reason = BACKENDS[name].missing(layout, query)
    if reason is not None:
        raise KinemaError(f"`backend` (={name}) cannot run this: {reason}; auto would use {other}")
    return BACKENDS[name]


@lru_cache(maxsize=256)
def _say_failure(name: str, reason: str) -> None:
    logger.warning("attention backend %s failed, %s runs instead: %s", name, FALLBACK, reason)


@lru_cache(maxsize=256)
def _say(name: str, device: str, dtype: str, tile_size: int, others: tuple[tuple[str, str], ...]) -> None:
    """One line for each kind of call."""
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
