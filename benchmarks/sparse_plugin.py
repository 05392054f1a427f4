"""A denoising step of a published architecture with sparse attention put in by the plugin, against the stock one.

    python benchmarks/sparse_plugin.py [--grid TxHxW] [--layers N] [--patterns TEXT ...] [--device cuda] [--json FILE]

The transformer is diffusers' Wan in the sizes of 1.3B, with random weights; blocks are alike, so `--layers` takes fewer
of them where all would take too long, and each figure is that of those layers. On CUDA the default is 480p, 81 frames
(latents 21x60x104, 32,760 tokens, bfloat16) and all 30 layers; on a CPU 81 frames of 320x576 (15,120 tokens, float32)
and two layers. Stock and sparse steps take turns, and the median of ratios counts. "Expected" is Amdahl's gain from
the pattern's density and the measured share of time that dense attention takes: a backend of full efficiency reaches
it.
"""

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from sparse_attention import seconds
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kinema.generation.attention import (
    Grid,
    apply_sparse_attention,
    parse_patterns,
    remove_sparse_attention,
)
from kinema.generation.attention.architectures import find_architecture
from kinema.generation.attention.report import attention_report
from kinema.generation.attention.text import parse_grid

MODEL = "wan-1.3b"
GRIDS = {"cpu": "21x20x36", "cuda": "21x30x52"}
"""Tokens of 81 frames of 320x576 and of 480x832."""

PATTERNS = {
    "cpu": ("sliding-tile:3x3x1,tile=3x5x12", "sliding-tile:3x3x3,tile=3x5x12", "radial:0.2"),
    "cuda": ("sliding-tile:3x3x3,tile=3x6x13", "radial:0.2"),
}
LAYERS = {"cpu": 2, "cuda": 30}


def make_transformer(num_layers: int, device: str) -> Any:
    """Wan 1.3B, or some of its layers, with random weights."""
    sizes = find_architecture(MODEL)
    torch.manual_seed(0)
    model: Any = WanTransformer3DModel(
        num_attention_heads=sizes.num_heads,
        attention_head_dim=sizes.dim // sizes.num_heads,
        ffn_dim=sizes.ffn_dim,
        num_layers=num_layers,
    )
    model = model.to(device, torch.bfloat16) if device == "cuda" else model
    return model.eval().requires_grad_(False)


def make_inputs(grid: Grid, model: Any) -> dict[str, Tensor]:
    """Noise and a prompt of full length, of the sizes that the pipeline gives."""
    generator = torch.Generator().manual_seed(0)
    t, h, w = (size * patch for size, patch in zip(grid.sizes, model.config.patch_size, strict=True))
    shapes = {
        "hidden_states": (1, model.config.in_channels, t, h, w),
        "encoder_hidden_states": (1, find_architecture(MODEL).text_tokens, model.config.text_dim),
    }
    inputs = {
        name: torch.randn(shape, generator=generator).to(model.device, model.dtype) for name, shape in shapes.items()
    }
    return inputs | {"timestep": torch.tensor([500], device=model.device)}


def attention_seconds(grid: Grid, model: Any, device: str) -> float:
    """Dense attention of all layers, alone."""
    heads, width = model.config.num_attention_heads, model.config.attention_head_dim
    query, key, value = torch.randn(3, 1, heads, grid.num_tokens, width, device=device, dtype=model.dtype)
    once = [seconds(lambda: scaled_dot_product_attention(query, key, value), device) for _ in range(3)]
    return min(once) * model.config.num_layers


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the stock transformer, and one for each pattern."""
    device, grid = arguments.device, arguments.grid
    model = make_transformer(arguments.layers, device)
    inputs = make_inputs(grid, model)

    def step() -> Tensor:
        return model(**inputs, return_dict=False)[0]

    def use(pattern: str | None) -> None:
        remove_sparse_attention(model)
        if pattern is not None:
            apply_sparse_attention(model, pattern, backend=arguments.backend)

    ways = [None, *arguments.patterns]
    outputs, times = {}, {way: [] for way in ways}
    for way in ways:  # the first call of each compiles, plans, and gives what is compared
        use(way)
        outputs[way] = step().float()
    for _ in range(arguments.repeats):
        for way in ways:
            use(way)
            times[way].append(seconds(step, device))
    share = min(attention_seconds(grid, model, device) / statistics.median(times[None]), 1.0)
    rows: list[dict[str, Any]] = [{"attention": "stock", "seconds": statistics.median(times[None]), "share": share}]
    for way in arguments.patterns:
        report = attention_report(parse_patterns(way), grid, MODEL)
        difference = (outputs[way] - outputs[None]).square().mean().sqrt() / outputs[None].square().mean().sqrt()
        rows.append(
            {
                "attention": way,
                "density": report.tile_density,
                "seconds": statistics.median(times[way]),
                "speedup": statistics.median(a / b for a, b in zip(times[None], times[way], strict=True)),
                "expected": 1 / (1 - share + share * report.tile_density),
                "difference": difference.item(),
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown."""
    print(
        "| attention | density | seconds a step | times faster | expected | relative difference |\n" + "|---" * 6 + "|"
    )
    formats = {"density": ".3f", "seconds": ".2f", "speedup": ".2f", "expected": ".2f", "difference": ".3f"}
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, form in formats.items()]
        print("| " + " | ".join((row["attention"], *cells)) + " |")
    print(f"\nDense attention takes {rows[0]['share']:.0%} of the stock step.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=parse_grid, help="tokens along t, h and w")
    parser.add_argument("--layers", type=int, help="blocks")
    parser.add_argument("--patterns", nargs="+", help="as `kinema attention patterns` lists them")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    arguments.grid = arguments.grid or parse_grid(GRIDS[arguments.device])
    arguments.layers = arguments.layers or LAYERS[arguments.device]
    arguments.patterns = arguments.patterns or list(PATTERNS[arguments.device])
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    print(
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}; Wan 1.3B, {arguments.layers} layers,"
        f" grid {arguments.grid}, {arguments.grid.num_tokens:,} tokens\n"
    )
    rows = measure(arguments)
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
