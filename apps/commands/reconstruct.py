"""Take a clip through a tokenizer and back, to see what the tokenizer keeps.

PSNR and SSIM compare the frames that come back with those of the input, before the output file is encoded.
"""

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinema import __version__
from kinema.errors import KinemaError
from kinema.files import check_input_file

if TYPE_CHECKING:
    from torch import Tensor

    from kinema.tokenizers.base import LatentTokenizer
    from kinema.video import Sound, VideoReader, VideoWriter

HELP = "a clip through a tokenizer and back, and how well it survives"

WINDOW_PIXELS = 17 * 256 * 256 * 4
"""Pixels (frames x height x width) that a tokenizer gets at once, so that memory does not grow with the clip."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("input", metavar="IN", help="a video file, of any length and size")
    parser.add_argument("output", metavar="OUT", help="the file to make: .mp4, .mkv or .mov")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="an embedded one (kl-4x8x8-c16, fsq-4x8x8-32768, toybox/vae), a folder of kinema's or diffusers', a "
        "VidTok checkpoint or a hub id; else kl-4x8x8-c16",
    )
    parser.add_argument("--lossless", action="store_true", help="a file with exactly the pixels that came back")
    parser.add_argument("--no-audio", action="store_true", help="leave the sound track out")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to a file")
    parser.add_argument("--window-frames", type=int, metavar="N", help="frames at once; else as many as fit in memory")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; else CUDA where there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


@dataclass
class Scores:
    """Sums over the frames so far."""

    num_frames: int = 0
    num_values: int = 0
    squared_error: float = 0.0
    ssim: float = 0.0
    ssim_defined: bool = True
    latent_values: int = 0

    def add(self, wanted: "Tensor", got: "Tensor") -> None:
        """Count frames, uint8 `(t, h, w, 3)`."""
        from kinema.eval.frames.ssim import MIN_SIDE, ssim

        self.num_frames += len(wanted)
        self.num_values += wanted.numel()
        self.squared_error += float(((wanted.float() - got.float()) ** 2).double().sum())
        self.ssim_defined = min(wanted.shape[1:3]) >= MIN_SIDE
        if self.ssim_defined:
            a, b = (frames.permute(3, 0, 1, 2)[None] for frames in (wanted, got))
            self.ssim += float(ssim(a, b).double().sum())

    def summary(self) -> dict[str, Any]:
        """PSNR in dB of the whole clip (None: exact), mean SSIM of the frames (None: too small for it), counts."""
        import torch

        from kinema.eval.frames.psnr import decibels

        error = torch.tensor(self.squared_error / self.num_values, dtype=torch.float64)
        return {
            "psnr": float(decibels(error, peak=255.0)) if error else None,
            "ssim": self.ssim / self.num_frames if self.ssim_defined else None,
            "num_frames": self.num_frames,
            "video_values": self.num_values,
            "latent_values": self.latent_values,
        }


def run(arguments: argparse.Namespace) -> None:
    """Check, load, reconstruct window by window, report."""
    check_input_file(arguments.input, "input")
    if arguments.window_frames is not None and arguments.window_frames < 1:
        raise KinemaError(f"`--window-frames` (={arguments.window_frames}) must be >= 1")

    from kinema.files import atomic_path, check_other_file, check_output_file
    from kinema.video import check_output_video

    check_output_video(arguments.output, overwrite=arguments.overwrite)
    if Path(arguments.output).exists() and Path(arguments.output).samefile(arguments.input):
        raise KinemaError(f"`output` (={arguments.output!r}) must be another file than the input")
    if arguments.json is not None:
        check_output_file(arguments.json, overwrite=arguments.overwrite, name="--json")
        check_other_file(arguments.json, "--json", {"input": arguments.input, "output": arguments.output})

    from kinema.apps.loading import load_tokenizer
    from kinema.apps.memory import check_memory
    from kinema.video import Sound, VideoReader, read_video

    # A file that cannot be decoded is known before the model is loaded.
    height, width = read_video(arguments.input, max_frames=1, name="input").frames.shape[1:3]
    tokenizer = load_tokenizer(arguments.tokenizer, device=arguments.device)
    check_memory(tokenizer, height, width, f"`input` (={arguments.input!r})")
    started = time.perf_counter()
    scores = Scores()
    with VideoReader(arguments.input, name="input") as reader, ExitStack() as stack:
        sound = None
        if not arguments.no_audio:
            sound = stack.enter_context(Sound(arguments.input, origin=reader.timing.origin, name="input"))
        out = stack.enter_context(_writer(reader, sound, arguments))
        for frames, times in reconstruct_frames(tokenizer, reader, arguments.window_frames, scores):
            out.write(frames, [out.start + time for time in times] if reader.is_variable else None)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{scores.num_frames} frames")
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    summary = scores.summary() | {"height": height, "width": width, "fps": reader.fps}
    summary |= {"variable_rate": reader.is_variable, "sound": sound.kind if sound is not None else None}
    summary["protocol"] = {
        "tokenizer": arguments.tokenizer or "kl-4x8x8-c16 (embedded)",
        "kinema": __version__,
        "psnr": "from the mean squared error of the whole clip",
        "ssim": "mean over frames",
    }
    summary["input_bytes"] = Path(arguments.input).stat().st_size
    summary["output_bytes"] = Path(arguments.output).stat().st_size
    if arguments.json is not None:
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n")
    _print(arguments.output, summary, time.perf_counter() - started)


def _writer(reader: "VideoReader", sound: "Sound | None", arguments: argparse.Namespace) -> "VideoWriter":
    """A writer of the input's rate, or of frames with times of their own where it has no rate."""
    from kinema.video import VideoWriter
    from kinema.video.timing import LONGEST_LEAD

    timing = reader.timing
    # Without sound, nothing comes before the first frame.
    start = timing.start if timing.start <= LONGEST_LEAD or (sound is not None and sound.exists) else 0.0
    return VideoWriter(
        arguments.output,
        min(max(timing.fps, 0.001), 1000.0) if timing.is_variable else timing.fps,
        lossless=arguments.lossless,
        overwrite=arguments.overwrite,
        start=start,
        end=start + timing.duration,
        sound=sound,
    )


