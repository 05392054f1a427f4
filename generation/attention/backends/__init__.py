"""What executes layouts. A new backend is a file and a line in `BACKENDS`."""

from kinema.generation.attention.backends.base import Backend, BackendFailed
from kinema.generation.attention.backends.dense import Dense, Masked, Parts
from kinema.generation.attention.backends.flex import Flex
from kinema.generation.attention.backends.gather import Gather

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Dense(), Parts(), Flex(), Gather(), Masked())}
"""Backends by name, the fastest first: `auto` takes the first that can run."""

FALLBACK = Gather.name
"""What runs where another backend fails: it runs every layout on every device."""

__all__ = ["BACKENDS", "FALLBACK", "Backend", "BackendFailed"]
