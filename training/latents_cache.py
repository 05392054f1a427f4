"""Latents and text features computed once, kept in safetensors shards, and reused while nothing they depend on changes.

    latents-<key>/shard-00000.safetensors (latents, text, mask; in its metadata captions and a checksum), settings.json

The key is a hash of the tokenizer's weights, the text vocabulary and the data settings, which `settings.json` shows.
Shards are written one by one, each whole or not at all, so that an interrupted computation goes on where it was. Two
runs may share a folder. A shard that is damaged is named and computed again.
"""

import hashlib
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.files import atomic_path
from kinema.generation.text import TextFeatures
from kinema.loading import one_line

logger = logging.getLogger(__name__)

SHARD_SIZE = 1024
DEVICE_SHARE = 0.25
"""Part of a device's memory that kept latents may take."""
_TEXT_MULTIPLE = 16
_PIXELS, _PIXELS_ELSEWHERE = 32 * 33 * 128**2, 128 * 33 * 128**2
"""Of clips encoded at once on the CPU, and on other devices."""
_MOST_CLIPS = 128
_FORMAT = 2
"""Of the shards; 1 had no checksums."""


class Shard(NamedTuple):
    """The latents of some clips.

    Attributes:
        latents: float16 ``(n, z, t', h', w')``.
        text: word ids or features of the captions, see `TextFeatures`.
        mask: likewise.
        captions: of the clips.
    """

    latents: Tensor
    text: Tensor
    mask: Tensor
    captions: list[str]

    def checksum(self) -> str:
        """SHA-256 of all of it."""
        digest = hashlib.sha256(json.dumps(self.captions).encode())
        for tensor in (self.latents, self.text, self.mask):
            _update(digest, tensor)
        return digest.hexdigest()


class LatentsCache:
    """Latents with text, by number.

    They lie on the device where they take at most `DEVICE_SHARE` of its memory, else in the machine's memory.

    Args:
        shards: of `SHARD_SIZE` clips each, but the last; emptied, so that nothing is held twice.
        device: that trains.
        max_length: columns of text that the model takes at most.

    Attributes:
        captions: the caption of each clip.
    """

    def __init__(self, shards: list[Shard], device: torch.device | str = "cpu", max_length: int | None = None) -> None:
        self.captions: list[str] = [caption for shard in shards for caption in shard.captions]
        self._lengths = torch.cat([_lengths(shard.mask) for shard in shards])
        longest = int(self._lengths.max())
        size = sum(shard.latents.nbytes + longest * (shard.text[:, 0].nbytes + len(shard.mask)) for shard in shards)
        self._device = place_of(size, torch.device(device))
        # Padded to multiples of 16 on a GPU: kernels are compiled and chosen for few lengths.
        self._multiple = 1 if self._device.type == "cpu" else _TEXT_MULTIPLE
        self._max_length = max_length
        columns = self._columns(longest)
        latents, text, mask = (list(parts) for parts in zip(*(shard[:3] for shard in shards), strict=True))
        shards.clear()
        self._latents = _joined(latents, self._device, lambda part: part)
        self._text = _joined(text, self._device, lambda part: _fit(part, columns))
        self._mask = _joined(mask, self._device, lambda part: _fit(part, columns))

    def __len__(self) -> int:
        return len(self.captions)

    def _columns(self, length: int) -> int:
        """Columns for texts of this length."""
        columns = length + -length % self._multiple
        return columns if self._max_length is None else min(columns, self._max_length)

    def __call__(self, indices: Int[Tensor, " b"] | Sequence[int]) -> tuple[Float[Tensor, "b z t h w"], TextFeatures]:
        """Latents (float32, as the tokenizer gives them) and text of some clips, where the cache lies."""
        chosen = torch.as_tensor(indices)
        length = self._columns(int(self._lengths[chosen].max()))
        if self._device.type == "cuda":
            chosen = chosen.pin_memory()
        rows = chosen.to(self._device, non_blocking=True)
        text = TextFeatures(self._text.index_select(0, rows), self._mask.index_select(0, rows))
        text = TextFeatures(text.values[:, :length], text.mask[:, :length])
        return self._latents.index_select(0, rows).float(), text


def clips_at_once(shape: tuple[int, int, int], device: torch.device) -> int:
    """How many clips of a shape (frames, height, width) are encoded together: fewer of larger ones."""
    pixels = _PIXELS if device.type == "cpu" else _PIXELS_ELSEWHERE
    return max(1, min(_MOST_CLIPS, pixels // math.prod(shape)))


def place_of(size: int, device: torch.device) -> torch.device:
    """The device where so many bytes take at most `DEVICE_SHARE` of its memory, else the CPU."""
    if device.type != "cuda":
        return device if device.type == "cpu" else torch.device("cpu")
    return device if size <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[1] else torch.device("cpu")


def _lengths(mask: Tensor) -> Int[Tensor, " n"]:
    """Columns up to the last that is text, at least one."""
    columns = torch.arange(1, mask.shape[1] + 1)
    return (mask * columns).amax(1).clamp(min=1)


def _fit(tensor: Tensor, columns: int) -> Tensor:
    """Padded with zeros, or cut, to so many columns."""
    missing = columns - tensor.shape[1]
    if missing <= 0:
        return tensor[:, :columns]
    return torch.cat((tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])), dim=1)


