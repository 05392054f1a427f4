"""A report on the files and captions of a data set."""

from collections.abc import Sequence
from dataclasses import dataclass, field

_SHOWN = 50  # of unreadable files, which are to be mended one by one
_SHOWN_OF_OTHERS = 5


@dataclass
class ClipsReport:
    """The files of a data set: those used, and those that are not.

    Attributes:
        num_files: video files found.
        num_frames: frames decoded from the readable ones.
        unreadable: reason for each file that was skipped.
        cut: files with more frames than `max_frames_per_file`, of which the first ones are used.
        held_out: files held out by the prefix of their name.
        with_captions: whether captions were read.
        without_caption: readable files that have no caption, or an empty one.
        captions_without_file: captions that match no video file or several, with table and line.
        captions_replaced: files with several differing captions, with table and line; the last one is used.
        slower: files with far fewer frames per second than the clips, so that frames are repeated.
    """

    num_files: int = 0
    num_frames: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    with_captions: bool = False
    without_caption: list[str] = field(default_factory=list)
    captions_without_file: list[str] = field(default_factory=list)
    captions_replaced: list[str] = field(default_factory=list)
    slower: list[str] = field(default_factory=list)

    @property
    def num_readable(self) -> int:
        """Number of files that are used."""
        return self.num_files - len(self.unreadable)

    def __str__(self) -> str:
        lines = [f"{self.num_files} files, {self.num_frames} frames, {len(self.unreadable)} unreadable"]
        lines += _named("skipped", [f"{name!r}: {reason}" for name, reason in self.unreadable.items()], _SHOWN)
        lines += _named("only the first frames used:", self.cut)
        if self.with_captions and self.without_caption:
            names = [repr(name) for name in self.without_caption]
            lines.append(f"  {len(names)} of {self.num_readable} files have no caption")
            lines += _named("no caption:", names)
        if self.captions_without_file:
            lines.append(f"  {len(self.captions_without_file)} captions have no video file")
            lines += _named("no file:", self.captions_without_file)
        lines += _named("captions differ, the last is used:", self.captions_replaced)
        return "\n".join(lines)


def _named(what: str, items: Sequence[str], most: int = _SHOWN_OF_OTHERS) -> list[str]:
    """A line for each of the first items, and one that counts the others."""
    lines = [f"  {what} {item}" for item in items[:most]]
    return lines + ([f"  {what} {len(items) - most} more"] if len(items) > most else [])
