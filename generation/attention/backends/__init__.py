"""Backends that execute block layouts. To add one, add a file and a line in `BACKENDS`."""

from kinema.generation.attention.backends.base import Backend, BackendFailed
from kinema.generation.attention.backends.dense import Dense, Masked, Parts
from kinema.generation.attention.backends.flex import Flex
from kinema.generation.attention.backends.gather import Gather

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Dense(), Parts(), Flex(), Gather(), Masked())}
"""Backends by name, fastest first: `auto` takes the first one that supports the call."""

FALLBACK = Gather.name
"""Used when another backend fails: it supports every layout on every device."""

__all__ = ["BACKENDS", "FALLBACK", "Backend", "BackendFailed"]
