"""Latents and text features computed once, kept in safetensors shards, and reused while nothing they depend on changes.

    latents-<key>/manifest.json, shard-00000.safetensors (latents, text, mask), shard-00000.json (captions)

The key is a hash of the tokenizer's weights, the text vocabulary and the data settings. Shards are written one by one,
each whole or not at all, so that an interrupted computation goes on where it was; the manifest comes last.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from kinema.files import atomic_path
from kinema.generation.text import TextFeatures, concatenate

logger = logging.getLogger(__name__)

SHARD_SIZE = 1024
_BATCH = 32


class LatentsCache:
    """Latents with text, by number.

    Args:
        folder: a complete folder, as made by `cached_latents`.

    Attributes:
        captions: the caption of each clip.
    """

    def __init__(self, folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        self._shards = [load_file(folder / f"{name}.safetensors") for name in manifest["shards"]]
        self.captions: list[str] = []
        for name in manifest["shards"]:
            self.captions += json.loads((folder / f"{name}.json").read_text())

    def __len__(self) -> int:
        return len(self.captions)

    def __call__(self, indices: Iterable[int]) -> tuple[Float[Tensor, "b z t h w"], TextFeatures]:
        """Latents (float32, as the tokenizer gives them) and text of some clips."""
        latents, texts = [], []
        for index in indices:
            shard, row = self._shards[index // SHARD_SIZE], index % SHARD_SIZE
            latents.append(shard["latents"][row])
            texts.append(TextFeatures(shard["text"][row : row + 1], shard["mask"][row : row + 1]))
        return torch.stack(latents).float(), concatenate(texts).trim()


def cached_latents(
    parent: Path,
    settings: dict[str, Any],
    num_clips: int,
    make_clips: Callable[[range], tuple[Tensor, list[str]]],
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], TextFeatures],
) -> LatentsCache:
    """The latents of clips 0 to `num_clips`, computed now where they are not there yet.

    Args:
        parent: folder of all caches.
        settings: everything that the result depends on, as JSON can hold it.
        num_clips: how many clips.
        make_clips: clips ``(b, 3, t, h, w)`` and captions by number.
        encode: latents ``(b, z, t', h', w')`` of clips.
        encode_text: text features of captions.
    """
    described = json.dumps(settings | {"num_clips": num_clips, "shard_size": SHARD_SIZE}, sort_keys=True)
    folder = parent / f"latents-{hashlib.sha256(described.encode()).hexdigest()[:16]}"
    if (folder / "manifest.json").is_file():
        logger.info("latents of %d clips reused from %s", num_clips, folder)
        return LatentsCache(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"shard-{number:05d}" for number in range(-(-num_clips // SHARD_SIZE))]
    with tqdm(total=num_clips, desc="latents", unit="clip", disable=not sys.stderr.isatty()) as bar:
        for number, name in enumerate(names):
            first, last = number * SHARD_SIZE, min(num_clips, (number + 1) * SHARD_SIZE)
            if not (folder / f"{name}.safetensors").is_file():
                _write_shard(folder / name, range(first, last), make_clips, encode, encode_text, bar.update)
                logger.info("latents of %d/%d clips computed", last, num_clips)
    manifest = {"shards": names, "settings": json.loads(described)}
    _write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return LatentsCache(folder)


def _write_shard(
    path: Path,
    indices: range,
    make_clips: Callable[[range], tuple[Tensor, list[str]]],
    encode: Callable[[Tensor], Tensor],
    encode_text: Callable[[Sequence[str]], TextFeatures],
    advance: Callable[[int], object],
) -> None:
    latents: list[Tensor] = []
    captions: list[str] = []
    for first in range(indices.start, indices.stop, _BATCH):
        some = range(first, min(first + _BATCH, indices.stop))
        video, texts = make_clips(some)
        latents.append(encode(video).to("cpu", torch.float16))
        captions += texts
        advance(len(some))
    text = encode_text(captions).to("cpu")
    values = text.values.half() if text.values.is_floating_point() else text.values
    tensors = {"latents": torch.cat(latents).contiguous(), "text": values.contiguous(), "mask": text.mask.contiguous()}
    _write_text(path.with_suffix(".json"), json.dumps(captions))
    with atomic_path(path.with_suffix(".safetensors")) as temporary:
        save_file(tensors, temporary)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def model_hash(model: nn.Module) -> str:
    """A hash of a model's weights and settings, wherever it came from: a folder, a file, a hub."""
    settings: Any = dict(getattr(model, "config", {}))
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
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
