"""Sizes and times of files, to find out whether data has changed."""

from collections.abc import Iterable
from pathlib import Path


def file_size(file: Path) -> int:
    """Size in bytes; 0 for a file that has gone since it was found (its frames are in the cache)."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def file_stamps(files: Iterable[Path]) -> list[str]:
    """Name, size and time of the last change of each file."""
    return [f"{file.name}/{file.stat().st_size}/{file.stat().st_mtime_ns}" for file in files]
