"""Which files of a folder are videos."""

import os
import stat
from pathlib import Path

from kinema.errors import KinemaError
from kinema.files import counting_order, walk_folders

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".gif", ".wmv", ".flv", ".ts")


def list_videos(folder: Path) -> list[Path]:
    """Video files in a folder and below, by their suffix in any letter case, in counting order.

    Raises:
        KinemaError: it is no folder, or there is none.
    """
    return list_videos_and_others(folder)[0]


def list_videos_and_others(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """Video files, and what is named like one and is none: pipes, links that lead nowhere, folders without videos.

    Returns:
        The files in counting order, and why each of the others is none.

    Raises:
        KinemaError: it is no folder, or there is no video file.
    """
    if not folder.is_dir():
        raise KinemaError(f"`data` (={str(folder)!r}) must be an existing folder of video files, or a built-in source")
    files: list[Path] = []
    others: dict[Path, str] = {}
    for here, folders, names in walk_folders(folder):
        for path in (here / name for name in (*folders, *names) if Path(name).suffix.lower() in VIDEO_SUFFIXES):
            reason = _not_a_file(path)
            if reason is None:
                files.append(path)
            else:
                others[path] = reason
    used = {parent for file in files for parent in file.parents}
    others = {path: others[path] for path in sorted(others.keys() - used, key=counting_order)}
    if not files:
        also = "".join(f"; {path.name!r} {reason}" for path, reason in list(others.items())[:1])
        kinds = ", ".join(VIDEO_SUFFIXES)
        raise KinemaError(f"`data` (={str(folder)!r}) must hold at least one video file ({kinds}){also}")
    return sorted(files, key=counting_order), others


def _not_a_file(path: Path) -> str | None:
    """Why a path is no regular file; None for one that is."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "is a link that leads nowhere"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return None if stat.S_ISREG(mode) else "is a pipe, a socket or a device"
