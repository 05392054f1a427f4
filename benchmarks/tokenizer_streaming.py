"""Streaming: memory that does not grow with the clip, and the numbers of the whole clip.

    python benchmarks/tokenizer_streaming.py [--tokenizer NAME ...] [--frames 33 1025] [--size 128] [--json FILE]

Frames come from a generator, pass `encode_stream` and `decode_stream`, and are dropped. The peak is that of the process
above the loaded model, each number of frames in a process of its own. The difference is between the stream and one pass
over the whole clip: of the encoder's output (for discrete bottlenecks that is before the rounding), and of the video
decoded from the same latents.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from kinema.tokenizers.published.loading import load_tokenizer
from kinema.tokenizers.streaming import StreamCache

SHIPPED = ["kl-4x8x8-c16", "fsq-4x8x8-32768", "toybox/vae"]
PROCESS = Path("/proc/self")
# glibc gives freed tensors back at once, so that the peak is what was in use and not what its heap had fallen apart to.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def moving_frames(num_frames: int, size: int, chunk: int) -> Iterator[Tensor]:
    """Coarse noise that moves, `chunk` frames at a time, made when it is asked for."""
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = interpolate(picture, (2 * size, 2 * size), mode="bilinear")[0]
    for start in range(0, num_frames, chunk):
        steps = range(start, min(start + chunk, num_frames))
        views = [picture[:, t % size : t % size + size, 2 * t % size : 2 * t % size + size] for t in steps]
        yield torch.stack(views, dim=1)[None]


def peak_mb() -> float:
    """Peak memory of this process since `forget_peak`, in MB."""
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def forget_peak() -> None:
    """Sets the peak to what is in use now."""
    (PROCESS / "clear_refs").write_text("5")


def measure(tokenizer_name: str, num_frames: int, size: int, chunk: int) -> dict[str, float]:
    """Peak above the loaded model and seconds of one stream through encoder and decoder."""
    tokenizer: Any = load_tokenizer(tokenizer_name, "cpu")
    # One small clip first: libraries set up what they need once.
    for _ in tokenizer.decode_stream(tokenizer.encode_stream(moving_frames(5, 32, 5))):
        pass
    forget_peak()
    loaded, started, count = peak_mb(), time.perf_counter(), 0
    for video in tokenizer.decode_stream(tokenizer.encode_stream(moving_frames(num_frames, size, chunk)), num_frames):
        count += video.shape[2]
    assert count == num_frames
    seconds = time.perf_counter() - started
    return {"frames": num_frames, "above_model_mb": peak_mb() - loaded, "model_mb": loaded, "seconds": seconds}


@torch.no_grad()
def differences(tokenizer_name: str, num_frames: int, size: int, chunk: int) -> dict[str, float]:
    """Largest difference of the stream to one pass over the whole clip, as parts of the largest value."""
    tokenizer: Any = load_tokenizer(tokenizer_name, "cpu")
    clip = torch.cat(list(moving_frames(num_frames, size, chunk)), dim=2)
    whole = tokenizer.encoder(clip)
    streamed = torch.cat(list(tokenizer._hidden_pieces(clip.split(chunk, dim=2), StreamCache())), dim=2)
    encoded = float((streamed - whole).abs().max() / whole.abs().max())
    del whole, streamed
    latents = torch.cat(list(tokenizer.encode_stream(clip.split(chunk, dim=2))), dim=2)
    whole = tokenizer.decoder(latents)
    largest, start = 0.0, 0
    for video in tokenizer.decode_stream(latents.split(3, dim=2)):
        largest = max(largest, float((video - whole[:, :, start : start + video.shape[2]]).abs().max()))
        start += video.shape[2]
    assert start == num_frames
    return {"frames": num_frames, "encoder": encoded, "decoder": largest / float(whole.abs().max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", nargs="*", default=SHIPPED, help="embedded names or folders")
    parser.add_argument("--frames", type=int, nargs="*", default=[33, 1025], help="clips of ct·k + 1 frames")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16, help="frames that the generator gives at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        print(json.dumps(measure(arguments.tokenizer[0], arguments.measure, arguments.size, arguments.chunk)))
        return

    size = f"{arguments.size}x{arguments.size}"
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {size}")
    print("| tokenizer | frames | MB above the model | seconds | frames/s |\n|---|---|---|---|---|")
    figures: dict[str, Any] = {}
    for name in arguments.tokenizer:
        rows: list[dict[str, float]] = []
        for count in sorted(arguments.frames):
            command = [sys.executable, __file__, "--tokenizer", name, "--measure", str(count)]
            for option in ("size", "chunk", "threads"):
                command += [f"--{option}", str(getattr(arguments, option))]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | EXACT_MEMORY)
            rows.append(json.loads(done.stdout))
            row = rows[-1]
            rate = row["frames"] / row["seconds"]
            print(f"| {name} | {count} | {row['above_model_mb']:.1f} | {row['seconds']:.1f} | {rate:.1f} |", flush=True)
        difference = differences(name, max(arguments.frames), arguments.size, arguments.chunk)
        growth = rows[-1]["above_model_mb"] / rows[0]["above_model_mb"]
        print(
            f"\n{name}: memory of {rows[-1]['frames']} frames {growth:.2f}x that of {rows[0]['frames']}; largest "
            f"difference to the whole clip, of the largest value: {difference['encoder']:.1e} in the encoder, "
            f"{difference['decoder']:.1e} in the decoder\n",
            flush=True,
        )
        figures[name] = {"memory": rows, "growth": growth, "difference": difference}
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
