"""The base class of backends, which execute block layouts, and helpers that they share.

Shapes: b batch, h heads, s slots followed by extra tokens, n tokens in any order followed by extra tokens, d head
width, e extra tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention.grid import TokenOrder, reorder
from kinema.generation.attention.layout import BlockLayout


class BackendFailed(KinemaError):
    """A backend failed on a call that it claimed to support. Another backend can run it."""


class Backend(ABC):
    """An implementation of attention under a block layout.

    Attributes:
        name: name for the argument `backend`.
    """

    name: ClassVar[str]

    @abstractmethod
    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        """Return why the backend does not support this call, or None if it does."""

    def slower(self, query: Tensor) -> str | None:
        """Return why `auto` prefers a later backend that is faster for this call, or None."""
        return None

    @abstractmethod
    def run(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h s d"]:
        """Compute attention for all slots and extra tokens.

        Args:
            query: slots in the order of the layout, then extra tokens, which attend to all and are attended to by all.
            key: same shape and order as `query`.
            value: same shape and order as `query`.
            layout: the key tiles of each query tile.
            extra_mask: which extra tokens may be attended to; None: all.

        Raises:
            BackendFailed: the call failed for a reason that `missing` cannot foresee.
        """

    def run_from(
        self,
        input_order: TokenOrder | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """Compute attention for tokens in `input_order` (None: raster); the result has the same order."""
        query, key, value = (reorder(x, input_order, layout.order) for x in (query, key, value))
        return reorder(self.run(query, key, value, layout, extra_mask), layout.order, input_order)


class AnyOrder(Backend):
    """A backend that handles any token order without reordering; subclasses implement `run_from`."""

    def run(
        self,
        query: Float[Tensor, "b h s d"],
        key: Float[Tensor, "b h s d"],
        value: Float[Tensor, "b h s d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h s d"]:
        return self.run_from(layout.order, query, key, value, layout, extra_mask)


def dense(
    query: Float[Tensor, "b h q d"],
    key: Float[Tensor, "b h k d"],
    value: Float[Tensor, "b h k d"],
    mask: Bool[Tensor, "..."] | Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "b h q d"]:
    """Dense attention through diffusers' dispatcher, with the backend set there (SDPA, flash, xformers, ...)."""
    arranged = (x.transpose(1, 2) for x in (query, key, value))
    return dispatch_attention_fn(*arranged, attn_mask=mask).transpose(1, 2)


def check_extra_mask(extra_mask: Tensor, num_clips: int, num_extra_tokens: int) -> None:
    """Validate a mask of extra tokens.

    Raises:
        KinemaError: the mask is not of shape ``(num_clips, num_extra_tokens)``, or not boolean.
    """
    if extra_mask.shape != (num_clips, num_extra_tokens):
        raise KinemaError(
            f"`extra_mask` (of shape {tuple(extra_mask.shape)}) must be ({num_clips} clips, {num_extra_tokens} tokens)"
        )
    if extra_mask.dtype != torch.bool:
        raise KinemaError(f"`extra_mask` (of {extra_mask.dtype}) must be of torch.bool: true for tokens to attend to")


Made = TypeVar("Made")


@dataclass(frozen=True)
class _Kept(Generic[Made]):
    """A cached value and the mask of extra tokens that it was made for.

    Attributes:
        made: the value.
        memory: returns the tensor that owns the mask's memory, or None if it was freed.
        view: offset, shape and strides of the mask in that memory, and its version counter.
    """

    made: Made
    memory: Callable[[], Tensor | None]
    view: tuple[Any, ...]


class CallCache(Generic[Made]):
    """Cache of a backend's preparations by layout and kind of call; entries live as long as the layout.

    Masks of extra tokens are compared by identity and version counter: the blocks of a transformer share one mask, and
    comparing values would synchronise with the device.

    Args:
        max_calls: kinds of calls to keep per layout; the oldest are dropped.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._kept: WeakKeyDictionary[BlockLayout, dict[tuple[Any, ...], _Kept[Made]]] = WeakKeyDictionary()

    def get(self, layout: BlockLayout, call: tuple[Any, ...], extra_mask: Tensor | None) -> Made | None:
        """Return the cached value for this kind of call, or None."""
        kept = self._kept.get(layout, {}).get(call)
        if kept is None or (extra_mask is not None and extra_mask.is_inference()):
            return None
        memory, view = _view_of(extra_mask)
        return kept.made if kept.memory() is memory and kept.view == view else None

    def put(self, layout: BlockLayout, call: tuple[Any, ...], extra_mask: Tensor | None, made: Made) -> None:
        """Cache a value for this kind of call."""
        if extra_mask is not None and extra_mask.is_inference():
            return  # inference tensors have no version counter
        calls = self._kept.setdefault(layout, {})
        calls.pop(call, None)
        memory, view = _view_of(extra_mask)
        calls[call] = _Kept(made, (lambda: None) if memory is None else ref(memory), view)
        for other in list(calls)[: -self._max_calls]:  # another thread may have removed it already
            calls.pop(other, None)


def _view_of(mask: Tensor | None) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Return the tensor that owns a mask's memory (each block may make a new slice of it), and the view parameters."""
    if mask is None:
        return None, ()
    memory = mask if mask._base is None else mask._base
    return memory, (mask.storage_offset(), tuple(mask.shape), mask.stride(), mask._version)


def key_mask(
    order: TokenOrder | None, query: Float[Tensor, "b h n d"], extra_mask: Bool[Tensor, "b e"] | None
) -> Bool[Tensor, "b n"] | None:
    """Return which slots of an order (None: raster) and extra tokens are valid keys; None: all."""
    valid = None if order is None or not order.is_ragged else order.to(query.device).valid
    if valid is None and extra_mask is None:
        return None
    mask = torch.ones(len(query), query.shape[2], dtype=torch.bool, device=query.device)
    if valid is not None:
        mask[:, : len(valid)] = valid
    if extra_mask is not None:
        mask[:, query.shape[2] - extra_mask.shape[1] :] = extra_mask
    return mask


def attend_extra(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h n d"],
    value: Float[Tensor, "b h n d"],
    order: TokenOrder | None,
    num_video: int,
    extra_mask: Bool[Tensor, "b e"] | None,
) -> Float[Tensor, "b h e d"]:
    """Compute attention of the extra tokens (from index `num_video`) to all tokens."""
    mask = key_mask(order, query, extra_mask)
    mask = None if mask is None else mask[:, None, None, :]
    return dense(query[:, :, num_video:], key, value, mask)
