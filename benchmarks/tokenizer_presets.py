"""Parameters and GFLOP of every tokenizer preset, as the table of docs/tokenizers.md.

    python benchmarks/tokenizer_presets.py [--rows] [--update docs/tokenizers.md]

Networks are built on the meta device, where nothing is computed. GFLOP are those of convolutions and matrix products,
2 per multiply-add, for a clip of 17×256×256, as `kinema.flops.FlopCounter` counts them. `--rows` prints what
`presets.py` and its like state, `--update` renews the table in a file, between its two marks.
"""

import argparse
from math import log2
from pathlib import Path

import torch

from kinema.files import atomic_path
from kinema.flops import FlopCounter
from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.presets import Cost
from kinema.tokenizers.quantizers import DiscreteBottleneck
from kinema.tokenizers.registry import PRESETS, find_preset, make_tokenizer

CLIP = (1, 3, 17, 256, 256)
BEGIN, END = "<!-- presets: begin -->", "<!-- presets: end -->"


def build(name: str) -> LatentTokenizer:
    """A preset on the meta device."""
    with torch.device("meta"):
        return make_tokenizer(name).eval()


@torch.no_grad()
def measure(model: LatentTokenizer) -> Cost:
    """Counts a model on the meta device; to three significant digits."""
    video = torch.empty(CLIP, device="meta")
    with FlopCounter() as encoding:
        latents = model.quantizer(model._hidden(video)).mode  # without the checks, which need numbers
    with FlopCounter() as decoding:
        assert model._decoded(latents, *CLIP[2:]).shape == CLIP
    counts = (
        sum(p.numel() for p in model.parameters()) / 1e6,
        encoding.get_total_flops() / 1e9,
        decoding.get_total_flops() / 1e9,
    )
    return Cost(*(float(f"{count:.3g}") for count in counts))


def information(model: LatentTokenizer) -> tuple[str, str]:
    """What the latents of one pixel hold: numbers per number of the video, and bits per pixel where they are codes."""
    # A holistic tokenizer's cell is its window, with many tokens.
    pixels = model.temporal_compression_ratio * model.spatial_compression_ratio**2 / model.config.get("num_tokens", 1)
    if isinstance(model.quantizer, DiscreteBottleneck):
        return "", f"{log2(model.quantizer.codebook_size) / pixels:.3g}"
    return f"1 : {3 * pixels / model.latent_channels:.3g}", ""


def table() -> str:
    """All presets as Markdown, with the costs that the presets state."""
    lines = [
        "| Preset | Ratio (time, height, width) | Bottleneck | Latent values : video values | Bits per pixel "
        "| Parameters (M) | GFLOP encode | GFLOP decode |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for name in PRESETS:
        model, cost = build(name), find_preset(name).cost
        q = model.quantizer
        ct, cs = model.temporal_compression_ratio, model.spatial_compression_ratio
        ratio = f"{ct}, {cs}, {cs}"
        what = f"{type(q).__name__}, {model.latent_channels} channels"
        if isinstance(q, DiscreteBottleneck):
            what += f", {q.codebook_size:,} codes"
        if "num_tokens" in model.config:
            what += f", {model.config['num_tokens']} tokens"
        numbers, bits = information(model)
        figures = f"{cost.parameters:g} | {cost.encode:g} | {cost.decode:g}"
        lines.append(f"| `{name}` | {ratio} | {what} | {numbers} | {bits} | {figures} |")
    return "\n".join(lines)


def rows() -> str:
    """The cost column of the presets, measured."""
    measured = {name: measure(build(name)) for name in PRESETS}
    return "\n".join(f"{n}: Cost({s.parameters:g}, {s.encode:g}, {s.decode:g})" for n, s in measured.items())


def update(path: Path) -> None:
    """Renews the table between the marks of a file."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="print what presets.py is to state")
    parser.add_argument("--update", type=Path, help="file whose table is renewed")
    arguments = parser.parse_args()
    if arguments.update:
        update(arguments.update)
    else:
        print(rows() if arguments.rows else table())


if __name__ == "__main__":
    main()
