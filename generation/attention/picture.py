"""Pictures of masks: which tiles see which, and what a tile in the middle of the clip sees, frame by frame.

Shapes: q tiles of queries and of keys, t h w the grid.
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

_HIDDEN, _PARTLY, _SEEN, _OWN = "#e6eaf1", "#8fb0ea", "#1f4fb5", "#d1495b"
_MOST_TILES = 256  # to a side of a picture; more are drawn as groups
_MOST_FRAMES = 28
_WIDE, _HIGH, _NUMBER = 7.4, 2.3, 0.14  # inches for the frames of a head, and for the number above a frame


@dataclass(frozen=True, eq=False)
class HeadView:
    """What one head, or several that are alike, sees.

    Attributes:
        title: pattern and heads.
        tiles: 0 not seen, 1 seen in part, 2 seen wholly: query tiles by key tiles, in the order of the pattern.
        share: which share of the middle tile's queries sees each token.
        own: the tokens of that tile.
    """

    title: str
    tiles: Int[Tensor, "q q"]
    share: Float[Tensor, "t h w"]
    own: Bool[Tensor, "t h w"]


def head_views(patterns: Sequence[Pattern], grid: Grid) -> list[HeadView]:
    """What the heads of patterns see, those that see the same once.

    A pattern that looks at queries and keys is given random ones.
    """
    return [view for pattern in dict.fromkeys(patterns) for view in _views(pattern, grid)]


def draw_masks(patterns: Sequence[Pattern], grid: Grid, path: str | os.PathLike[str]) -> None:
    """Draws what the heads of patterns see, a row for each, as a PNG.

    Args:
        patterns: the patterns.
        grid: numbers of video tokens along time, height and width.
        path: the file; it appears whole or not at all.

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
    kinds = {"seen": _SEEN, "seen in part": _PARTLY, "not seen": _HIDDEN, "the tile that looks, seen": _OWN}
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
    for own, members in groups:
        layout = own.plan(grid, len(members))
        for alike in _alike(layout):
            heads = [members[head] for head in alike] if own.num_heads else members
            names = f"{', '.join(map(str, heads[:12]))}{', ...' * (len(heads) > 12)}"
            names = "" if len(densities) == 1 else f", head{'s' * (len(heads) > 1)} {names}"
            yield _view(f"{shorten(label(pattern))}{names}", layout, alike[0], densities[heads[0]])


def _alike(layout: BlockLayout) -> list[list[int]]:
    """Heads that see the same, together."""
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
    own = torch.zeros(grid.num_tokens, dtype=torch.bool)
    own[queries] = True
    title = f"{title}: density {'' if density.is_exact else 'at most '}{density.density:.3g}"
    return HeadView(title, seen.int() + whole.int(), share.view(grid.sizes), own.view(grid.sizes))


def _draw_tiles(axes: Axes, view: HeadView) -> None:
    number = len(view.tiles)
    share = _in_groups(view.tiles / 2, -(-number // _MOST_TILES))
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
    """Means of groups of size × size pairs of tiles; one in which few are seen is raised, so that it can be told."""
    if size == 1:
        return share
    # The last group is made up of the last tiles, whether or not others hold some of them.
    starts = torch.arange(-(-len(share) // size)).mul(size).clamp_max(len(share) - size)
    index = (starts[:, None] + torch.arange(size)).flatten()
    means = share[index][:, index].unflatten(0, (-1, size)).unflatten(2, (-1, size)).mean((1, 3))
    return torch.where(means > 0, means.clamp_min(0.35), 0.0)


def _draw_frames(axes: Axes, view: HeadView) -> None:
    _, height, width = view.share.shape
    shown = _shown(view)
    gap = max(1, round(min(height, width) * 0.1))
    columns = max(range(1, len(shown) + 1), key=lambda n: _scale(len(shown), n, height, width + gap))
    rows = -(-len(shown) // columns)
    above = max(1, round(_NUMBER / _scale(len(shown), columns, height, width + gap)))
    mosaic = np.ones((rows * (height + above), columns * (width + gap) - gap, 3))
    for place, step in enumerate(shown):
        top, left = place // columns * (height + above) + above, place % columns * (width + gap)
        mosaic[top : top + height, left : left + width] = _frame(view, step)
        axes.text(left - 0.5, top - 0.5, f"{step}", fontsize=7, va="bottom", ha="left", color="#444b57")
    axes.imshow(mosaic)
    axes.set_axis_off()
    axes.set_anchor("NW")
    axes.set_title("what the tile in the middle sees, by latent step", fontsize=9, loc="left")


def _shown(view: HeadView) -> list[int]:
    """Latent steps to draw: all, or where there are many, some at even distances and the tile's first."""
    steps = len(view.share)
    some = np.linspace(0, steps - 1, min(steps, _MOST_FRAMES)).round().astype(int).tolist()
    return sorted({*some, int(view.own.flatten(1).any(1).nonzero()[0])})


def _scale(number: int, columns: int, height: int, width: int) -> float:
    """Inches of a token where frames stand in so many columns."""
    return min(_WIDE / (columns * width), (_HIGH / -(-number // columns) - _NUMBER) / height)


def _frame(view: HeadView, step: int) -> np.ndarray:
    picture = _colours(view.share[step].numpy())
    picture[view.own[step].numpy()] = to_rgb(_OWN)
    return picture


def _colours(share: np.ndarray) -> np.ndarray:
    """From the colour of what is not seen over that of what is half seen."""
    hidden, partly, seen = (np.array(to_rgb(colour)) for colour in (_HIDDEN, _PARTLY, _SEEN))
    share = share[..., None]
    return np.where(share <= 0.5, hidden + 2 * share * (partly - hidden), partly + (2 * share - 1) * (seen - partly))
