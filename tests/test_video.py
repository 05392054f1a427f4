"""Video and picture files: what is written is read back; what is wrong is reported; nothing is left half-written."""

import os
from contextlib import nullcontext
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from kinema.errors import KinemaError
from kinema.files import atomic_path
from kinema.video import (
    VIDEO_SUFFIXES,
    VideoReader,
    VideoWriter,
    contact_sheet,
    read_image,
    read_video,
    to_float,
    to_uint8,
    write_image,
    write_video,
)


def noise(num_frames: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames + 10 * height + 1000 * width)
    return torch.randint(0, 256, (num_frames, height, width, 3), generator=generator, dtype=torch.uint8)


def smooth(num_frames: int, height: int, width: int) -> Tensor:
    t = torch.arange(num_frames)[:, None, None, None] * 3.0
    y = torch.arange(height)[None, :, None, None] * 1.5
    x = torch.arange(width)[None, None, :, None] * 1.0
    return (t + y + x + torch.tensor([0.0, 40.0, 80.0])).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("shape", [(5, 32, 48), (1, 16, 16), (3, 37, 53), (2, 1, 1)])
def test_lossless_is_bit_exact(tmp_path: Path, suffix: str, shape: tuple[int, int, int]):
    frames = noise(*shape)
    write_video(tmp_path / f"a{suffix}", frames, 24, lossless=True)
    assert torch.equal(read_video(tmp_path / f"a{suffix}").frames, frames)


@pytest.mark.parametrize("shape", [(9, 64, 64), (3, 37, 53), (1, 16, 18)])
def test_lossy_is_near(tmp_path: Path, shape: tuple[int, int, int]):
    frames = smooth(*shape)
    write_video(tmp_path / "a.mp4", frames, 8)
    read = read_video(tmp_path / "a.mp4").frames
    assert read.shape == frames.shape
    assert (read.float() - frames.float()).abs().mean() < 2.0


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (90, 160, 30)])
def test_lossy_keeps_colours(tmp_path: Path, colour: tuple[int, int, int]):
    # Writer and reader must agree on colour space and range, or every colour shifts.
    frames = torch.tensor(colour, dtype=torch.uint8).expand(3, 32, 32, 3).contiguous()
    write_video(tmp_path / "a.mp4", frames, 8)
    read = read_video(tmp_path / "a.mp4").frames
    assert (read.float() - frames.float()).abs().max() <= 3


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("fps", [8.0, 23.976, 24000 / 1001, 30.0, 0.5])
def test_fps_is_kept(tmp_path: Path, fps: float, suffix: str):
    write_video(tmp_path / f"a{suffix}", smooth(5, 16, 16), fps)
    assert read_video(tmp_path / f"a{suffix}").fps == pytest.approx(fps, rel=2e-3)


def test_log_of_ffmpeg_stays_off(tmp_path: Path):
    # With it on, a thread of FFmpeg that logs and a decoder that is freed can wait for each other for ever.
    try:
        av.logging.set_level(av.logging.ERROR)
        write_video(tmp_path / "x.mp4", torch.zeros(2, 16, 16, 3, dtype=torch.uint8), 8)
        assert av.logging.get_level() is None
        av.logging.set_level(av.logging.ERROR)
        read_video(tmp_path / "x.mp4")
        assert av.logging.get_level() is None
    finally:
        av.logging.set_level(None)


def test_read_part(tmp_path: Path):
    frames = noise(9, 16, 16)
    write_video(tmp_path / "a.mp4", frames, 24, lossless=True)
    assert torch.equal(read_video(tmp_path / "a.mp4", start=2, max_frames=3).frames, frames[2:5])
    assert torch.equal(read_video(tmp_path / "a.mp4", start=7, max_frames=30).frames, frames[7:])
    with pytest.raises(KinemaError, match="after the first 9"):
        read_video(tmp_path / "a.mp4", start=9)
    with pytest.raises(KinemaError, match="`start`"):
        read_video(tmp_path / "a.mp4", start=-1)
    with pytest.raises(KinemaError, match="`max_frames`"):
        read_video(tmp_path / "a.mp4", max_frames=0)


