"""VMAF against the program that it comes from, called in another way."""

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch import Tensor

from kinema.errors import KinemaError
from kinema.eval.frames.pixels import as_float
from kinema.eval.frames.vmaf import vmaf

SIZE, RATE, FRAMES = (240, 320), 25, 6
PICTURE = f"testsrc=size={SIZE[1]}x{SIZE[0]}:rate={RATE}"


def ffmpeg(*arguments: str, folder: Path) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout


def picture(folder: Path, filters: str = "null") -> Tensor:
    """ffmpeg's test picture as a clip `1 3 t h w`."""
    source = ["-f", "lavfi", "-i", f"{PICTURE},format=rgb24,{filters}", "-frames:v", str(FRAMES)]
    data = ffmpeg(*source, "-f", "rawvideo", "-pix_fmt", "rgb24", "-", folder=folder)
    frames = np.frombuffer(data, np.uint8).reshape(FRAMES, *SIZE, 3)
    return torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None]


def test_equal_clips_and_a_blurred_one(tmp_path: Path):
    clip = picture(tmp_path)
    assert float(vmaf(clip, clip).mean()) == pytest.approx(97.9, abs=0.3)
    # ffmpeg's own filter graph, without a pipe and without our order of the two clips.
    luma = "scale=out_color_matrix=bt601:out_range=limited,format=yuv444p"
    graph = (  # as long as the clip: a frame's motion depends on the frame after it
        f"{PICTURE}:duration={FRAMES / RATE},format=rgb24,split[a][b];[b]gblur=1.5,{luma}[clip];[a]{luma}[reference];"
        "[clip][reference]libvmaf=log_fmt=json:log_path=log.json"
    )
    ffmpeg("-filter_complex", graph, "-f", "null", "-", folder=tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    wanted = [frame["metrics"]["vmaf"] for frame in log["frames"]]
    found = vmaf(clip, picture(tmp_path, "gblur=1.5"))
    assert found.shape == (1, FRAMES)
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-3)
    assert float(found.mean()) == pytest.approx(log["pooled_metrics"]["vmaf"]["mean"], abs=1e-3)
    assert float(found.mean()) == pytest.approx(49, abs=1.5)


def test_odd_sizes_floats_and_batches():
    clips = torch.randint(0, 256, (2, 3, 3, 33, 47), dtype=torch.uint8)
    found = vmaf(clips, clips.flip(0))
    assert found.shape == (2, 3)
    assert torch.equal(found[1:], vmaf(clips[1:], clips[:1]))
    assert torch.equal(found, vmaf(as_float(clips), as_float(clips.flip(0))))
    assert float(found.mean()) < float(vmaf(clips, clips).mean())


def test_bad_input(monkeypatch: pytest.MonkeyPatch):
    small = torch.zeros(1, 3, 2, 31, 64)
    with pytest.raises(KinemaError, match=r"of 31x64 pixels\) must be at least 32 pixels high and wide for VMAF"):
        vmaf(small, small)
    clip = torch.zeros(1, 3, 2, 32, 32)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "false")
    with pytest.raises(KinemaError, match="must have an ffmpeg with libvmaf, which says: no message"):
        vmaf(clip, clip)


@pytest.mark.slow
def test_published_values(tmp_path: Path):
    """98.506 and 48.963 are ffmpeg's own of `testsrc`, one second of 10 frames, blurred as RGB, and so are ours."""
    source = "testsrc=size=320x240:rate=10:duration=1,format=gbrp"

    def published(filters: str) -> float:
        luma = "format=yuv420p"
        graph = (
            f"{source},split[a][b];[b]{filters},{luma}[clip];[a]{luma}[reference];"
            "[clip][reference]libvmaf=log_fmt=json:log_path=log.json"
        )
        ffmpeg("-filter_complex", graph, "-f", "null", "-", folder=tmp_path)
        return json.loads((tmp_path / "log.json").read_text())["pooled_metrics"]["vmaf"]["mean"]

    def ours(filters: str) -> float:
        command = ["-f", "lavfi", "-i", f"{source},{filters}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        frames = np.frombuffer(ffmpeg(*command, folder=tmp_path), np.uint8).reshape(-1, 240, 320, 3)
        clips.append(torch.from_numpy(frames.copy()).permute(3, 0, 1, 2)[None])
        return float(vmaf(clips[0], clips[-1]).mean())

    clips: list[Tensor] = []
    for filters, wanted in (("null", 98.506), ("gblur=1.5", 48.963)):
        assert published(filters) == pytest.approx(wanted, abs=1e-3)
        assert ours(filters) == pytest.approx(wanted, abs=2e-3)