def reconstruct_frames(
    tokenizer: Any, reader: "VideoReader", window_frames: int | None, scores: Scores
) -> "Iterator[tuple[Tensor, list[float]]]":
    """The frames of a file through the tokenizer and back, and their times in seconds since the first frame."""
    times: deque[float] = deque()  # of frames that have gone in and not yet come out
    pieces = windows(reader, window_frames, tokenizer.temporal_compression_ratio, times)
    for frames in reconstruct_pieces(tokenizer, pieces, scores):
        yield frames, [times.popleft() for _ in range(len(frames))]


def windows(
    reader: "VideoReader", window_frames: int | None, temporal_ratio: int, times: deque[float] | None = None
) -> "Iterator[Tensor]":
    """The frames of a file in pieces of `window_frames`, or of what `WINDOW_PIXELS` allows, in whole latent steps.

    Their times, in seconds since the first frame, are appended to `times`.
    """
    import torch

    pending: list[Tensor] = []
    size = window_frames
    for moment, frame in reader.timed():
        if times is not None:
            times.append(moment)
        if size is None:
            fitting = WINDOW_PIXELS // (frame.shape[0] * frame.shape[1])
            size = max(1 + (fitting - 1) // temporal_ratio * temporal_ratio, 1 + 4 * temporal_ratio)
        pending.append(frame)
        if len(pending) == size:
            yield torch.stack(pending)
            pending = []
    if pending:
        yield torch.stack(pending)


def reconstruct_pieces(tokenizer: Any, pieces: "Iterator[Tensor]", scores: Scores) -> "Iterator[Tensor]":
    """Frames, uint8 `(t, h, w, 3)`, through the tokenizer and back; counts them in `scores`.

    kinema's tokenizers take the pieces as one stream: the result is that of the whole clip. For others each piece is
    a clip of its own.
    """
    from kinema.tokenizers.base import LatentTokenizer

    if isinstance(tokenizer, LatentTokenizer):
        yield from _as_stream(tokenizer, pieces, scores)
    else:
        for frames in pieces:
            yield _as_clip(tokenizer, frames, scores)


def _as_stream(tokenizer: "LatentTokenizer", pieces: "Iterator[Tensor]", scores: Scores) -> "Iterator[Tensor]":
    import torch

    from kinema.video import to_float, to_uint8

    first = next(pieces)
    height, width = first.shape[1:3]
    waiting: list[Tensor] = []  # frames that have gone in and not yet come out

    def inputs() -> "Iterator[Tensor]":
        for frames in chain([first], pieces):
            waiting.append(frames)
            yield to_float(frames).to(tokenizer.device)

    def latents() -> "Iterator[Tensor]":
        for part in tokenizer.encode_stream(inputs()):
            scores.latent_values += part.numel()
            yield part

    for video in tokenizer.decode_stream(latents(), height=height, width=width):
        wanted = torch.cat(waiting)
        result = to_uint8(video[0, :, : len(wanted)].cpu())  # the last latent step may have been filled up
        wanted, waiting[:] = wanted[: len(result)], [wanted[len(result) :]]
        scores.add(wanted, result)
        yield result


def _as_clip(tokenizer: Any, frames: "Tensor", scores: Scores) -> "Tensor":
    import torch

    from kinema.video import to_float, to_uint8

    with torch.inference_mode():
        code = tokenizer.encode(to_float(frames).to(tokenizer.device))
        video = tokenizer.decode(code.latents, code.num_frames, code.height, code.width).sample
    result = to_uint8(video[0].cpu())
    scores.latent_values += code.latents.numel()
    scores.add(frames, result)
    return result


def _print(output: str, summary: dict[str, Any], seconds: float) -> None:
    psnr = "exact" if summary["psnr"] is None else f"PSNR {summary['psnr']:.2f} dB"
    ssim = "" if summary["ssim"] is None else f", SSIM {summary['ssim']:.4f}"
    ratio = summary["video_values"] / summary["latent_values"]
    rate = f"{summary['fps']:g} fps" + (" (variable)" if summary["variable_rate"] else "")
    print(
        f"{output}  {summary['num_frames']} frames of {summary['height']}x{summary['width']} at {rate}"
        f" in {seconds:.1f} s\n{psnr}{ssim}; {summary['latent_values']:,} latent values, 1/{ratio:.1f} of the video's;"
        f" files: {summary['input_bytes']:,} bytes in, {summary['output_bytes']:,} bytes out"
    )