def test_metadata_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "NAMENAME"
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 16  # pyright: ignore[reportAttributeAccessIssue]
        for pixels in smooth(3, 16, 16).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))  # pyright: ignore
        container.mux(stream.encode())  # pyright: ignore
    data = path.read_bytes()
    assert data.count(b"NAMENAME") == 1
    path.write_bytes(data.replace(b"NAMENAME", b"caf\xe9 \xff\xfe\xc3"))
    needs_care = int(av.__version__.split(".")[0]) < 19
    with pytest.raises(UnicodeDecodeError) if needs_care else nullcontext(), av.open(str(path)):
        pass
    assert read_video(path).frames.shape == (3, 16, 16, 3)


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
@pytest.mark.parametrize("part", [0.02, 0.4, 0.7, 0.9])
def test_truncated_file(tmp_path: Path, suffix: str, part: float):
    path = tmp_path / f"a{suffix}"
    write_video(path, noise(24, 32, 32), 24)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(KinemaError, match="complete"):
        read_video(path)
    if part > 0.3:
        assert 0 < len(read_video(path, allow_truncated=True).frames) < 24


def make_bad_file(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "random":
        path.write_bytes(noise(1, 64, 64).numpy().tobytes())
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "random", "folder"])
def test_bad_file(tmp_path: Path, kind: str):
    path = make_bad_file(tmp_path, kind)
    for read in (read_video, read_image):
        with pytest.raises(KinemaError, match=r"bad\.mp4") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_existing_file_stays_unless_overwritten(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_text("precious")
    with pytest.raises(KinemaError, match="--overwrite"):
        write_video(path, noise(2, 16, 16), 8)
    assert path.read_text() == "precious"
    write_video(path, noise(2, 16, 16), 8, overwrite=True)
    assert len(read_video(path).frames) == 2


def test_failure_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "a.mp4"
    path.write_text("precious")

    def write(widths: list[int]):
        with VideoWriter(path, 8, overwrite=True) as writer:
            for width in widths:
                writer.write(noise(2, 16, width))

    with pytest.raises(KinemaError, match="16x16"):
        write([16, 18])
    with pytest.raises(KinemaError, match="at least one frame"):
        write([])
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_writer_appends(tmp_path: Path):
    frames = noise(7, 16, 16)
    with VideoWriter(tmp_path / "new" / "a.mp4", 8, lossless=True) as writer:
        for piece in frames.split([1, 4, 2]):
            writer.write(piece)
        assert not (tmp_path / "new" / "a.mp4").exists()
    assert torch.equal(read_video(tmp_path / "new" / "a.mp4").frames, frames)


@pytest.mark.parametrize(
    ("name", "fps", "said"),
    [("a.avi", 8, r"\.mp4, \.mkv, \.mov"), ("a", 8, r"\.mp4"), ("a.mp4", 0, "`fps`"), ("a.mp4", float("nan"), "`fps`")],
)
def test_writer_refuses(tmp_path: Path, name: str, fps: float, said: str):
    with pytest.raises(KinemaError, match=said):
        write_video(tmp_path / name, noise(1, 16, 16), fps)
    assert os.listdir(tmp_path) == []


def test_output_below_a_file(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(KinemaError, match="folder"):
        write_video(tmp_path / "file" / "a.mp4", noise(1, 16, 16), 8)


def test_atomic_path_has_usual_permissions(tmp_path: Path):
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "made") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_reader_turns_what_is_filmed_upright(tmp_path: Path):
    frames = smooth(3, 16, 32)
    write_video(tmp_path / "a.mp4", frames, 8, lossless=True)
    data = (tmp_path / "a.mp4").read_bytes()
    # The matrix in a track's header: the identity, replaced by a quarter turn, as phones write it.
    identity = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    quarter = b"".join(n.to_bytes(4, "big") for n in (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000))
    position = data.index(identity, data.index(b"tkhd"))
    (tmp_path / "b.mp4").write_bytes(data[:position] + quarter + data[position + len(identity) :])
    turned = read_video(tmp_path / "b.mp4").frames
    assert turned.shape == (3, 32, 16, 3)
    assert torch.equal(turned, torch.rot90(frames, -1, (1, 2)))


def test_reader_is_lazy(tmp_path: Path):
    write_video(tmp_path / "a.mp4", noise(5, 16, 16), 8)
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert reader.fps == 8
        assert next(iter(reader)).shape == (16, 16, 3)


def test_times_are_written_and_read(tmp_path: Path):
    frames = noise(4, 16, 16)
    for suffix in VIDEO_SUFFIXES:
        with VideoWriter(tmp_path / f"a{suffix}", 0.4, lossless=True, end=6) as writer:
            writer.write(frames[:1], [0.0])
            writer.write(frames[1:], [0.5, 2.0, 5.0])
        with VideoReader(tmp_path / f"a{suffix}") as reader:
            assert reader.is_variable
            assert reader.fps == pytest.approx(3 / 5)
            assert reader.timing.duration == pytest.approx(6)
            times, read = zip(*reader.timed(), strict=True)
            assert times == pytest.approx([0.0, 0.5, 2.0, 5.0])
            assert torch.equal(torch.stack(read), frames)
            wanted = frames[[0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3]]
            assert torch.equal(torch.stack(list(reader.at_rate(2))), wanted)
        video = read_video(tmp_path / f"a{suffix}", fps=2, start=3, max_frames=2)
        assert video.fps == 2
        assert torch.equal(video.frames, wanted[3:5])


def test_image_round_trip(tmp_path: Path):
    pixels = noise(1, 9, 7)[0]
    write_image(tmp_path / "a.png", Image.fromarray(pixels.numpy()))
    assert torch.equal(read_image(tmp_path / "a.png"), pixels)
    with pytest.raises(KinemaError, match="--overwrite"):
        write_image(tmp_path / "a.png", Image.fromarray(pixels.numpy()))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(KinemaError, match=r"b\.png"):
        read_image(tmp_path / "b.png")
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


@pytest.mark.parametrize(("mode", "colour", "wanted"), [("RGBA", (9, 9, 9, 0), 255), ("L", 70, 70), ("P", 0, 0)])
def test_image_modes(tmp_path: Path, mode: str, colour: int | tuple[int, ...], wanted: int):
    Image.new(mode, (4, 3), colour).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 4, 3)
    assert image.unique().tolist() == [wanted]


