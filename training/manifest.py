"""The manifest of a folder: size and SHA-256 of each file, and of the manifest itself.

    {"files": {"model.safetensors": {"sha256": "...", "size": 1234}, ...}, "sha256": "..."}

The last checksum is that of the list of files, so that damage to the manifest is found as well.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Lists every file that the folder has now."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / MANIFEST).write_bytes(_rendered(files))


def find_damage(folder: Path, *, thorough: bool) -> str | None:
    """What is wrong with the files of a folder that has a manifest; None where nothing is.

    Args:
        folder: with a manifest.
        thorough: compare the checksums too, which reads every byte; else the sizes alone.
    """
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        return f"{MANIFEST} cannot be read: {error.strerror}"
    if not data:
        return f"{MANIFEST} is empty"
    try:
        files = json.loads(data)["files"]
        if not isinstance(files, dict) or data != _rendered(files):
            raise ValueError("it is not what was written")
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{MANIFEST} is damaged"
    reasons = (_file_damage(folder / name, name, expected, thorough) for name, expected in files.items())
    return next((reason for reason in reasons if reason is not None), None)


def _file_damage(path: Path, name: str, expected: dict[str, Any], thorough: bool) -> str | None:
    try:
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size != expected["size"]:
            return f"{name} is empty" if size == 0 else f"{name} has {size} bytes instead of {expected['size']}"
        if thorough and file_sha256(path) != expected["sha256"]:
            return f"{name} has another checksum than when it was written"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _rendered(files: dict[str, Any]) -> bytes:
    listed = json.dumps(files, sort_keys=True)
    values = {"files": files, "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
