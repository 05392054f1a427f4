"""Pictures of masks: the tile pairs that attend, and the tokens that the tile in the middle attends to, by frame.

Shapes: q query tiles and key tiles, t h w the grid.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator
from torch import Tensor

from kinema.files import atomic_path
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.layout import BlockLayout
from kinema.generation.attention.patterns import Density, Pattern, PerHead, SpatialTemporalHeads, StaticPattern
from kinema.generation.attention.report import label, shorten

_UNSEEN, _PARTIAL, _SEEN, _QUERIES = "#e6eaf1", "#8fb0ea", "#1f4fb5", "#d1495b"
_MAX_TILES = 256  # per side of a picture; more are averaged in groups
_MAX_FRAMES = 28
_WIDTH, _HEIGHT, _LABEL_HEIGHT = 7.4, 2.3, 0.14  # inches for the frames of a head, and for the label above a frame


@dataclass(frozen=True, eq=False)
class HeadView:
    """What one head, or several equal ones, attend to.

    Attributes:
        title: pattern and heads.
        tiles: query tiles by key tiles in the order of the pattern: 0 none, 1 partial, 2 full.
        share: for each token, the share of the middle tile's queries that attend to it.
        queries: the tokens of the middle tile.
    """

    title: str
    tiles: Int[Tensor, "q q"]
    share: Float[Tensor, "t h w"]
    queries: Bool[Tensor, "t h w"]


def head_views(patterns: Sequence[Pattern], grid: Grid) -> list[HeadView]:
    """Return one view for each set of equal heads of the patterns.

    Dynamic patterns are evaluated on random queries and keys.
    """
    return [view for pattern in dict.fromkeys(patterns) for view in _views(pattern, grid)]


def draw_masks(patterns: Sequence[Pattern], grid: Grid, path: str | os.PathLike[str]) -> None:
    """Draw what the heads of patterns attend to as a PNG, one row per view.

    Args:
        patterns: the patterns.
        grid: number of video tokens along time, height and width.
        path: the output file, written atomically.

    Raises:
        KinemaError: the file cannot be written.
    """
    views = head_views(patterns, grid)
    canvas = Canvas(figsize=(11, 3.2 * len(views) + 0.4), layout="constrained")
    rows = canvas.subfigures(len(views) + 1, 1, height_ratios=[*[3.2] * len(views), 0.4], squeeze=False)[:, 0]
    for row, view in zip(rows[:-1], views, strict=True):
        row.suptitle(view.title, fontsize=10, x=0.01, ha="left")
        left, right = row.subplots(1, 2, width_ratios=(1, 2.6))
        _draw_tiles(left, view)
        _draw_frames(right, view)
    kinds = {"attended to": _SEEN, "in part": _PARTIAL, "not attended to": _UNSEEN, "query tile": _QUERIES}
    handles = [Patch(color=colour, label=name) for name, colour in kinds.items()]
    rows[-1].legend(handles=handles, loc="center", ncols=len(kinds), frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _views(pattern: Pattern, grid: Grid) -> Iterator[HeadView]:
    if isinstance(pattern, SpatialTemporalHeads):
        for band in pattern.candidates:
            yield _view(f"{shorten(label(pattern))}, {band.axis} heads", band.plan(grid, 1), 0, band.densities(grid)[0])
        return
    densities = pattern.densities(grid)
    if not isinstance(pattern, StaticPattern):
        generator = torch.Generator().manual_seed(0)
        query, key = (torch.randn(1, 1, grid.num_tokens, 16, generator=generator) for _ in range(2))
        layout = pattern.plan(grid, 1, 0, query, key)
        yield _view(f"{shorten(label(pattern))}, random queries and keys", layout, 0, densities[0])
        return
    groups = pattern.groups(grid) if isinstance(pattern, PerHead) else [(pattern, list(range(len(densities))))]
    for group, members in groups:
        layout = group.plan(grid, len(members))
        for heads_alike in _equal_heads(layout):
            heads = [members[head] for head in heads_alike] if group.num_heads else members
            names = f"{', '.join(map(str, heads[:12]))}{', ...' * (len(heads) > 12)}"
            names = "" if len(densities) == 1 else f", head{'s' * (len(heads) > 1)} {names}"
            yield _view(f"{shorten(label(pattern))}{names}", layout, heads_alike[0], densities[heads[0]])


def _equal_heads(layout: BlockLayout) -> list[list[int]]:
    """Group the heads with equal tables."""
    groups: list[list[int]] = []
    seen, whole = (table[0] for table in layout.seen())
    for head in range(len(seen)):
        for group in groups:
            if torch.equal(seen[group[0]], seen[head]) and torch.equal(whole[group[0]], whole[head]):
                group.append(head)
                break
        else:
            groups.append([head])
    return groups


def _view(title: str, layout: BlockLayout, head: int, density: Density) -> HeadView:
    order, grid = layout.order, layout.order.grid
    seen, whole = (table[0, head] for table in layout.seen())
    tokens, valid = order.tiles_of(order.tokens), order.tiles_of(order.valid)
    middle = (grid.t // 2 * grid.h + grid.h // 2) * grid.w + grid.w // 2
    tile = int(order.slots[middle]) // order.tile_size
    queries = tokens[tile][valid[tile]]
    share = torch.zeros(grid.num_tokens)
    share[tokens[whole[tile]][valid[whole[tile]]]] = 1.0
    keys = tokens[seen[tile] & ~whole[tile]].flatten()
    if layout.mask is not None and len(keys):
        share[keys] = layout.mask(torch.tensor(head), queries[:, None], keys[None, :]).float().mean(0)
    is_query = torch.zeros(grid.num_tokens, dtype=torch.bool)
    is_query[queries] = True
    title = f"{title}: density {'' if density.is_exact else 'at most '}{density.density:.3g}"
    return HeadView(title, seen.int() + whole.int(), share.view(grid.sizes), is_query.view(grid.sizes))


def _draw_tiles(axes: Axes, view: HeadView) -> None:
    number = len(view.tiles)
    share = _in_groups(view.tiles / 2, -(-number // _MAX_TILES))
    end = number - 0.5
    axes.imshow(_colours(share.numpy()), extent=(-0.5, end, end, -0.5), interpolation="nearest")
    axes.set_title("tiles", fontsize=9, loc="left")
    axes.set_xlabel("key tile", fontsize=9)
    axes.set_ylabel("query tile", fontsize=9)
    axes.tick_params(labelsize=8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([0]) if number == 1 else MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.spines[:].set_visible(False)


def _in_groups(share: Float[Tensor, "q q"], size: int) -> Float[Tensor, "g g"]:
    """Average groups of size × size tile pairs; small positive means are raised, so that they remain visible."""
    if size == 1:
        return share
    # The last group consists of the last tiles and may overlap with the one before it.
    starts = torch.arange(-(-len(share) // size)).mul(size).clamp_max(len(share) - size)
    index = (starts[:, None] + torch.arange(size)).flatten()
    means = share[index][:, index].unflatten(0, (-1, size)).unflatten(2, (-1, size)).mean((1, 3))
    return torch.where(means > 0, means.clamp_min(0.35), 0.0)


def _draw_frames(axes: Axes, view: HeadView) -> None:
    _, height, width = view.share.shape
    shown = _shown_steps(view)
    gap = max(1, round(min(height, width) * 0.1))
    columns = max(range(1, len(shown) + 1), key=lambda n: _scale(len(shown), n, height, width + gap))
    rows = -(-len(shown) // columns)
    above = max(1, round(_LABEL_HEIGHT / _scale(len(shown), columns, height, width + gap)))
    mosaic = np.ones((rows * (height + above), columns * (width + gap) - gap, 3))
    for place, step in enumerate(shown):
        top, left = place // columns * (height + above) + above, place % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = _frame(view, step)
        axes.text(left - 0.5, top - 0.5, f"{step}", fontsize=7, va="bottom", ha="left", color="#444b57")
    axes.imshow(mosaic)
    axes.set_axis_off()
    axes.set_anchor("NW")
    axes.set_title("tokens that the middle tile attends to, by latent step", fontsize=9, loc="left")


def _shown_steps(view: HeadView) -> list[int]:
    """Return the latent steps to draw: all, or evenly spaced ones and the first of the middle tile."""
    steps = len(view.share)
    some = np.linspace(0, steps - 1, min(steps, _MAX_FRAMES)).round().astype(int).tolist()
    return sorted({*some, int(view.queries.flatten(1).any(1).nonzero()[0])})


def _scale(number: int, columns: int, height: int, width: int) -> float:
    """Return the size of a token in inches for a number of columns of frames."""
    return min(_WIDTH / (columns * width), (_HEIGHT / -(-number // columns) - _LABEL_HEIGHT) / height)


def _frame(view: HeadView, step: int) -> np.ndarray:
    picture = _colours(view.share[step].numpy())
    picture[view.queries[step].numpy()] = to_rgb(_QUERIES)
    return picture


def _colours(share: np.ndarray) -> np.ndarray:
    """Interpolate between the colours of unseen, partially seen and seen tokens."""
    unseen, partial, seen = (np.array(to_rgb(colour)) for colour in (_UNSEEN, _PARTIAL, _SEEN))
    share = share[..., None]
    return np.where(share <= 0.5, unseen + 2 * share * (partial - unseen), partial + (2 * share - 1) * (seen - partial))
