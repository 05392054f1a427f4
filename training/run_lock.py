"""One training at a time in a run's folder."""

import errno
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kinema.errors import KinemaError
from kinema.files import displayed

logger = logging.getLogger(__name__)

LOCK, HOLDER = "train.lock", "train.pid"

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems answer that have no locks."""


@contextmanager
def locked_run(run_dir: Path) -> Iterator[None]:
    """Within, no other training can use the folder; it is made if it is missing, and removed if it stays empty.

    The operating system holds the lock on `train.lock` for this process, so that it is free when the process ends, in
    whatever way. `train.pid` says whose it is. Where a file system has no locks, the log says so.

    Raises:
        KinemaError: another training uses the folder, or it cannot be written.
    """
    is_new = not run_dir.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinemaError(f"`output` (={run_dir}) must be a folder that can be made: {error.strerror}") from error
    lock = FileLock(run_dir / LOCK, timeout=0, thread_local=False)
    _acquire(lock, run_dir)
    holder = run_dir / HOLDER
    try:
        holder.write_text(f"{os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        if {path.name for path in run_dir.iterdir()} <= {LOCK}:  # nothing was done here
            (run_dir / LOCK).unlink(missing_ok=True)
            if is_new:
                run_dir.rmdir()
        lock.release()


def _acquire(lock: FileLock, run_dir: Path) -> None:
    try:
        with warnings.catch_warnings(record=True) as told:  # newer versions of filelock use a plain file then
            warnings.simplefilter("always")
            lock.acquire()
        no_locks = bool(told)
    except Timeout:
        raise KinemaError(f"`output` (={run_dir}) must be free, and {_holder(run_dir)} trains there") from None
    except NotImplementedError:
        no_locks = True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise KinemaError(
                f"`output` (={run_dir}) must be a folder that can be written: {error.strerror}"
            ) from error
        no_locks = True
    if no_locks:
        logger.warning("the file system of %s has no locks: see that no other training uses this folder", run_dir)


def _holder(run_dir: Path) -> str:
    try:
        holder = " ".join((run_dir / HOLDER).read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        holder = ""
    return f"process {displayed(holder[:100])}" if holder else "another process"