def test_image_of_16_bits(tmp_path: Path):
    Image.fromarray(np.array([[0, 257 * 70, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 70, 255]


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_float_and_back(num_frames: int, height: int, width: int):
    frames = noise(num_frames, height, width)
    video = to_float(frames)
    assert video.shape == (1, 3, num_frames, height, width)
    assert video.min() >= -1
    assert video.max() <= 1
    assert torch.equal(to_uint8(video[0]), frames)


def test_float_ends():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1)).flatten().tolist() == [-1.0, 1.0]
    assert to_uint8(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_contact_sheet_shows_the_frames_in_order():
    clip = torch.stack([torch.full((10, 40, 3), value, dtype=torch.uint8) for value in range(0, 250, 25)])
    sheet = contact_sheet([clip, clip[:1]], ["a long label " * 30, "b"], columns=4)
    pixels = torch.from_numpy(np.array(sheet))
    assert sheet.size == (4 + 4 * 44, 4 + 2 * 34)
    row = pixels[4 + 20 + 5]
    assert [int(row[4 + 20 + 44 * column, 0]) for column in range(4)] == [0, 75, 150, 225]
    row = pixels[4 + 34 + 20 + 5]
    assert [int(row[4 + 20 + 44 * column, 0]) for column in range(4)] == [0, 0, 0, 0]
    assert (pixels[4:24, :176] < 128).any()  # the label


@pytest.mark.parametrize(
    ("num_clips", "labels", "columns"), [(0, [], 6), (1, [], 6), (1, ["a", "b"], 6), (1, ["a"], 0)]
)
def test_contact_sheet_refuses(num_clips: int, labels: list[str], columns: int):
    with pytest.raises(KinemaError):
        contact_sheet([noise(2, 8, 8)] * num_clips, labels, columns=columns)
