"""Folders that appear whole or not at all, also when the process or the machine stops while they are written."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES)
"""What file systems answer that cannot flush a folder."""


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes `folder` by calling `write` on a temporary folder beside it, then renaming: all of it or nothing.

    Files and folders are flushed to the disk before and after the renaming. A folder that exists is replaced once the
    new one is complete; see `recover_folders` for the moment between. After an error the temporary folder is removed.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        _sync_tree(temporary)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            temporary.rename(folder)
            sync_folder(folder.parent)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folders(folder.parent)
        raise


def recover_folders(parent: Path) -> None:
    """Puts back what `write_folder` had moved aside when it was cut off between its two renames."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name[1 : -len(".old")]
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def remove_folder(folder: Path) -> None:
    """Removes a folder, which is gone at once or stays whole: it is renamed first."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_leftovers(parent: Path, name: str) -> None:
    """Removes what `write_folder` and `remove_folder` left when the process was killed.

    Args:
        parent: the folder of the folders.
        name: pattern of their names.
    """
    for pattern in (f".{name}.tmp", f".{name}.gone"):
        for folder in parent.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, where the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_SYNC:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(place))
