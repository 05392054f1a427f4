"""Finds where a program would wait for an accelerator, on a machine that has none."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_WAITING = {
    _aten._local_scalar_dense.default,
    _aten.is_nonzero.default,
    _aten.equal.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
    _aten.bincount.default,
}


class _FindWaits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _WAITING:
            lines = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
            where = [f"{f.filename}:{f.lineno} {f.line}" for f in lines if "waits.py" not in f.filename]
            self.found.append(f"{func} at {where[-1]}")
        elif any(_is_masked_index(func, index) for index in args[1:2]):
            self.found.append(f"{func} by a boolean mask")
        return func(*args, **(kwargs or {}))


def _is_masked_index(func, indices) -> bool:
    if func not in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
        return False
    return any(i is not None and i.dtype == torch.bool for i in indices)


@contextmanager
def no_waits() -> Iterator[None]:
    """Fails where an operation within it needs the values of a tensor on the host, or has a result of unknown size.

    Raises:
        AssertionError: names each of them.
    """
    with _FindWaits() as mode:
        yield
    assert not mode.found, "\n".join(mode.found)
