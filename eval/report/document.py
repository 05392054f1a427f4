"""What a report says, before it is a page. Pictures and clips are data URIs: the file needs nothing beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | float | int | None


def number(value: Cell) -> str:
    """A value as a reader wants it: as many digits as mean something; a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if abs(value) < 1000 else 1
    return f"{value:,.{min(digits, 6)}f}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head.

    Attributes:
        head: One a column.
        rows: As many cells as the head has; numbers are formatted by `number`.
        caption: A line above.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def is_text(self, column: int) -> bool:
        """Whether a column is one of words rather than numbers."""
        return column == 0 or any(isinstance(row[column], str) for row in self.rows)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture.

    Attributes:
        uri: A data URI.
        alt: What it shows, for those who do not see it.
        caption: A line below.
    """

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips side by side, in one video, so that they stay in step.

    Attributes:
        title: Of the whole.
        labels: One a clip, from left to right.
        uri: The video, a data URI.
        poster: Its first frame, a data URI: what is printed, or shown where the video cannot be played.
        width: Of the video in pixels.
        caption: A line below.
    """

    title: str
    labels: Sequence[str]
    uri: str
    poster: str
    width: int
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report, shown in this order.

    Attributes:
        title: Its heading.
        text: Paragraphs.
        tables: After the text.
        figures: After the tables.
        clips: At the end.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    clips: Sequence[Clips] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """A page.

    Attributes:
        title: Its heading.
        headline: The figures that matter most: label, value, and what must be known to read it.
        notes: What the reader must be told: limits, warnings.
        sections: All else.
        command: What makes the same figures again.
    """

    title: str
    headline: Sequence[tuple[str, Cell, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()
    command: str = ""
