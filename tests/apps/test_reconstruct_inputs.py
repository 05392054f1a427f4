"""`kinema reconstruct` on files as people have them: right, or one line and exit status 2, and nothing left behind."""

import os
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kinema.apps.cli import main
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import read_video
from videos import gray_ramp, make_video


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    CausalVideoTokenizer(**TINY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "height", "width", "options"),
    [
        ("a.mp4", 1, 1, {"pixel_format": "yuv444p"}),
        ("a.mkv", 1, 1, {"codec": "ffv1", "pixel_format": "bgr0"}),
        ("a.avi", 1, 1, {"codec": "rawvideo", "pixel_format": "rgb24", "clock": 24}),
        ("a.webm", 1, 1, {"codec": "libvpx-vp9"}),
        ("b.mp4", 2, 3, {"pixel_format": "yuv444p"}),
        ("c.mp4", 1, 64, {"pixel_format": "yuv444p"}),
    ],
)
def test_tiny_frames(model: Path, tmp_path: Path, name: str, height: int, width: int, options: dict[str, str]):
    path = make_video(tmp_path / name, gray_ramp(3, height, width), **options)  # pyright: ignore[reportArgumentType]
    assert main(["reconstruct", str(path), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]) == 0
    assert read_video(tmp_path / "out.mp4").frames.shape == (3, height, width, 3)


def sound_only(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))


def joined(codec: str, kind: str) -> Callable[[Path], object]:
    """Makes streams of two sizes, one after the other."""

    def make(path: Path) -> None:
        parts = [make_video(path.with_suffix(f".{side}.{kind}"), gray_ramp(4, side, side), codec=codec, clock=24)
                 for side in (32, 48)]  # fmt: skip
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink()

    return make


def cut(path: Path) -> None:
    frames = [np.random.default_rng(k).integers(0, 256, (32, 32, 3), dtype=np.uint8) for k in range(12)]
    make_video(path, frames, container_options={"movflags": "+faststart"})
    os.truncate(path, path.stat().st_size * 3 // 4)


def huge(path: Path) -> None:
    path.write_bytes(b"YUV4MPEG2 W20000 H20000 F24:1 Ip A1:1 C420\nFRAME\n" + bytes(1000))


def huge_png(path: Path) -> None:
    from PIL import Image

    Image.new("1", (20000, 20000)).save(path, "PNG")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "huge.y4m": (huge, "must be a video file"),
    "huge.png": (huge_png, "must be a complete video file"),
    "sound.mp4": (sound_only, "must have a video stream"),
    "cut.mp4": (cut, "must be a complete video file"),
    "folder.mp4": (Path.mkdir, "it is a folder"),
    "pipe.mp4": (os.mkfifo, "it is a pipe"),
    "sizes.ts": (joined("libx264", "ts"), "must have frames of one size, not 32x32 and then 48x48"),
    "sizes.h264": (joined("libx264", "h264"), "must have frames of one size, not 32x32 and then 48x48"),
    "sizes.m2v": (joined("mpeg2video", "m2v"), "must have frames of one size, not 32x32 and then 48x48"),
    "late.mkv": (
        lambda path: make_video(path, gray_ramp(3), [0, 0.5, 1e6], options={"bf": "0"}),
        "its times are damaged",
    ),
    "playlist.mp4": (
        lambda path: path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
        "must be a video file",
    ),
    "new\nline.mp4": (lambda path: path.write_text("text"), "must be a video file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_one_line(model: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]):
    make, wanted = REFUSED[name]
    make(tmp_path / name)
    argv = ["reconstruct", str(tmp_path / name), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("kinema: error: `input` (=")
    assert wanted in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_frames_beyond_the_memory_are_refused_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    path = make_video(tmp_path / "a.mp4", gray_ramp(2, 64, 64))
    argv = ["reconstruct", str(path), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    monkeypatch.setattr("kinema.apps.memory.free_memory", lambda: 64 * 64 * 8 * 45 - 1)
    assert main(argv) == 2
    assert "must have smaller frames: 64x64 takes" in capfd.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    monkeypatch.setattr("kinema.apps.memory.free_memory", lambda: 64 * 64 * 8 * 45)
    assert main(argv) == 0


def test_free_memory_is_within_the_limit_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kinema.apps import memory

    whole = memory.free_memory()
    if whole is None:  # not Linux
        return
    assert whole > 2**20
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1048576\n")
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "max"), str(tmp_path / "limit"), str(tmp_path / "none")))
    assert memory.free_memory() == 2**20
