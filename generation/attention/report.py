"""Reports what a pattern saves: its density, the FLOPs of a forward pass, and the expected end-to-end speedup.

The speedup follows Amdahl's law,

    1 / (1 - a + a · d / e)

with a the share of attention in a dense forward pass, d the fraction of attention that is still computed, and e the
efficiency of the sparse backend. It assumes time proportional to FLOPs, and accounts for dense layers and steps.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from math import isfinite
from typing import Any

from kinema.errors import KinemaError
from kinema.generation.attention.architectures import Architecture, find_architecture
from kinema.generation.attention.grid import Grid
from kinema.generation.attention.patterns import Density, Full, Pattern
from kinema.generation.attention.schedule import PatternSchedule, as_schedule
from kinema.generation.attention.text import pattern_text

_MAX_TOKENS = 2**22
_MAX_TILES = 2**13


@dataclass(frozen=True)
class AttentionReport:
    """What patterns save in a model on a grid of tokens.

    Attributes:
        grid: tokens along time, height and width.
        model: name of the model, or `custom`.
        tokens: number of video tokens.
        num_layers: number of blocks.
        num_heads: number of heads per block.
        dense_layers: number of blocks with dense attention.
        dense_steps: number of denoising steps with dense attention.
        num_steps: number of denoising steps.
        efficiency: FLOPs per second of the sparse backend relative to dense attention.
        density: fraction of video token pairs that attend, in layers and steps that are not dense.
        tile_density: fraction that is computed; see `Density`.
        is_exact: false if the patterns depend on queries and keys; densities and sparse FLOPs are then upper bounds.
        attention_flops: FLOPs of self-attention in a dense forward pass.
        sparse_attention_flops: FLOPs of self-attention with the patterns, averaged over the denoising steps.
        other_flops: other FLOPs of a forward pass: projections, feed-forward layers, cross-attention to text.
        flops_saved: difference between dense and sparse attention in a forward pass.
        attention_share: share of attention in the FLOPs of a dense forward pass.
        speedup: expected end-to-end speedup.
        max_speedup: the limit if attention took no time.
        patterns: text of each pattern, and the densities of its heads.
    """

    grid: Grid
    model: str
    tokens: int
    num_layers: int
    num_heads: int
    dense_layers: int
    dense_steps: int
    num_steps: int
    efficiency: float
    density: float
    tile_density: float
    is_exact: bool
    attention_flops: float
    sparse_attention_flops: float
    other_flops: float
    flops_saved: float
    attention_share: float
    speedup: float
    max_speedup: float
    patterns: tuple[tuple[str, tuple[Density, ...]], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that can be written as JSON."""
        patterns = [{"pattern": text, "heads": [asdict(row) for row in rows]} for text, rows in self.patterns]
        return {**asdict(self), "grid": list(self.grid.sizes), "patterns": patterns}

    def table(self) -> str:
        """Return the report as lines of aligned text."""
        return "\n".join((*_density_lines(self), "", *_cost_lines(self)))


def attention_report(
    pattern: Pattern | PatternSchedule | Sequence[Pattern],
    grid: Grid,
    model: str | Architecture = "wan-1.3b",
    *,
    num_steps: int = 50,
    efficiency: float = 1.0,
) -> AttentionReport:
    """Compute what patterns save.

    Args:
        pattern: a pattern for all blocks, patterns that blocks cycle through, or a schedule.
        grid: number of video tokens along time, height and width.
        model: a name in `architectures`, or sizes.
        num_steps: number of denoising steps.
        efficiency: FLOPs per second of the sparse backend relative to dense attention.

    Raises:
        KinemaError: a number is out of range, the model is unknown, or a pattern is for another number of heads.
    """
    schedule = as_schedule(pattern)
    sizes = find_architecture(model) if isinstance(model, str) else model
    _check(schedule, sizes, num_steps, efficiency)
    _check_size(schedule, grid)
    patterns = _patterns_in_use(schedule, sizes, grid, num_steps)
    without_dense = replace(schedule, dense_layers=0, dense_steps=0, min_tokens=0)
    sparse_patterns = _patterns_in_use(without_dense, sizes, grid, num_steps)
    densities = {each: each.densities(grid) for each in {**sparse_patterns, **patterns}}

    def mean(counts: Counter[Pattern], field: str) -> float:
        heads = {each: [getattr(row, field) for row in densities[each]] for each in counts}
        return sum(n * sum(heads[each]) / len(heads[each]) for each, n in counts.items()) / counts.total()

    forwards = {each: sizes.num_layers * n / patterns.total() for each, n in patterns.items()}
    flops = {
        each: n * sizes.attention_flops(grid.num_tokens, mean(Counter([each]), "tile_density"))
        for each, n in forwards.items()
    }
    dense = sizes.num_layers * sizes.attention_flops(grid.num_tokens)
    other = float(sizes.num_layers * sizes.other_flops(grid.num_tokens))
    sparse = sum(flops.values())
    # Efficiency is relative to dense attention, so it does not apply to it.
    time = other + sum(n / (1 if isinstance(each, Full) else efficiency) for each, n in flops.items())
    return AttentionReport(
        grid=grid,
        model=model if isinstance(model, str) else "custom",
        tokens=grid.num_tokens,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        dense_layers=_num_dense_layers(schedule, sizes.num_layers),
        dense_steps=_num_dense_steps(schedule),
        num_steps=num_steps,
        efficiency=efficiency,
        density=mean(sparse_patterns, "density"),
        tile_density=mean(sparse_patterns, "tile_density"),
        is_exact=all(row.is_exact for each in sparse_patterns for row in densities[each]),
        attention_flops=dense,
        sparse_attention_flops=sparse,
        other_flops=other,
        flops_saved=dense - sparse,
        attention_share=dense / (dense + other),
        speedup=(dense + other) / time,
        max_speedup=(dense + other) / other,
        patterns=tuple((label(each), densities[each]) for each in sparse_patterns),
    )


