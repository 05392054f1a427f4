"""Statistics of real videos, saved once and used for many measurements.

A file says of what, how and with which network it was made; with anything else it is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.clips import SideRates
from kinema.eval.fvd.groups import GroupedSums
from kinema.eval.fvd.protocols import Protocol, Resize
from kinema.eval.networks.i3d import I3D
from kinema.eval.weights.cache import cache_folder
from kinema.eval.weights.intact import HASH_KEY, tensors_hash
from kinema.files import check_input_file, write_safetensors

_KIND = "kinema reference statistics 1"


def content_key(files: Iterable[Path]) -> str:
    """Hash of files, of their names and what is in them, in the order of their names.

    Args:
        files: The videos of a set; their folders do not count.
    """
    total = hashlib.blake2b(digest_size=16)
    for file in sorted(files, key=lambda file: file.name):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        total.update(f"{file.name}\0{content}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def hash_of_network(network: I3D) -> str:
    """Hash of a network's weights."""
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def statistics_path(content: str, protocol: Protocol, weights: str, folder: Path | None = None) -> Path:
    """Where the statistics of a set are kept.

    Args:
        content: What identifies the set, as `content_key` of its files.
        protocol: How it is read.
        weights: Hash of the network's weights (`hash_of_network`).
        folder: The folder of all statistics; None is the one in the cache.
    """
    key = hashlib.sha256(f"{content} {protocol.key} {weights}".encode()).hexdigest()[:24]
    return (folder or cache_folder("statistics")) / f"fvd-{protocol.name}-{key}.safetensors"


@dataclass(frozen=True, kw_only=True)
class ReferenceStatistics:
    """Sums over the features of a set of videos.

    Attributes:
        protocol: How the videos were read.
        weights: Hash of the network's weights.
        content: What identifies the set, for `statistics_path`.
        digest: Sum of hashes of the windows, by which the same clips are known.
        sums: Sums over groups of clips.
        features: `n 400`, for the scores that need them; None where they were not kept.
        sizes: Heights and widths of the clips.
        unreadable: Why clips were skipped, by name.
        fps: The rate at which video files were sampled; None: frames were taken as they are stored.
        rates: The rates of the files; None: not known.
    """

    protocol: Protocol
    weights: str
    content: str
    digest: int
    sums: GroupedSums
    features: Float[Tensor, "n d"] | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    rates: SideRates | None = None

    @property
    def num_clips(self) -> int:
        """Windows measured."""
        return int(self.sums.count.sum())

    def check(self, protocol: Protocol, weights: str) -> None:
        """Raise `KinemaError` unless these are statistics under `protocol` with the network of hash `weights`."""
        if self.protocol.key != protocol.key:
            raise KinemaError(
                f"`real` (statistics under {_short(self.protocol)}) must be measured as the fake videos: "
                f"{_short(protocol)}"
            )
        if self.weights != weights:
            raise KinemaError(f"`real` (statistics with weights {self.weights}) must be of the same weights: {weights}")

    def check_rate(self, fps: float | None) -> None:
        """Raise `KinemaError` unless the videos were sampled at `fps`; None: as they are stored."""
        if self.fps != fps:
            mine, wanted = (
                "frames as stored" if rate is None else f"{rate:g} frames a second" for rate in (self.fps, fps)
            )
            option = "without `--fps`" if self.fps is None else f"with `--fps {self.fps:g}`"
            raise KinemaError(f"`real` (statistics of {mine}) must be of {wanted}, as the fake videos: run {option}")

    def save(self, path: Path) -> None:
        """Write the statistics to a safetensors file, whole or not at all."""
        tensors = {"count": self.sums.count, "sum": self.sums.sum, "outer": self.sums.outer}
        if self.features is not None:
            tensors["features"] = self.features
        settings = {
            "weights": self.weights,
            "content": self.content,
            "digest": self.digest,
            "sizes": sorted(self.sizes),
            "unreadable": dict(self.unreadable),
            "fps": self.fps,
            "rates": None if self.rates is None else self.rates.as_dict(),
        }
        metadata = {"kind": _KIND, "settings": json.dumps(settings), "protocol": json.dumps(asdict(self.protocol))}
        metadata[HASH_KEY] = tensors_hash(sorted(tensors.items()))
        write_safetensors(path, {name: value.cpu().contiguous() for name, value in tensors.items()}, metadata)

    @classmethod
    def load(cls, path: Path) -> "ReferenceStatistics":
        """Read statistics from a file.

        Raises:
            KinemaError: The file is missing or something else.
        """
        check_input_file(path, "statistics")
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # whatever a reader raises over a damaged file
            raise KinemaError(f"`statistics` (={str(path)!r}) must be a file of reference statistics") from error
        if metadata.get("kind") != _KIND or not {"count", "sum", "outer"} <= tensors.keys():
            raise KinemaError(f"`statistics` (={str(path)!r}) must be a file of reference statistics")
        if metadata.get(HASH_KEY) not in (None, tensors_hash(sorted(tensors.items()))):
            raise KinemaError(f"`statistics` (={str(path)!r}) must be as it was written, and is damaged")
        sums = GroupedSums(tensors["count"], tensors["sum"], tensors["outer"])
        try:
            settings = json.loads(metadata["settings"])
            settings["sizes"] = frozenset((height, width) for height, width in settings.get("sizes", ()))
            settings["rates"] = None if settings.get("rates") is None else SideRates(**settings["rates"])
            protocol = _protocol_from(json.loads(metadata["protocol"]))
            return cls(protocol=protocol, sums=sums, features=tensors.get("features"), **settings)
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
            raise KinemaError(f"`statistics` (={str(path)!r}) must be of this version of kinema") from error


def _short(protocol: Protocol) -> str:
    dataset = "" if protocol.dataset is None else f", {protocol.dataset.size} pixels"
    return (
        f"{protocol.name}, {protocol.num_frames or 'all'} frames, stride {protocol.stride}, "
        f"{protocol.clips_per_video} a video, {protocol.position}, seed {protocol.seed}{dataset}"
    )


def _protocol_from(values: dict[str, Any]) -> Protocol:
    resizes = {name: Resize(**values[name]) for name in ("dataset", "network") if values[name] is not None}
    settings: dict[str, Any] = {**values, **resizes}
    return Protocol(**settings)
