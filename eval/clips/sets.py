"""Sets of clips, read one after the other: what cannot be read is skipped, counted and named."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.eval.clips.listing import ClipFile
from kinema.eval.clips.rates import Rate, SideRates, read_rate
from kinema.eval.clips.reading import Frames, open_clip
from kinema.eval.clips.tensors import UndecidedClip
from kinema.files import counting_order, displayed
from kinema.loading import one_line

logger = logging.getLogger(__name__)

DEFAULT_MAX_UNREADABLE = 0.05
"""Share of clips that may be unreadable before a measurement is refused: it would be of another set than was given."""


@dataclass
class ReadableClips:
    """Reads clips one after the other, as `(name, frames)`; those that cannot be read are skipped, counted and named.

    With several processes each reads every `world_size`-th clip, and at the end all know what could not be read.

    Args:
        clips: Which.
        max_unreadable: Share of all clips that may be unreadable.
        rank: This process's number.
        world_size: How many processes there are.
        read: What reads one clip.
        argument: What errors call the set.
        progress: What a progress bar on a terminal calls the clips; None: there is none.

    Attributes:
        unreadable: Why each clip was skipped, by name; complete after the iteration.
        rates: The rate of each clip that was read, None for pictures and tensors; likewise.
    """

    clips: Sequence[ClipFile]
    max_unreadable: float = DEFAULT_MAX_UNREADABLE
    rank: int = 0
    world_size: int = 1
    read: Callable[[ClipFile], Frames] = open_clip
    argument: str = "clips"
    progress: str | None = None
    unreadable: dict[str, str] = field(default_factory=dict, init=False)
    rates: dict[str, Rate | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_unreadable <= 1:
            raise KinemaError(f"`max_unreadable` (={self.max_unreadable}) must be in [0, 1]")
        assert 0 <= self.rank < self.world_size

    def __len__(self) -> int:
        """Clips of this process, readable or not."""
        return len(self.share)

    @property
    def share(self) -> Sequence[ClipFile]:
        """The clips that this process reads."""
        return self.clips[self.rank :: self.world_size]

    @property
    def side_rates(self) -> SideRates:
        """A summary of `rates`."""
        return SideRates.of(list(self.rates.values()))

    def __iter__(self) -> Iterator[tuple[str, Frames]]:
        self.unreadable, self.rates = {}, {}
        for clip in _with_bar(self.share, self.progress):
            frames = self.try_read(clip)
            if frames is not None:
                yield clip.name, frames
        self.finish()

    def try_read(self, clip: ClipFile) -> Frames | None:
        """The frames of a clip; None, and an entry in `unreadable`, where it cannot be read.

        Raises:
            UndecidedClip: It can be read in two ways, and the user must say in which.
            KinemaError: So many clips are unreadable by now that the set is refused.
        """
        try:
            frames = self.read(clip)
            self.rates[clip.name] = read_rate(clip)
            return frames
        except UndecidedClip:
            raise
        except Exception as error:  # decoders raise all kinds at damaged files, `MemoryError` at what they claim to be
            known = isinstance(error, KinemaError | OSError)
            reason = one_line(error) if known else f"`clip` (={str(clip.path)!r}) cannot be read: {one_line(error)}"
            self.unreadable[clip.name] = displayed(reason)
            logger.warning("skipped: %s", self.unreadable[clip.name])
            # One process that fails ends the others, too: there is no need to wait until the end to know of it.
            self._check()
            return None

    def adopt(self, unreadable: Mapping[str, str], rates: Mapping[str, Rate | None] | None = None) -> None:
        """Takes over what was found when the same clips were measured before.

        Raises:
            KinemaError: As `try_read`.
        """
        self.unreadable, self.rates = dict(unreadable), dict(rates or {})
        self._check()

    def finish(self) -> None:
        """Tells all processes what each of them found.

        Raises:
            KinemaError: As `try_read`, of the clips of all processes.
        """
        if self.world_size > 1:
            found: list[tuple[dict[str, str], dict[str, Rate | None]]] = [({}, {})] * self.world_size
            torch.distributed.all_gather_object(found, (self.unreadable, self.rates))
            self.unreadable = _in_order(item for part, _ in found for item in part.items())
            self.rates = _in_order(item for _, part in found for item in part.items())
        self._check()

    def _check(self) -> None:
        count, total = len(self.unreadable), len(self.clips)
        if count > self.max_unreadable * total:
            raise KinemaError(
                f"`{self.argument}` ({count} of {total} clips unreadable) must be at least"
                f" {1 - self.max_unreadable:.0%} readable (`--max-unreadable`): {next(iter(self.unreadable.values()))}"
            )


Item = TypeVar("Item")


def _in_order(items: Iterable[tuple[str, Item]]) -> dict[str, Item]:
    return dict(sorted(items, key=lambda item: counting_order(item[0])))


def _with_bar(items: Sequence[Item], name: str | None) -> Iterable[Item]:
    """With a progress bar on a terminal, where it has a name."""
    return items if name is None else tqdm(items, desc=name, unit="clip", disable=None, leave=False)


def read_pairs(
    pairs: Sequence[tuple[ClipFile, ClipFile]], left: ReadableClips, right: ReadableClips
) -> Iterator[tuple[str, Frames, Frames]]:
    """Name and both clips of each pair of which both can be read.

    Args:
        pairs: From `pair_clips`; each process reads its share of them.
        left: Reads the first of each, and counts what it cannot read.
        right: The same for the second.

    Raises:
        KinemaError: Too many are unreadable.
    """
    for one, other in _with_bar(pairs[left.rank :: left.world_size], left.progress):
        frames = left.try_read(one), right.try_read(other)
        if frames[0] is not None and frames[1] is not None:
            yield one.name, frames[0], frames[1]
    left.finish()
    right.finish()
