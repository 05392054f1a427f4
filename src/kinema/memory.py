"""Out of memory: one line that says what was asked for, what is there, and what makes it fit."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kinema.errors import KinemaError

_TRIED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)")
_THERE = re.compile(r"total capacity of ([\d.]+ [KMGT]iB) of which ([\d.]+ [KMGT]iB) is free")


@contextmanager
def out_of_memory_in_one_line(what: str, remedies: str) -> Iterator[None]:
    """Within it, a device or a machine without enough memory is an error of one line.

    Args:
        what: What was computed, as the subject of the message.
        remedies: Settings that make it fit.

    Raises:
        KinemaError: Memory did not suffice.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise KinemaError(_message(what, remedies, str(error))) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator has no class of its own
            raise
        raise KinemaError(_message(what, remedies, str(error))) from error


def _message(what: str, remedies: str, told: str) -> str:
    """One line from torch's many.

    >>> told = "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free."
    >>> _message("A", "less B", told)
    'A must fit in memory: 2.00 GiB more were asked for, and 1.20 GiB of 79.10 GiB are free; less B'
    >>> _message("A", "less B", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")
    'A must fit in memory: 4.00 GiB more were asked for; less B'
    """
    tried, there = _TRIED.search(told), _THERE.search(told)
    asked = ""
    if tried is not None:
        number, unit = tried.groups()
        asked = f": {float(number) / 2**30:.2f} GiB" if unit == "bytes" else f": {number} {unit}"
        asked += " more were asked for"
    if there is not None:
        asked += f", and {there[2]} of {there[1]} are free"
    return f"{what} must fit in memory{asked}; {remedies}"
