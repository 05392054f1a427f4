"""What executes a layout.

Shapes: b batch, h heads, s slots of the order and extra tokens behind them, n tokens of any order and extra tokens, d
head width, e extra tokens.
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
    """A backend that seemed able to run something was not; another one can."""


class Backend(ABC):
    """A way to compute attention under a layout.

    Attributes:
        name: the name in `backend=...`.
    """

    name: ClassVar[str]

    @abstractmethod
    def missing(self, layout: BlockLayout, query: Tensor) -> str | None:
        """What keeps it from running this here; None: nothing."""

    def slower(self, query: Tensor) -> str | None:
        """Why `auto` passes it over though it could run: a backend behind it in the table is faster; None: none is."""
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
        """Attention of all slots and extra tokens.

        Args:
            query: in the order of the layout; extra tokens, which see and are seen by all, behind.
            key: likewise.
            value: likewise.
            layout: which tiles see which.
            extra_mask: which extra tokens exist as keys; None: all.

        Raises:
            BackendFailed: it could not, for a reason that `missing` cannot know.
        """

    def run_from(
        self,
        given: TokenOrder | None,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b h n d"],
        value: Float[Tensor, "b h n d"],
        layout: BlockLayout,
        extra_mask: Bool[Tensor, "b e"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """Attention of tokens in another order than the layout's, to that order (None: raster)."""
        query, key, value = (reorder(x, given, layout.order) for x in (query, key, value))
        return reorder(self.run(query, key, value, layout, extra_mask), layout.order, given)


class AnyOrder(Backend):
    """A way that takes tokens in any order as they are: it says how in `run_from`."""

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
    """Dense attention through diffusers' dispatcher, by the backend that is set there (SDPA, flash, xformers, ...)."""
    arranged = (x.transpose(1, 2) for x in (query, key, value))
    return dispatch_attention_fn(*arranged, attn_mask=mask).transpose(1, 2)


def check_extra_mask(extra_mask: Tensor, num_clips: int, num_extra_tokens: int) -> None:
    """Raises an error where a mask is not ``(num_clips, num_extra_tokens)`` of booleans.

    Raises:
        KinemaError: so it is. Numbers would be added to scores.
    """
    if extra_mask.shape != (num_clips, num_extra_tokens):
        raise KinemaError(
            f"`extra_mask` (of shape {tuple(extra_mask.shape)}) must be ({num_clips} clips, {num_extra_tokens} tokens)"
        )
    if extra_mask.dtype != torch.bool:
        raise KinemaError(f"`extra_mask` (of {extra_mask.dtype}) must be of torch.bool: true for tokens that exist")


Made = TypeVar("Made")


@dataclass(frozen=True)
class _Kept(Generic[Made]):
    """Something made for a call, and the mask of extra tokens that it was made for.

    Attributes:
        made: what was made.
        memory: the tensor that has the mask's memory, while it lives.
        view: where the mask stands in it, and how often it was written to.
    """

    made: Made
    memory: Callable[[], Tensor | None]
    view: tuple[Any, ...]


class CallCache(Generic[Made]):
    """What a backend worked out for a layout, for the next call of the same kind; it lasts as long as the layout.

    Masks of extra tokens are told apart by identity, and by whether they were written to: the blocks of a transformer
    get the same one, one after the other, and looking at its values would make the host wait for the device.

    Args:
        most: kinds of calls that are kept for a layout, the newest ones.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: WeakKeyDictionary[BlockLayout, dict[tuple[Any, ...], _Kept[Made]]] = WeakKeyDictionary()

    def get(self, layout: BlockLayout, call: tuple[Any, ...], extra_mask: Tensor | None) -> Made | None:
        """What was kept for a call like this one; None: nothing."""
        kept = self._kept.get(layout, {}).get(call)
        if kept is None or (extra_mask is not None and extra_mask.is_inference()):
            return None
        memory, view = _view_of(extra_mask)
        return kept.made if kept.memory() is memory and kept.view == view else None

    def put(self, layout: BlockLayout, call: tuple[Any, ...], extra_mask: Tensor | None, made: Made) -> None:
        """Keeps something for the next call like this one."""
        if extra_mask is not None and extra_mask.is_inference():
            return  # such tensors do not tell whether they were written to
        calls = self._kept.setdefault(layout, {})
        calls.pop(call, None)
        memory, view = _view_of(extra_mask)
        calls[call] = _Kept(made, (lambda: None) if memory is None else ref(memory), view)
        for other in list(calls)[: -self._most]:  # other threads may do the same
            calls.pop(other, None)


def _view_of(mask: Tensor | None) -> tuple[Tensor | None, tuple[Any, ...]]:
    """The tensor that has a mask's memory (blocks may slice the same one anew), and where the mask stands in it."""
    if mask is None:
        return None, ()
    memory = mask if mask._base is None else mask._base
    return memory, (mask.storage_offset(), tuple(mask.shape), mask.stride(), mask._version)


def key_mask(
    order: TokenOrder | None, query: Float[Tensor, "b h n d"], extra_mask: Bool[Tensor, "b e"] | None
) -> Bool[Tensor, "b n"] | None:
    """Which slots of an order (None: raster) and extra tokens exist as keys; None: all of them."""
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
    """What extra tokens, from place `num_video` on, see: everything."""
    mask = key_mask(order, query, extra_mask)
    mask = None if mask is None else mask[:, None, None, :]
    return dense(query[:, :, num_video:], key, value, mask)
