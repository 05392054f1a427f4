"""What the data of a training consists of, to see later whether it has changed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kinema.training.data.clips import ClipsDataset
from kinema.training.data.toybox import Toybox


def data_contents(
    data: Sequence[str], sources: Iterable[ClipsDataset | Toybox], *, captions: bool
) -> dict[str, list[Any]]:
    """Each file of the data with its size in bytes, and its caption where captions matter; each object of the Toybox.

    Files go by their names within the folder, which may be elsewhere next time, and after the folder's number if there
    are several.

    Args:
        data: entries of `data`.
        sources: what they became.
        captions: whether the training reads them.
    """
    folders = {str(number): Path(name) for number, name in enumerate(data)}
    contents: dict[str, list[Any]] = {}
    for source in sources:
        if isinstance(source, Toybox):
            contents |= {f"toybox/{name}": [0] for name in source.objects}
            files = [] if source.sprites is None else [p for p in source.sprites.iterdir() if p.is_file()]
            contents |= {f"sprites/{file.name}": [_size(file)] for file in files}
            continue
        for clip in source.sources:
            number, folder = next((n, f) for n, f in folders.items() if clip.path.is_relative_to(f))
            name = clip.path.relative_to(folder).as_posix()
            name = name if len(data) == 1 else f"{number}/{name}"
            contents[name] = [_size(clip.path), *([clip.caption] if captions else [])]
    return contents


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone since it was found; its frames are in the cache
        return 0
