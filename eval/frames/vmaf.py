"""VMAF (Netflix, `vmaf_v0.6.1`), computed by the libvmaf inside the ffmpeg that the package imageio-ffmpeg brings."""

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.frames.interface import FrameMeasure
from kinema.eval.frames.pixels import Clip, as_pair, check_side, to_levels

MIN_SIDE = 32
"""Pixels: libvmaf halves the frame four times, and its windows must fit."""

_MODEL = "version=vmaf_v0.6.1"


def vmaf(reference: Clip, clip: Clip) -> Float[Tensor, "b t"]:
    """VMAF of every frame, 0 to 100; a clip's is the mean of its frames', libvmaf's own default.

    The model was fitted to people's opinions of 1080p video; of small frames it tells the better from the worse, no
    more. It looks at luma alone (BT.601, limited range: what ffmpeg makes of RGB frames), and at what moves: the first
    frame of a clip counts as still, and equal frames get less than 100 where little moves.

    Args:
        reference: float in [-1, 1] (rounded to levels), or uint8; three colours.
        clip: The same shape.

    Raises:
        KinemaError: Shapes differ, values are out of range, frames are smaller than 32 pixels, or the ffmpeg of
            imageio-ffmpeg is missing or has no libvmaf.
    """
    a, b = (rearrange(to_levels(x).cpu(), "b c t h w -> b t h w c") for x in as_pair(reference, clip))
    check_side(clip, MIN_SIDE, "VMAF")
    values = [_vmaf_of_clip(x, y) for x, y in zip(a, b, strict=True)]
    return torch.tensor(values, device=clip.device)


def _vmaf_of_clip(reference: UInt8[Tensor, "t h w 3"], clip: UInt8[Tensor, "t h w 3"]) -> list[float]:
    """One number a frame. The two clips go through one pipe, one above the other, and ffmpeg cuts them apart."""
    num_frames, height, width, _ = clip.shape
    stacked = torch.cat([reference, clip], dim=1).contiguous()
    # 4:4:4 takes odd sizes; libvmaf reads luma alone, so its value does not depend on how colours are sampled.
    luma = "scale=out_color_matrix=bt601:out_range=limited,format=yuv444p"
    graph = (
        f"[0:v]split[top][bottom];[top]crop={width}:{height}:0:0,{luma}[reference];"
        f"[bottom]crop={width}:{height}:0:{height},{luma}[clip];"
        f"[clip][reference]libvmaf=model={_MODEL}:log_fmt=json:log_path=vmaf.json:n_threads=1"
    )
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}", "-r", "25", "-i", "pipe:0"]
    with tempfile.TemporaryDirectory() as folder:  # the log's path is relative: drive letters end a filter's option
        done = subprocess.run(
            [_ffmpeg(), "-hide_banner", "-nostdin", "-v", "error", *source, "-lavfi", graph, "-f", "null", "-"],
            input=stacked.numpy().tobytes(),
            cwd=folder,
            capture_output=True,
            check=False,
        )
        log = Path(folder, "vmaf.json")
        if done.returncode or not log.exists():
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise KinemaError(f"`metrics` (='vmaf') must have an ffmpeg with libvmaf, which says: {lines[-1]}")
        frames = json.loads(log.read_text())["frames"]
    assert len(frames) == num_frames
    return [float(frame["metrics"]["vmaf"]) for frame in frames]


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        # It looks for the program inside its own package first: the one that is known to have libvmaf.
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise KinemaError(
            "`metrics` (='vmaf') must have the ffmpeg of imageio-ffmpeg: `pip install imageio-ffmpeg`"
        ) from error


def make(device: torch.device, weights: Path | None = None) -> FrameMeasure:
    """Returns `vmaf`, which runs on the CPU: `device` is not used."""
    return vmaf