def label(pattern: Pattern) -> str:
    """Return the text of a pattern for reports and pictures, or its name if it has no text."""
    try:
        return pattern_text(pattern)
    except KinemaError:
        return pattern.name


def shorten(text: str, length: int = 56) -> str:
    """Truncate the text of a pattern, which may list a window for each of many heads."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _check(schedule: PatternSchedule, sizes: Architecture, num_steps: int, efficiency: float) -> None:
    if num_steps < 1:
        raise KinemaError(f"`num_steps` (={num_steps}) must be at least 1")
    if not (isfinite(efficiency) and efficiency > 0):
        raise KinemaError(f"`efficiency` (={efficiency:g}) must be above 0")
    schedule.check(sizes.num_layers, sizes.num_heads, num_steps)


def _check_size(schedule: PatternSchedule, grid: Grid) -> None:
    """Limit the size of the tables of tile pairs, so that they fit in memory."""
    if grid.num_tokens > _MAX_TOKENS:
        raise KinemaError(f"`grid` (={grid}) must have at most {_MAX_TOKENS:,} tokens, not {grid.num_tokens:,}")
    for patterns in (schedule.patterns, *(later for _, later in schedule.by_step)):
        for each in patterns:
            tiles = each.order(grid).num_tiles
            if tiles > _MAX_TILES:
                raise KinemaError(
                    f"`pattern` (={label(each)}) must cut `grid` (={grid}) into at most {_MAX_TILES:,} tiles,"
                    f" not {tiles:,}"
                )


def _patterns_in_use(schedule: PatternSchedule, sizes: Architecture, grid: Grid, num_steps: int) -> Counter[Pattern]:
    """Count the pairs of layer and step that each pattern is used in."""
    places = product(range(sizes.num_layers), range(num_steps))
    return Counter(schedule.at(layer, sizes.num_layers, step, num_steps, grid) for layer, step in places)


def _num_dense_layers(schedule: PatternSchedule, num_layers: int) -> int:
    layers = schedule.dense_layers
    return layers if isinstance(layers, int) else len({layer % num_layers for layer in layers})


def _num_dense_steps(schedule: PatternSchedule) -> int:
    steps = schedule.dense_steps
    return steps if isinstance(steps, int) else sum(steps)


def _density_lines(report: AttentionReport) -> list[str]:
    rows = [("pattern", "heads", "density", "computed")]
    for text, densities in report.patterns:
        for (*sizes, is_exact), alike in groupby(densities, lambda row: (row.density, row.tile_density, row.is_exact)):
            figures = [f"{'' if is_exact else '<= '}{x:.4f}" for x in sizes]
            heads = [row.heads for row in alike]
            names = heads[0] if len(heads) == 1 else f"{heads[0]}-{heads[-1]}"
            rows.append((shorten(text), names, figures[0], figures[1]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    ]


def _cost_lines(report: AttentionReport) -> list[str]:
    forward = report.attention_flops + report.other_flops
    most = "" if report.is_exact else "at least "
    rows = (
        ("grid", f"{report.grid} = {report.tokens:,} tokens"),
        ("model", f"{report.model}: {report.num_layers} layers, {report.num_heads} heads"),
        (
            "dense",
            f"{report.dense_layers} of {report.num_layers} layers, {report.dense_steps} of {report.num_steps} steps",
        ),
        ("attention", f"{_tera(report.attention_flops)} a forward, {report.attention_share:.1%} of the whole"),
        ("with the pattern", f"{_tera(report.sparse_attention_flops)} a forward, mean over the steps"),
        ("the rest", _tera(report.other_flops)),
        ("saved", f"{most}{_tera(report.flops_saved)}, {report.flops_saved / forward:.1%} of the whole"),
        (
            "end to end",
            f"{most}{report.speedup:.2f}x at efficiency {report.efficiency:g}"
            f" ({report.max_speedup:.2f}x if attention took no time)",
        ),
    )
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _tera(flops: float) -> str:
    tera = flops / 1e12
    return f"{tera:,.0f} TFLOP" if tera >= 1000 else f"{tera:.4g} TFLOP"
