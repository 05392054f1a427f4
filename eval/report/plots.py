"""Plots as SVG pictures inside the page. They are drawn without a display, and the same figures give the same file."""

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from kinema.eval.report.document import Figure
from kinema.eval.report.media import data_uri

COLOURS = ("#2457c5", "#d1495b", "#2e8b57", "#b07d12", "#7b4fb5", "#3b8ea5")
"""Told apart by people who do not see all colours, too; marks differ besides."""

_MARKS = ("o", "s", "^", "D", "v", "P")


def curves(
    title: str,
    lines: Mapping[str, Sequence[float | None]],
    *,
    ylabel: str,
    xlabel: str = "frame",
    borders: Sequence[int] = (),
    caption: str = "",
) -> Figure:
    """Lines over the number of the frame.

    Args:
        title: Above the plot.
        lines: Values by label; None leaves a gap.
        ylabel: What is measured, with the unit.
        xlabel: What is counted.
        borders: Frames to mark by a thin line.
        caption: A line below.
    """
    canvas, axes = _start(title, xlabel, ylabel)
    for border in borders:
        axes.axvline(border, color="#c9cfd9", linewidth=0.8, zorder=0)
    for index, (label, values) in enumerate(lines.items()):
        points = [float("nan") if value is None else value for value in values]
        mark = _MARKS[index % len(_MARKS)] if len(points) <= 40 else None
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(range(len(points)), points, color=colour, marker=mark, markersize=3.5, linewidth=1.6, label=label)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _finish(canvas, f"{title}: {ylabel} by {xlabel}", caption)


def histogram(title: str, values: Sequence[float], *, xlabel: str, caption: str = "") -> Figure:
    """How many clips have which value.

    Args:
        title: Above the plot.
        values: One a clip.
        xlabel: What is measured, with the unit.
        caption: A line below.
    """
    canvas, axes = _start(title, xlabel, "clips")
    axes.hist(list(values), bins=min(30, max(5, len(values) // 3)), color=COLOURS[0], edgecolor="white")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(canvas, f"{title}: number of clips by {xlabel}", caption)


def intervals(
    title: str, rows: Mapping[str, tuple[float, tuple[float, float] | None]], *, xlabel: str, caption: str = ""
) -> Figure:
    """Values with their intervals, a row each, from the top.

    Args:
        title: Above the plot.
        rows: Value, and low and high end of its interval, by label.
        xlabel: What is measured, with the unit.
        caption: A line below.
    """
    canvas, axes = _start(title, xlabel, "", height=0.9 + 0.45 * len(rows))
    for position, (value, interval) in enumerate(rows.values()):
        colour = COLOURS[position % len(COLOURS)]
        if interval is not None:
            axes.plot(interval, (position, position), color=colour, linewidth=2.5, alpha=0.5, solid_capstyle="butt")
        axes.plot([value], [position], marker="o", color=colour)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    return _finish(canvas, f"{title}: {xlabel}", caption)


def _start(title: str, xlabel: str, ylabel: str, height: float = 3.2) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(6.4, height), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eceff4", linewidth=0.8)
    axes.set_axisbelow(True)
    return canvas, axes


def _finish(canvas: Canvas, alt: str, caption: str) -> Figure:
    stream = io.BytesIO()
    # Letters as outlines look the same everywhere; a fixed salt and no date make the file reproducible.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "kinema"}):
        canvas.savefig(stream, format="svg", metadata={"Date": None})
    return Figure(uri=data_uri(stream.getvalue(), "image/svg+xml"), alt=alt, caption=caption)
