"""Helpers of reports over clips: names in errors, means of defined values, and what several processes found."""

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from kinema.errors import KinemaError

Share = TypeVar("Share")
State = TypeVar("State", bound=Metric)


@contextmanager
def naming(clip: str) -> Iterator[None]:
    """Within, a `KinemaError` says which clip it is about."""
    try:
        yield
    except KinemaError as error:
        raise KinemaError(f"clip {clip!r}: {error}") from error


def number(value: Tensor | float) -> float | None:
    """A number as JSON has it; None where it is not finite."""
    found = float(value)
    return found if math.isfinite(found) else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; None where none is."""
    defined = [value for value in values if value is not None]
    return fmean(defined) if defined else None


def total_length(items: object) -> int | None:
    """How many there are in all processes together; None where one does not know. All of them must call this."""
    lengths = gather(len(items) if isinstance(items, Sized) else None)
    known = [length for length in lengths if length is not None]
    return sum(known) if len(known) == len(lengths) else None


def place_state(metric: State, device: torch.device | str) -> State:
    """Moves a metric's state to where processes can exchange it: to the GPU, which is all that NCCL gathers from.

    With any other device it stays on the CPU: the sums are of float64, which not every accelerator has.
    """
    device = torch.device(device)
    return metric.to(device if device.type == "cuda" else "cpu")


def gather_states(state: Tensor, group: Any = None) -> list[Tensor]:
    """A `dist_sync_fn` for states of rows: an empty one is gathered as no rows of the others' width and type."""
    shape, dtype = max(gather((tuple(state.shape), state.dtype), group), key=lambda each: math.prod(each[0]))
    if not state.numel():
        state = state.new_empty((0, *shape[1:]), dtype=dtype)
    return gather_all_tensors(state, group)


def gather(share: Share, group: Any = None) -> Sequence[Share]:
    """What every process found, in the order of their ranks; all processes of the group must call this."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [share]
    shares: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(shares, share, group=group)
    return shares
