"""Time of sparse attention over dense, by density: does it run as fast as its density promises?

    python benchmarks/sparse_attention.py [--grid TxHxW ...] [--dtype float32 bfloat16] [--device cuda]

    efficiency = (dense time x density) / sparse time

Dense is the best dense way of this machine in the same run: SDPA with each of its kernels, and explicit products where
their scores fit. All take turns, and the median of ratios counts. "raster" includes putting queries, keys and values
into tiles and the result back; "tile" is what a transformer pays that keeps its tokens in tiles. The density is that of
computed tiles over all pairs of tokens, empty slots of ragged tiles included.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention import Grid, SlidingTile, sparse_attention
from kinema.generation.attention.backends import BACKENDS, BackendFailed
from kinema.generation.attention.text import parse_grid

WINDOWS = ((9, 9, 9), (5, 5, 5), (3, 5, 3), (3, 3, 3), (3, 3, 1), (1, 3, 3), (1, 3, 1), (1, 1, 1))
"""Windows in tiles; those of one density as another, or of no less than all, are left out."""

GRIDS = {"cpu": ("6x32x32", "12x32x64"), "cuda": ("30x48x80",)}
TILES = {"cpu": (2, 8, 8), "cuda": (6, 8, 8)}
HEADS = {"cpu": (8, 64), "cuda": (24, 128)}
_SCORES_LIMIT = 2**30  # numbers of scores up to which explicit products are a way of dense attention


def dense_ways(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Ways to compute dense attention that run here."""

    def explicit() -> Tensor:
        scores = query @ key.mT
        return scores.mul_(query.shape[-1] ** -0.5).softmax(-1).to(value.dtype) @ value

    def kernel(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value)

    ways: dict[str, Callable[[], Tensor]] = {
        "flash": lambda: kernel(SDPBackend.FLASH_ATTENTION),
        "cudnn": lambda: kernel(SDPBackend.CUDNN_ATTENTION),
        "efficient": lambda: kernel(SDPBackend.EFFICIENT_ATTENTION),
        "explicit": explicit,
    }
    if query.shape[0] * query.shape[1] * query.shape[2] ** 2 > _SCORES_LIMIT:
        del ways["explicit"]
    first = {name: seconds(way, query.device.type) for name, way in ways.items() if runs(way)}
    # What is far behind (a type that is emulated) would only take the table's time.
    return {name: ways[name] for name, own in first.items() if own <= 3 * min(first.values())}


def runs(way: Callable[[], Any]) -> bool:
    """Whether something runs here; also its first call, which may compile."""
    try:
        way()
    except (RuntimeError, BackendFailed):
        return False
    return True


def seconds(way: Callable[[], Any], device: str) -> float:
    """Time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def patterns(grid: Grid, tile: tuple[int, int, int]) -> Iterator[SlidingTile]:
    """Sliding tiles of falling density."""
    seen: set[float] = {1.0}
    for window in WINDOWS:
        pattern = SlidingTile(tile, window)
        density = pattern.densities(grid)[0].tile_density
        if density not in seen:
            seen.add(density)
            yield pattern


@torch.no_grad()
def measure(grid: Grid, dtype: torch.dtype, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one grid and type."""
    device = arguments.device
    heads, width = HEADS[device]
    generator = torch.Generator().manual_seed(0)
    shape = (1, heads, grid.num_tokens, width)
    query, key, value = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    dense = dense_ways(query, key, value)
    rows: list[dict[str, Any]] = []
    for pattern in patterns(grid, TILES[device]):
        tiles: Any = [pattern.order(grid).arrange(x, 2) for x in (query, key, value)]
        ways = dict(dense)
        for name in arguments.backends:
            for order, tensors in (("raster", (query, key, value)), ("tile", tiles)):

                def way(
                    name: str = name, order: str = order, tensors: Any = tensors, p: SlidingTile = pattern
                ) -> Tensor:
                    return sparse_attention(*tensors, pattern=p, grid=grid, backend=name, order=order)

                layout = pattern.plan(grid, heads)
                if BACKENDS[name].missing(layout, query) is None and runs(way):
                    ways[f"{name}, {order}"] = way
        turns = [{name: seconds(way, device) for name, way in ways.items()} for _ in range(arguments.repeats)]
        times = {name: statistics.median(turn[name] for turn in turns) for name in ways}
        best = min(dense, key=lambda name: times[name])
        density = pattern.densities(grid)[0].tile_density
        row = {
            "grid": str(grid),
            "tokens": grid.num_tokens,
            "dtype": str(dtype).removeprefix("torch."),
            "density": density,
        }
        row |= {"window": "x".join(map(str, pattern.windows[0])), "dense": best, "dense_seconds": times[best]}
        for name in ways:
            if name not in dense:
                ratios = [turn[best] * density / turn[name] for turn in turns]
                row[name] = {"seconds": times[name], "efficiency": statistics.median(ratios)}
        rows.append(row)
        print_row(row, arguments.backends)
    return rows


def print_head(backends: list[str]) -> None:
    """The table's head, Markdown."""
    heads = [
        "tokens",
        "type",
        "window",
        "density",
        "best dense",
        *(f"{n}, {o}" for n in backends for o in ("raster", "tile")),
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")


def print_row(row: dict[str, Any], backends: list[str]) -> None:
    """A row: seconds and efficiency of every backend."""
    cells = [f"{row['tokens']:,}", row["dtype"], row["window"], f"{row['density']:.3f}"]
    cells.append(f"{row['dense']} {row['dense_seconds']:.4f} s")
    for name in (f"{n}, {o}" for n in backends for o in ("raster", "tile")):
        figure = row.get(name)
        cells.append("" if figure is None else f"{figure['seconds']:.4f} s, **{figure['efficiency']:.2f}**")
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", nargs="+", type=parse_grid, help="tokens along t, h and w")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--backends", nargs="+", default=["gather", "flex"], choices=list(BACKENDS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads (all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    heads, width = HEADS[arguments.device]
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {heads} heads of {width}\n")
    print_head(arguments.backends)
    rows: list[dict[str, Any]] = []
    for grid in arguments.grid or map(parse_grid, GRIDS[arguments.device]):
        for dtype in arguments.dtype:
            rows += measure(grid, getattr(torch, dtype), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
