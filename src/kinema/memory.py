"""One-line errors for running out of memory: what was requested, what is available, and how to reduce it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kinema.errors import KinemaError

_REQUESTED = re.compile(r"[Tt]ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)")
_AVAILABLE = re.compile(r"total capacity of ([\d.]+ [KMGT]iB) of which ([\d.]+ [KMGT]iB) is free")


@contextmanager
def out_of_memory_in_one_line(what: str, remedies: str) -> Iterator[None]:
    """Context manager that converts out-of-memory errors of device and host to a one-line error.

    Args:
        what: What was computed, the subject of the message.
        remedies: Settings that reduce the memory needed.

    Raises:
        KinemaError: Out of memory.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise KinemaError(_message(what, remedies, str(error))) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU allocator raises a plain RuntimeError
            raise
        raise KinemaError(_message(what, remedies, str(error))) from error


def _message(what: str, remedies: str, details: str) -> str:
    """Shorten torch's message to one line.

    >>> details = "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.20 GiB is free."
    >>> _message("A", "less B", details)
    'A must fit in memory: 2.00 GiB more were asked for, and 1.20 GiB of 79.10 GiB are free; less B'
    >>> _message("A", "less B", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes.")
    'A must fit in memory: 4.00 GiB more were asked for; less B'
    """
    requested, available = _REQUESTED.search(details), _AVAILABLE.search(details)
    asked = ""
    if requested is not None:
        number, unit = requested.groups()
        asked = f": {float(number) / 2**30:.2f} GiB" if unit == "bytes" else f": {number} {unit}"
        asked += " more were asked for"
    if available is not None:
        asked += f", and {available[2]} of {available[1]} are free"
    return f"{what} must fit in memory{asked}; {remedies}"
