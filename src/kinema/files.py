"""Files that commands read and make: checks before the work, and results that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kinema.errors import KinemaError


def check_input_file(path: str | os.PathLike[str], name: str = "path") -> None:
    """Raise `KinemaError`, which calls the argument `name`, unless `path` is a file with something in it."""
    file = Path(path)
    if not file.exists():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file, and it does not exist")
    if not file.is_file():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file, and it is a folder")
    if file.stat().st_size == 0:
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file with something in it, and it is empty")


def check_output_file(path: str | os.PathLike[str], *, overwrite: bool, name: str = "output") -> None:
    """Raise `KinemaError`, which calls the argument `name`, when `path` may not be written.

    Call it before the work whose result goes there.
    """
    if Path(path).is_dir():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file, and it is a folder")
    if Path(path).exists() and not overwrite:
        raise KinemaError(f"`{name}` (={str(path)!r}) must not exist, unless `--overwrite` is given")
    parent = Path(path).parent
    if parent.exists() and not parent.is_dir():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be in a folder, and {str(parent)!r} is a file")


def check_other_file(path: str | os.PathLike[str], name: str, others: Mapping[str, str | os.PathLike[str]]) -> None:
    """Raise `KinemaError` when `path`, the argument `name`, is the same file as another argument's, by its name."""
    for other_name, other in others.items():
        if Path(path).resolve() == Path(other).resolve():
            raise KinemaError(f"`{name}` (={str(path)!r}) must be another file than `{other_name}`")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the `with` block ends without an error.

    Args:
        path: The file to make or to replace; missing folders above it are made.

    Raises:
        KinemaError: The folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=path.suffix, prefix=".kinema-", dir=path.parent)
    except OSError as error:
        raise KinemaError(
            f"`output` (={str(path)!r}) must be in a folder that can be written: {error.strerror}"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only their owner reads; a result gets the permissions any new file gets.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