def _joined(parts: list[Tensor], device: torch.device, change: Callable[[Tensor], Tensor]) -> Tensor:
    """One tensor of all rows, changed, on the device; the parts are let go one by one."""
    like = change(parts[0][:1])
    joined = torch.empty(sum(map(len, parts)), *like.shape[1:], dtype=like.dtype, device=device)
    first = 0
    while parts:
        part = parts.pop(0)
        joined[first : first + len(part)] = change(part)
        first += len(part)
    return joined


def cached_latents(
    parent: Path,
    settings: dict[str, Any],
    num_clips: int,
    make_clips: Callable[[range], tuple[Tensor, list[str]]],
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], TextFeatures],
    device: torch.device | str = "cpu",
    *,
    at_once: int = 32,
    max_length: int | None = None,
    shard_size: int | None = None,
) -> LatentsCache:
    """The latents of clips 0 to `num_clips`, computed now where they are not there yet.

    Args:
        parent: folder of all caches.
        settings: everything that the result depends on, as JSON can hold it.
        num_clips: how many clips.
        make_clips: clips ``(b, 3, t, h, w)`` and captions by number.
        encode: latents ``(b, z, t', h', w')`` of clips.
        encode_text: text features of captions.
        device: that trains.
        at_once: clips made and encoded together, see `clips_at_once`.
        max_length: columns of text that the model takes at most.
        shard_size: clips of a shard (default: `SHARD_SIZE`); an interruption costs so many at most.

    Raises:
        KinemaError: A shard cannot be written: the disk is full, say.
    """
    shard_size = shard_size or SHARD_SIZE
    described = settings | {"num_clips": num_clips, "shard_size": shard_size, "format": _FORMAT}
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = parent / f"latents-{key}"
    shards: list[Shard] = []
    computed = 0
    with tqdm(total=num_clips, desc="latents", unit="clip", disable=not sys.stderr.isatty()) as bar:
        for first in range(0, num_clips, shard_size):
            indices = range(first, min(num_clips, first + shard_size))
            file = folder / f"shard-{first // shard_size:05d}.safetensors"
            shard = _read_shard(file, len(indices))
            if shard is None:
                shard = _compute_shard(indices, make_clips, encode, encode_text, bar.update, at_once)
                _write_shard(file, shard)
                computed += len(indices)
                logger.info("latents of %d/%d clips computed", indices.stop, num_clips)
            shards.append(shard)
    if computed:
        _write_text(folder / "settings.json", json.dumps(described, indent=2) + "\n")
    else:
        logger.info("latents of %d clips reused from %s", num_clips, folder)
    return LatentsCache(shards, device, max_length)


def _compute_shard(
    indices: range,
    make_clips: Callable[[range], tuple[Tensor, list[str]]],
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], TextFeatures],
    advance: Callable[[int], object],
    at_once: int,
) -> Shard:
    latents: list[Tensor] = []
    captions: list[str] = []
    for first in range(indices.start, indices.stop, at_once):
        some = range(first, min(first + at_once, indices.stop))
        video, texts = make_clips(some)
        latents.append(encode(video).to("cpu", torch.float16))
        captions += texts
        advance(len(some))
    text = encode_text(captions).to("cpu")
    values = text.values.half() if text.values.is_floating_point() else text.values
    return Shard(torch.cat(latents).contiguous(), values.contiguous(), text.mask.contiguous(), captions)


def _write_shard(file: Path, shard: Shard) -> None:
    tensors = {"latents": shard.latents, "text": shard.text, "mask": shard.mask}
    metadata = {"captions": json.dumps(shard.captions), "sha256": shard.checksum()}
    try:
        with atomic_path(file) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise KinemaError(f"`cache_dir` (={file.parent}) must take latents, and does not: {one_line(error)}") from error


def _read_shard(file: Path, num_clips: int) -> Shard | None:
    """A shard that was computed before; None where there is none, or a damaged one, which is named."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            latents, text, mask = (opened.get_tensor(name) for name in ("latents", "text", "mask"))
            shard = Shard(latents, text, mask, json.loads(metadata["captions"]))
        if shard.checksum() != metadata["sha256"] or len(shard.captions) != num_clips:
            raise ValueError("its checksum is another")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        logger.warning("damaged, and computed again: %s (%s)", file, one_line(error, 120))
        return None
    return shard


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def remove_stale(parent: Path, min_age: float) -> None:
    """Removes temporary files that a killed process left among the caches.

    Args:
        parent: folder of all caches.
        min_age: seconds since a file was last written to.
    """
    for folder in (parent, *parent.glob("latents-*")):
        for file in folder.glob(".kinema-*"):
            with suppress(OSError):  # another process may do the same
                if time.time() - file.stat().st_mtime >= min_age:
                    file.unlink()


def _update(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def model_hash(model: nn.Module, without: Sequence[str] = ()) -> str:
    """A hash of a model's weights and settings, wherever it came from: a folder, a file, a hub.

    Args:
        model: with or without a `config`.
        without: settings that do not count.
    """
    config: Any = getattr(model, "config", {})
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # of transformers, or of diffusers
    own = {name: value for name, value in settings.items() if not name.startswith("_") and name not in without}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} ".encode())
        _update(digest, weight)
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """A hash of a model folder: names and contents of its JSON and safetensors files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            digest.update(file.name.encode())
            with file.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
