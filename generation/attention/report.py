"""What a pattern saves: how much it sees, FLOPs of a forward, and the gain to expect of a model from end to end.

The gain is Amdahl's: with a the share of attention in a dense forward, d what is left of it, and e the efficiency of
the sparse backend,

    1 / (1 - a + a · d / e)

where time is taken to go as FLOPs, and layers and steps that stay dense count as such.
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

_MOST_TOKENS = 2**22
_MOST_TILES = 2**13


@dataclass(frozen=True)
class AttentionReport:
    """What patterns save in a model on a grid.

    Attributes:
        grid: tokens along time, height and width.
        model: name of the model, or `custom`.
        tokens: video tokens.
        num_layers: blocks.
        num_heads: heads of a block.
        dense_layers: blocks that stay dense.
        dense_steps: denoising steps that stay dense.
        num_steps: denoising steps.
        efficiency: of the sparse backend: what it computes in the time that dense attention takes for as much.
        density: share of the pairs of video tokens that is seen, where layers and steps are not dense.
        tile_density: likewise, what is computed; see `Density`.
        is_exact: false: densities, and what follows from them, are the most that queries and keys can ask for.
        attention_flops: self-attention of a dense forward.
        sparse_attention_flops: self-attention with the patterns, a mean over the denoising steps; tiles seen in part
            and empty slots of ragged ones included.
        other_flops: the rest of a forward: projections, feed-forward layers, cross-attention to text.
        flops_saved: dense less sparse, of a forward.
        attention_share: of attention in a dense forward.
        speedup: of the whole by Amdahl.
        max_speedup: what it would be if attention took no time.
        patterns: for each pattern, its text and the densities of its heads.
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
        """As JSON can hold it: the fields by name."""
        patterns = [{"pattern": text, "heads": [asdict(row) for row in rows]} for text, rows in self.patterns]
        return {**asdict(self), "grid": list(self.grid.sizes), "patterns": patterns}

    def table(self) -> str:
        """The report as text, a few aligned lines."""
        return "\n".join((*_density_lines(self), "", *_cost_lines(self)))


def attention_report(
    pattern: Pattern | PatternSchedule | Sequence[Pattern],
    grid: Grid,
    model: str | Architecture = "wan-1.3b",
    *,
    num_steps: int = 50,
    efficiency: float = 1.0,
) -> AttentionReport:
    """Counts what patterns save.

    Args:
        pattern: a pattern for all blocks, patterns that they take in turns, or a schedule with dense layers and steps.
        grid: numbers of video tokens along time, height and width.
        model: a name in `ARCHITECTURES`, or sizes.
        num_steps: denoising steps.
        efficiency: of the sparse backend: FLOPs a second over those of dense attention.

    Raises:
        KinemaError: a number is out of its range, the model is unknown, or a pattern does not fit its heads.
    """
    schedule = as_schedule(pattern)
    sizes = find_architecture(model) if isinstance(model, str) else model
    _check(schedule, sizes, num_steps, efficiency)
    _check_size(schedule, grid)
    patterns = _patterns_in_use(schedule, sizes, grid, num_steps)
    undense = replace(schedule, dense_layers=0, dense_steps=0, min_tokens=0)
    own = _patterns_in_use(undense, sizes, grid, num_steps)
    densities = {each: each.densities(grid) for each in {**own, **patterns}}

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
    # Dense attention is what efficiency is measured against.
    time = other + sum(own / (1 if isinstance(each, Full) else efficiency) for each, own in flops.items())
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
        density=mean(own, "density"),
        tile_density=mean(own, "tile_density"),
        is_exact=all(row.is_exact for each in own for row in densities[each]),
        attention_flops=dense,
        sparse_attention_flops=sparse,
        other_flops=other,
        flops_saved=dense - sparse,
        attention_share=dense / (dense + other),
        speedup=(dense + other) / time,
        max_speedup=(dense + other) / other,
        patterns=tuple((label(each), densities[each]) for each in own),
    )


def label(pattern: Pattern) -> str:
    """What a pattern is called in reports and pictures: its text, where it has one."""
    try:
        return pattern_text(pattern)
    except KinemaError:
        return pattern.name


def shorten(text: str, length: int = 56) -> str:
    """A pattern's text, cut where it has a window for each of many heads."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _check(schedule: PatternSchedule, sizes: Architecture, num_steps: int, efficiency: float) -> None:
    if num_steps < 1:
        raise KinemaError(f"`num_steps` (={num_steps}) must be at least 1")
    if not (isfinite(efficiency) and efficiency > 0):
        raise KinemaError(f"`efficiency` (={efficiency:g}) must be above 0")
    schedule.check(sizes.num_layers, sizes.num_heads, num_steps)


def _check_size(schedule: PatternSchedule, grid: Grid) -> None:
    """Tables of tiles are to fit in the memory of any machine."""
    if grid.num_tokens > _MOST_TOKENS:
        raise KinemaError(f"`grid` (={grid}) must have at most {_MOST_TOKENS:,} tokens, not {grid.num_tokens:,}")
    for patterns in (schedule.patterns, *(own for _, own in schedule.by_step)):
        for each in patterns:
            tiles = each.order(grid).num_tiles
            if tiles > _MOST_TILES:
                raise KinemaError(
                    f"`pattern` (={label(each)}) must cut `grid` (={grid}) into at most {_MOST_TILES:,} tiles,"
                    f" not {tiles:,}"
                )


def _patterns_in_use(schedule: PatternSchedule, sizes: Architecture, grid: Grid, num_steps: int) -> Counter[Pattern]:
    """Layers and steps that each pattern runs in."""
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
