"""Reconstruction of natural clips: the tokenizer against the best linear code of the same size.

    python benchmarks/reconstruction.py FOLDER [--tokenizer DIR] [--hold-out PREFIX ...] [--json FILE]
    python benchmarks/reconstruction.py FOLDER --picture docs/assets/reconstruction.png [--picture-of FILE ...]

The linear code is a KLT (PCA) of 4×8×8×3 pixel blocks to as many numbers as the tokenizer has latent channels, fitted
on the clips that are not held out: what the tokenizer was trained on. Both are measured on the held-out sources. The
second call draws the README's picture: a frame of each of some files beside what the shipped tokenizers make of it.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.eval.frames.psnr import clip_psnr
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.training.config import VALIDATION_PREFIXES, parse_shape
from kinema.training.data.clips import centre_clips
from kinema.training.data.listing import list_videos
from kinema.video import contact_sheet, to_uint8, write_image

SHIPPED = ("kl-4x8x8-c16", "fsq-4x8x8-32768")
"""General tokenizers that kinema ships."""


def linear_code(tokenizer: CausalVideoTokenizer, clips: list[Tensor]) -> CausalVideoTokenizer:
    """An untrained tokenizer of the same layout: its linear path alone, set to the KLT of the clips."""
    layout = {name: tokenizer.config[name] for name in ("bottleneck", "ratios")}
    stages = len(layout["ratios"]) + 1
    widths, blocks = (8,) * stages, (0,) * stages
    code = CausalVideoTokenizer(
        **layout, encoder_widths=widths, encoder_blocks=blocks, decoder_widths=widths, decoder_blocks=blocks
    )
    code.init_linear(clips)
    return code.eval()


PICTURE_OF = ("bunny_a.mp4", "splide_1.mp4", "pedestrians_b.mp4")
"""Files in the README's picture."""

PICTURE_SHAPE = (9, 256, 256)


@torch.no_grad()
def draw(folder: Path, names: Sequence[str], output: Path) -> None:
    """The middle frame of each file, then what each shipped tokenizer makes of it, with PSNR over the clip."""
    tokenizers = {name: load_tokenizer(name) for name in SHIPPED}
    rows: list[Tensor] = []
    labels: list[str] = []
    for name in names:
        clip = centre_clips(folder / name, 1, PICTURE_SHAPE)
        made = {kind: tokenizer.reconstruct(clip) for kind, tokenizer in tokenizers.items()}
        middle = PICTURE_SHAPE[0] // 2
        rows.append(torch.stack([to_uint8(each[0])[middle] for each in (clip, *made.values())]))
        scores = [f"{kind} {clip_psnr(clip, each).item():.1f} dB" for kind, each in made.items()]
        labels.append(" | ".join([f"{Path(name).stem}, input", *scores]))
    write_image(output, contact_sheet(rows, labels, columns=1 + len(tokenizers)), overwrite=True)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of video files")
    parser.add_argument("--tokenizer", default="kl-4x8x8-c16", help="folder, or name of an embedded tokenizer")
    parser.add_argument("--hold-out", nargs="+", default=list(VALIDATION_PREFIXES), help="prefixes of held-out files")
    parser.add_argument("--shape", default="17x128x128", help="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--clips", type=int, default=4, help="clips a file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--picture", type=Path, help="draw the README's picture into this file instead")
    parser.add_argument("--picture-of", nargs="+", default=list(PICTURE_OF), help="its files (%(default)s)")
    arguments = parser.parse_args()
    if arguments.picture:
        draw(arguments.folder, arguments.picture_of, arguments.picture)
        return

    tokenizer = load_tokenizer(arguments.tokenizer)
    if not isinstance(tokenizer, CausalVideoTokenizer):
        parser.error(f"--tokenizer (={arguments.tokenizer}) must be a convolutional tokenizer of kinema")
    shape = parse_shape(arguments.shape)
    held_out = tuple(arguments.hold_out)
    files = list_videos(arguments.folder)
    if not 0 < sum(f.name.startswith(held_out) for f in files) < len(files):
        parser.error(f"--hold-out (={' '.join(held_out)}) must leave some files of {arguments.folder} out, and not all")
    clips = {f.name: centre_clips(f, arguments.clips, shape) for f in files}
    code = linear_code(tokenizer, [c for name, c in clips.items() if not name.startswith(held_out)])

    rows: dict[str, tuple[float, float]] = {}
    for name in sorted(n for n in clips if n.startswith(held_out)):
        codes = (tokenizer, code)
        values = [torch.cat([clip_psnr(c[None], m.reconstruct(c[None])) for c in clips[name]]) for m in codes]
        rows[name] = values[0].mean().item(), values[1].mean().item()
    mean = [sum(row[i] for row in rows.values()) / len(rows) for i in (0, 1)]

    print(
        f"PSNR in dB, {arguments.clips} clips {arguments.shape} a file, {platform.machine()}, torch {torch.__version__}"
    )
    print(f"{'held-out file':24}{'kinema':>9}{'KLT':>9}{'gain':>9}")
    for name, (ours, linear) in [*rows.items(), ("mean", (mean[0], mean[1]))]:
        print(f"{name:24}{ours:9.2f}{linear:9.2f}{ours - linear:+9.2f}")
    if arguments.json:
        figures = {"psnr": mean[0], "psnr_klt": mean[1], "gain": mean[0] - mean[1], "files": rows}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
