"""Input and output files: early checks, and atomic writing."""

import codecs
import errno
import json
import logging
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema.errors import KinemaError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def check_input_file(path: str | os.PathLike[str], name: str = "path") -> None:
    """Check that `path`, the argument `name`, is a readable regular file that is not empty.

    Pipes, sockets and devices are rejected: reading them may never end, and a check would consume their data.

    Raises:
        KinemaError: it is not such a file.
    """
    argument = f"`{name}` (={str(path)!r})"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise KinemaError(f"{argument} must be a file, and it does not exist") from None
    except (OSError, ValueError) as error:  # symlink loop, name too long, NUL in the name, no permission
        reason = getattr(error, "strerror", None) or str(error)
        raise KinemaError(f"{argument} must be a file that can be read: {reason}") from error
    if stat.S_ISDIR(status.st_mode):
        raise KinemaError(f"{argument} must be a file, and it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise KinemaError(f"{argument} must be a regular file, and it is a pipe, a socket or a device")
    if status.st_size == 0:
        raise KinemaError(f"{argument} must not be an empty file")
    if not os.access(path, os.R_OK):
        raise KinemaError(f"{argument} must be a file that can be read: permission denied")


def counting_order(name: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Sort key for natural order: `clip_2` before `clip_10`. Only ASCII digits count as numbers.

    Use it wherever files are matched by position with lines or other files.
    """
    return [(int(part), part) if part.isascii() and part.isdigit() else (-1, part)
            for part in re.split(r"([0-9]+)", os.fspath(name))]  # fmt: skip


def walk_folders(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder tree; yield `(folder, names of subfolders, names of other entries)`, names in natural order.

    Names that start with a dot are skipped. Symlinks to folders are followed after all real subfolders, and each folder
    is visited once, so that loops end. Folders that cannot be listed are skipped with a warning.
    """
    pending, seen = [Path(folder)], set[tuple[int, int]]()
    while pending:
        for place, folders, names in os.walk(pending.pop(0), onerror=_warn_of_folder):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            here = Path(place)
            shown = sorted((name for name in folders if not name.startswith(".")), key=counting_order)
            yield here, shown, sorted((name for name in names if not name.startswith(".")), key=counting_order)
            pending += [here / name for name in shown if (here / name).is_symlink()]
            folders[:] = [name for name in shown if not (here / name).is_symlink()]


def _warn_of_folder(error: OSError) -> None:
    logger.warning("skipped the folder %r: %s", error.filename, error.strerror)


def find_files(folder: str | os.PathLike[str], suffixes: Collection[str]) -> list[Path]:
    """Return the regular files with one of the suffixes in a folder tree, in natural order of their paths.

    Suffixes are case-insensitive. Names that start with a dot are skipped; see `walk_folders`.

    Args:
        folder: An existing folder.
        suffixes: Suffixes in lower case, with the dot.
    """
    found = [here / name
             for here, _, names in walk_folders(folder)
             for name in names
             if Path(name).suffix.lower() in suffixes and (here / name).is_file()
             ]  # fmt: skip
    return sorted(found, key=counting_order)


def displayed(name: str | os.PathLike[str]) -> str:
    """Return a name with control characters and undecodable bytes escaped, for terminals and web pages."""
    text = os.fspath(name)
    return text if text.isprintable() else "".join(_escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    # Control and format characters (except joiners), surrogates, line and paragraph separators.
    if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or letter in "\u200c\u200d":
        return letter
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: str | os.PathLike[str], name: str = "path") -> str:
    """Read a text file in UTF-8, or in the encoding given by its byte order mark, which is removed.

    Args:
        path: The file; may be empty.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file cannot be read, has bytes that are invalid in its encoding, or NUL characters (as in
            UTF-16 without a byte order mark). The message names the line.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file that can be read: {error.strerror}") from error
    mark, encoding = next(((m, e) for m, e in _BYTE_ORDER_MARKS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = data[len(mark) : len(mark) + error.start].decode(encoding, errors="replace").count("\n") + 1
        raise KinemaError(
            f"`{name}` (={str(path)!r}, line {line}) must be text in {encoding.upper()}, and has the byte"
            f" 0x{data[len(mark) + error.start]:02x} at {len(mark) + error.start}: save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise KinemaError(f"`{name}` (={str(path)!r}, line {line}) must be text in UTF-8, and has a NUL character")
    return text


def read_json(path: str | os.PathLike[str], name: str = "path") -> Any:
    """Read a JSON file in UTF-8.

    Args:
        path: The file.
        name: Name of the argument in errors.

    Raises:
        KinemaError: The file does not exist, is not UTF-8 or JSON, or is nested too deeply.
    """
    try:
        return json.loads(Path(path).read_bytes().decode("utf-8"))
    except RecursionError:
        reason = "it is nested too deeply"
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    raise KinemaError(f"`{name}` (={displayed(path)!r}) must be a readable JSON file: {reason}")


def check_output_file(path: str | os.PathLike[str], *, overwrite: bool, name: str = "output") -> None:
    """Check that `path`, the argument `name`, may be written; call this before the work.

    Raises:
        KinemaError: It exists and `overwrite` is false, is not a regular file, or its folder cannot be written.
    """
    if Path(path).is_dir():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a file, and it is a folder")
    if Path(path).exists() and not overwrite:
        raise KinemaError(f"`{name}` (={str(path)!r}) must not exist, unless `--overwrite` is given")
    if Path(path).exists() and not Path(path).is_file():
        raise KinemaError(f"`{name}` (={str(path)!r}) must be a regular file, and it is a pipe, a socket or a device")
    for parent in Path(path).absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise KinemaError(f"`{name}` (={str(path)!r}) must be in a folder, and {str(parent)!r} is a file")
            if not os.access(parent, os.W_OK | os.X_OK):
                raise KinemaError(f"`{name}` (={str(path)!r}) must be in a folder that can be written: {str(parent)!r}")
            break


def check_other_file(path: str | os.PathLike[str], name: str, others: Mapping[str, str | os.PathLike[str]]) -> None:
    """Check that `path`, the argument `name`, is not the same file as that of another argument.

    Raises:
        KinemaError: It resolves to the same path.
    """
    for other_name, other in others.items():
        if Path(path).resolve() == Path(other).resolve():
            raise KinemaError(f"`{name}` (={str(path)!r}) must be another file than `{other_name}`")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager for atomic writing: yields a temporary file that replaces `path` on success.

    Args:
        path: The file to create or replace; missing parent folders are created.

    Raises:
        KinemaError: The folder cannot be created or written, or the disk is full.
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
        # mkstemp creates private files; give the result the usual permissions of a new file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise KinemaError(f"`output` (={str(path)!r}) cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | os.PathLike[str], tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, atomically.

    Raises:
        KinemaError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
        except (SafetensorError, OSError) as error:  # safetensors does not raise OSError on a full disk
            raise KinemaError(f"`output` (={str(path)!r}) cannot be written: {error}") from error
