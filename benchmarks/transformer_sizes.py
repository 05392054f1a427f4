"""Parameters, tokens, arithmetic and memory of the transformer's presets, as the table of docs/training.md.

    python benchmarks/transformer_sizes.py [--clip 49x480x832] [--ratio 4x8x8] [--update docs/training.md]

Models are built on the meta device, where nothing is computed. TFLOP are those of one forward pass of one clip, 2 per
multiply-add, as `kinema.flops.FlopCounter` counts them; a training step takes three times that. Memory is what training
holds for the weights: float32 weights, gradients, averaged weights, and the optimizer's state (Muon one number a weight
of the blocks, AdamW two), without activations.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import torch

from kinema.files import atomic_path
from kinema.flops import FlopCounter
from kinema.generation.transformer.model import VideoTransformer
from kinema.generation.transformer.presets import PRESETS
from kinema.tokenizers.interface import latent_shape
from kinema.training.config import TrainingConfig, parse_shape
from kinema.training.optimization import make_optimizer

BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"
TEXT = (64, 4096)
"""Tokens of a prompt, and their width: T5-XXL's."""


def build(name: str) -> Any:
    """A preset on the meta device."""
    with torch.device("meta"):
        return VideoTransformer.from_preset(name, text_dim=TEXT[1])


def bytes_in_training(model: Any, optimizer: Literal["muon", "adamw"]) -> int:
    """Of weights, gradients, average and the optimizer's state, in float32."""
    made = make_optimizer(model, TrainingConfig(preset="x", optimizer=optimizer))
    numbers = 0
    for group in made.param_groups:
        numbers += (4 if group.get("muon") else 5) * sum(p.numel() for p in group["params"])
    return 4 * numbers


def row(name: str, clip: tuple[int, int, int], ratio: tuple[int, int, int]) -> str:
    """A line of the table."""
    model = build(name)
    t, h, w = latent_shape(*clip, ratio[0], ratio[1])
    patch = model.patch_size
    t, h, w = (-(-size // side) * side for size, side in zip((t, h, w), patch, strict=True))
    latents = torch.empty(1, model.config.in_channels, t, h, w, device="meta")
    with FlopCounter() as counter, torch.no_grad():
        model(latents, torch.empty(1, device="meta"), torch.empty(1, *TEXT, device="meta"))
    tokens = t * h * w // (patch[0] * patch[1] * patch[2])
    parameters = sum(p.numel() for p in model.parameters())
    memory = [bytes_in_training(model, optimizer) / 2**30 for optimizer in ("muon", "adamw")]
    return (
        f"| {name} | {parameters / 1e6:,.4g} M | {tokens:,} | {counter.get_total_flops() / 1e12:.3g} | {memory[0]:.3g} "
        f"| {memory[1]:.3g} |"
    )


def main() -> None:
    """Prints the table, or renews it in a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="49x480x832")
    parser.add_argument("--ratio", default="4x8x8")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["toybox-m", "base", "large", "xlarge"])
    parser.add_argument("--update", type=Path)
    arguments = parser.parse_args()
    clip, ratio = parse_shape(arguments.clip, "--clip"), parse_shape(arguments.ratio, "--ratio")
    lines = [
        f"| preset | parameters | tokens of {arguments.clip} at {arguments.ratio} | TFLOP a forward pass "
        "| GiB with Muon | GiB with AdamW |",
        "|---|---|---|---|---|---|",
        *(row(name, clip, ratio) for name in arguments.presets),
    ]
    if arguments.update is None:
        print("\n".join(lines))
        return
    before, rest = arguments.update.read_text().split(BEGIN)
    with atomic_path(arguments.update) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
