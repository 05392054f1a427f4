"""Which clips a folder has, in counting order, and how the clips of two folders pair."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kinema.errors import KinemaError
from kinema.files import counting_order, displayed, walk_folders
from kinema.training.data.listing import VIDEO_SUFFIXES

TENSOR_SUFFIXES = (".npy", ".safetensors")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CLIP_SUFFIXES = (*VIDEO_SUFFIXES, *TENSOR_SUFFIXES, *IMAGE_SUFFIXES)

_NAMED = 3  # names in an error before "and so many more"


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk.

    Attributes:
        name: Its path below the folder that was listed, with slashes and without a suffix.
        path: A video or tensor file, or a folder of pictures.
    """

    name: str
    path: Path

    @property
    def is_video(self) -> bool:
        """Whether it is a video file, which has a rate; pictures and tensors have none."""
        return not self.path.is_dir() and self.path.suffix.lower() not in TENSOR_SUFFIXES


def list_clips(folder: str | os.PathLike[str], *, argument: str = "folder") -> list[ClipFile]:
    """The clips in a folder and below, in counting order of their names: `clip_2` before `clip_10`.

    A clip is a video file, a tensor file (`.npy`, `.safetensors`), or a folder that holds pictures and no such file nor
    folder: pictures beside clips (contact sheets, previews) are none. Names that begin with a dot are skipped, and so
    are pipes and devices. A link that leads nowhere counts as a clip, so that reading it fails and is reported.

    Args:
        folder: Where to look.
        argument: What errors call it.

    Raises:
        KinemaError: There is no such folder, no clip in it, or two of one name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise KinemaError(f"`{argument}` (={str(folder)!r}) must be a folder of clips, and there is none")
    clips = sorted(_find_clips(root), key=lambda clip: (counting_order(clip.name), str(clip.path)))
    if not clips:
        kinds = ", ".join((*VIDEO_SUFFIXES, *TENSOR_SUFFIXES))
        raise KinemaError(f"`{argument}` (={str(folder)!r}) must have a clip: {kinds}, or a folder of pictures")
    for one, other in itertools.pairwise(clips):
        if one.name == other.name:
            files = f"{displayed(one.path.name)} and {displayed(other.path.name)}"
            raise KinemaError(f"`{argument}` (={str(folder)!r}) must have one clip of each name, and has {files}")
    return clips


def _find_clips(root: Path) -> Iterator[ClipFile]:
    for here, folders, names in walk_folders(root):
        found = [here / name for name in names if suffix_of(name) in (*VIDEO_SUFFIXES, *TENSOR_SUFFIXES)]
        found = [path for path in found if path.is_file() or (path.is_symlink() and not path.exists())]
        yield from (ClipFile(path.relative_to(root).with_suffix("").as_posix(), path) for path in found)
        if not found and not folders and any(suffix_of(name) in IMAGE_SUFFIXES for name in names):
            yield ClipFile(root.resolve().name if here == root else here.relative_to(root).as_posix(), here)


def suffix_of(name: str) -> str:
    """The suffix of a file that counts, in lower case; none for a hidden file."""
    return "" if name.startswith(".") else Path(name).suffix.lower()


def pair_clips(
    left: Sequence[ClipFile], right: Sequence[ClipFile], names: tuple[str, str] = ("reference", "clips")
) -> list[tuple[ClipFile, ClipFile]]:
    """Clips of two folders by name, in counting order.

    Args:
        left: Clips of the one.
        right: Clips of the other.
        names: What errors call the two.

    Raises:
        KinemaError: A clip has no partner; the message names the first of them.
    """
    by_name = [{clip.name: clip for clip in clips} for clips in (left, right)]
    for this, other, side in ((0, 1, names[1]), (1, 0, names[0])):
        alone = sorted(by_name[this].keys() - by_name[other].keys(), key=counting_order)
        if alone:
            raise KinemaError(
                f"`{side}` must have a clip for each of `{names[this]}`, and has none named {_few(alone)}"
            )
    return [(by_name[0][name], by_name[1][name]) for name in sorted(by_name[0], key=counting_order)]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
