"""Frames come as a player shows them: exact levels, square pixels, upright, on white, HDR by the stated rule."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from kinema.errors import KinemaError
from kinema.video import VideoReader, read_video, write_video
from kinema.video.display import Display, quarter_turns, square_pixels
from videos import gray_ramp, make_video, plane_frame

# Kr and Kb of ITU-R BT.601, BT.709 and BT.2020, under the numbers of ITU-T H.273.
WEIGHTS = {6: (0.299, 0.114), 1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
LIMITED, FULL = 1, 2


def expected_rgb(y: np.ndarray, cb: float, cr: float, bits: int, matrix: int, span: int) -> np.ndarray:
    """Levels of R, G, B in float64 by the formulas of BT.709, item 3 and 4, and of their siblings."""
    if span == FULL:
        peak, half = 2**bits - 1, 2 ** (bits - 1)
        y, cb, cr = y / peak, (cb - half) / peak, (cr - half) / peak
    else:
        unit = 2 ** (bits - 8)
        y, cb, cr = (y / unit - 16) / 219, (cb / unit - 128) / 224, (cr / unit - 128) / 224
    red, blue = WEIGHTS[matrix]
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    return 255 * np.clip(np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], -1), 0, 1)


def make_flat_chroma(path: Path, pixel_format: str, span: int, **settings: int) -> tuple[np.ndarray, list[int], int]:
    """A lossless file of one frame with every kind of luma and one chroma; what is in it."""
    bits = av.VideoFormat(pixel_format).components[0].bits
    luma = np.random.default_rng(len(pixel_format) + span).integers(0, 2**bits, (20, 24))
    luma[0, :4] = 0, 2**bits - 1, 16 << (bits - 8), 235 << (bits - 8)
    chroma = [int(0.3 * 2**bits), int(0.6 * 2**bits)][: 0 if pixel_format.startswith("gray") else 2]
    frame = plane_frame(pixel_format, 20, 24, [luma, *chroma])
    make_video(path, [frame], codec="ffv1", pixel_format=pixel_format, options={"level": "3", "strict": "-2"},
               settings={"color_range": span, **settings})  # fmt: skip
    return luma, chroma, bits


@pytest.mark.parametrize("span", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize(
    "pixel_format",
    ["yuv420p", "yuv422p", "yuv444p", "yuv410p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le",
     "yuv444p12le", "yuv444p16le"],
)  # fmt: skip
def test_levels_of_luma_and_chroma(tmp_path: Path, pixel_format: str, matrix: int, span: int):
    luma, chroma, bits = make_flat_chroma(tmp_path / "a.mkv", pixel_format, span, colorspace=matrix)
    got = read_video(tmp_path / "a.mkv").frames[0].numpy()
    wanted = expected_rgb(luma, chroma[0], chroma[1], bits, matrix, span)
    assert np.abs(got - wanted).max() <= 0.51  # rounded to the nearest level


@pytest.mark.parametrize("span", [LIMITED, FULL])
@pytest.mark.parametrize("pixel_format", ["gray", "gray10le", "gray12le", "gray16le"])
def test_levels_of_gray(tmp_path: Path, pixel_format: str, span: int):
    luma, _, bits = make_flat_chroma(tmp_path / "a.mkv", pixel_format, span)
    got = read_video(tmp_path / "a.mkv").frames[0].numpy()
    neutral = 2 ** (bits - 1)
    assert np.abs(got - expected_rgb(luma, neutral, neutral, bits, 1, span)).max() <= 0.51
    assert (got == got[..., :1]).all()


@pytest.mark.parametrize(("height", "width", "matrix"), [(576, 720, 6), (16, 16, 6), (720, 64, 1), (16, 1280, 1)])
def test_a_file_that_states_no_matrix_has_that_of_its_size(tmp_path: Path, height: int, width: int, matrix: int):
    frame = plane_frame("yuv444p", height, width, [120, 90, 170])
    path = make_video(tmp_path / "a.mkv", [frame], codec="ffv1", pixel_format="yuv444p")
    got = read_video(path).frames[0, 0, 0].numpy()
    assert np.abs(got - expected_rgb(np.array(120), 90, 170, 8, matrix, LIMITED)).max() <= 0.51


def test_motion_jpeg_is_of_full_range(tmp_path: Path):
    frame = plane_frame("yuvj420p", 16, 16, [200, 100, 150])
    path = make_video(tmp_path / "a.avi", [frame], codec="mjpeg", pixel_format="yuvj420p", clock=24)
    got = read_video(path).frames[0, 8, 8].numpy()
    assert np.abs(got - expected_rgb(np.array(200), 100, 150, 8, 6, FULL)).max() <= 2  # of lossy samples


@pytest.mark.parametrize(("pixel_format", "bits"), [("gbrp", 8), ("gbrp10le", 10), ("gbrp12le", 12), ("gbrp16le", 16)])
def test_levels_of_rgb(tmp_path: Path, pixel_format: str, bits: int):
    levels = np.random.default_rng(0).integers(0, 2**bits, (3, 9, 11))
    frame = plane_frame(pixel_format, 9, 11, [levels[1], levels[2], levels[0]])
    path = make_video(tmp_path / "a.avi", [frame], codec="ffvhuff", pixel_format=pixel_format, clock=24)
    got = read_video(path).frames[0].permute(2, 0, 1).numpy()
    assert np.abs(got - levels * (255 / (2**bits - 1))).max() <= 0.51


@pytest.mark.parametrize(
    ("aspect", "wanted"),
    [("2:1", (24, 64)), ("1:2", (48, 32)), ("4:3", (24, 43)), ("8:9", (27, 32)), ("1:1", (24, 32)), ("0:1", (24, 32)),
     ("24:1", (24, 32)), ("1:24", (24, 32))],
)  # fmt: skip
def test_pixels_are_square(tmp_path: Path, aspect: str, wanted: tuple[int, int], caplog: pytest.LogCaptureFixture):
    pixels = np.zeros((24, 32, 3), np.uint8)
    pixels[:, 16:] = 200

    def state(stream: Any) -> None:
        from fractions import Fraction

        numerator, denominator = map(int, aspect.split(":"))
        stream.codec_context.sample_aspect_ratio = Fraction(numerator, denominator)

    path = make_video(tmp_path / "a.mp4", [pixels] * 2, codec="libx264rgb", pixel_format="rgb24",
                      options={"qp": "0"}, change=state)  # fmt: skip
    with VideoReader(path) as reader:
        frames = torch.stack(list(reader))
    assert frames.shape == (2, *wanted, 3)
    half = wanted[1] // 2
    assert frames[:, :, : half - 4].max() == 0
    assert (frames[:, :, half + 4 :] == 200).all()
    # One warning, and only where the file is wrong.
    assert len(caplog.records) == ("24" in aspect)


def test_square_pixels_only_enlarge():
    from fractions import Fraction

    assert square_pixels(576, 720, Fraction(64, 45)) == (576, 1024)
    assert square_pixels(480, 720, Fraction(8, 9)) == (540, 720)


IDENTITY = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
TURNS: dict[tuple[int, ...], Any] = {
    # a, b, c, d in units of 0x10000, and what a frame becomes
    (0, 1, -1, 0): lambda frames: torch.rot90(frames, -1, (1, 2)),
    (-1, 0, 0, -1): lambda frames: torch.rot90(frames, 2, (1, 2)),
    (0, -1, 1, 0): lambda frames: torch.rot90(frames, 1, (1, 2)),
    (-1, 0, 0, 1): lambda frames: frames.flip(2),
    (1, 0, 0, -1): lambda frames: frames.flip(1),
    (0, 1, 1, 0): lambda frames: frames.transpose(1, 2),
    (0, -1, -1, 0): lambda frames: frames.transpose(1, 2).flip(1, 2),
}


def turn_file(source: Path, target: Path, numbers: tuple[float, ...]) -> Path:
    """A copy of an MP4 file with another matrix in the header of its track."""
    identity = b"".join(number.to_bytes(4, "big") for number in IDENTITY)
    a, b, c, d = (round(number * 0x10000) % 2**32 for number in numbers)
    matrix = b"".join(number.to_bytes(4, "big") for number in (a, b, 0, c, d, 0, 0, 0, 0x40000000))
    data = source.read_bytes()
    position = data.index(identity, data.index(b"tkhd"))
    target.write_bytes(data[:position] + matrix + data[position + len(identity) :])
    return target


@pytest.mark.parametrize("numbers", TURNS)
def test_frames_are_upright(tmp_path: Path, numbers: tuple[int, ...]):
    frames = torch.randint(0, 256, (2, 16, 32, 3), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", frames, 8, lossless=True)
    turned = read_video(turn_file(tmp_path / "a.mp4", tmp_path / "b.mp4", numbers)).frames
    assert torch.equal(turned, TURNS[numbers](frames))


def test_an_oblique_angle_is_said_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = torch.randint(0, 256, (2, 16, 32, 3), dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", frames, 8, lossless=True)
    turned = read_video(turn_file(tmp_path / "a.mp4", tmp_path / "b.mp4", (0.7, 0.7, -0.7, 0.7))).frames
    assert torch.equal(turned, frames)
    assert len(caplog.records) == 1
    assert "90 degrees" in caplog.text


def test_matrices_that_are_no_turns():
    assert quarter_turns(np.zeros(9)) == (False, [])
    assert quarter_turns(np.array([5, 0, 0, 0, -3, 0, 0, 0, 1])) == (False, [0])
    assert quarter_turns(np.array([1, 1, 0, 0, 1, 0, 0, 0, 1])) is None
    assert quarter_turns(np.array([1, 0, 0, 0, 0, 0, 0, 0, 1])) is None


def test_pixels_are_made_square_before_a_turn(tmp_path: Path):
    def state(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = 2

    path = make_video(tmp_path / "a.mp4", gray_ramp(2, 24, 32), change=state)
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    turned = read_video(turn_file(path, tmp_path / "b.mp4", (0, 1, -1, 0)))
    assert turned.frames.shape == (2, 64, 24, 3)


def alpha_file(path: Path) -> tuple[Path, float]:
    """A file of red, left of half and right of full opacity, and the levels that may be lost to its codec."""
    opacity = np.full((16, 32), 255)
    opacity[:, :16] = 128
    if path.suffix == ".webm":
        codec, pixel_format, planes, loss = "libvpx-vp9", "yuva420p", [81, 90, 240, opacity], 6
    elif path.suffix == ".mov":
        codec, pixel_format, planes, loss = "qtrle", "argb", None, 1
    elif path.suffix == ".mxf":
        codec, pixel_format, planes, loss = "prores_ks", "yuva444p10le", [324, 360, 960, opacity * 4 + 3], 8
    elif path.suffix == ".mkv":
        codec, pixel_format, planes, loss = "ffv1", "yuva420p10le", [326, 361, 960, opacity * 4 + opacity // 64], 2
    else:
        codec, pixel_format, planes, loss = "apng", "rgba", None, 1
    if planes is None:
        pixels = np.zeros((16, 32, 4), np.uint8)
        pixels[..., 0], pixels[..., 3] = 255, opacity
        frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pixel_format)
    else:
        frame = plane_frame(pixel_format, 16, 32, planes)
    make_video(path, [frame] * 2, codec=codec, pixel_format=pixel_format, clock=24)
    return path, loss


@pytest.mark.parametrize("suffix", [".webm", ".mov", ".mxf", ".mkv", ".apng"])
def test_transparent_is_white(tmp_path: Path, suffix: str):
    path, loss = alpha_file(tmp_path / f"a{suffix}")
    frame = read_video(path).frames[0].float()
    assert (frame[2:-2, 2:14] - torch.tensor([255.0, 127, 127])).abs().max() <= loss
    assert (frame[2:-2, 18:-2] - torch.tensor([255.0, 0, 0])).abs().max() <= loss


def test_transparent_gif(tmp_path: Path):
    from PIL import Image

    colours = [(0, 0, 0, 0), (0, 0, 255, 255), (0, 255, 0, 255)]
    images = [Image.new("RGBA", (8, 8), colour) for colour in colours]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 300, 500], disposal=2)
    video = read_video(tmp_path / "a.gif")
    assert video.frames[:, 4, 4].tolist() == [[255, 255, 255], [0, 0, 255], [0, 255, 0]]
    with VideoReader(tmp_path / "a.gif") as reader:
        assert [time for time, _ in reader.timed()] == pytest.approx([0, 0.1, 0.4])
        assert reader.timing.duration == pytest.approx(0.9)


def hdr_file(path: Path, transfer: int, level: float, *, primaries: int = 9) -> Path:
    """A file of one gray in 10 bits, of limited range and BT.2020."""
    frame = plane_frame("yuv420p10le", 16, 16, [round(64 + 876 * level), 512, 512])
    settings = {"color_range": LIMITED, "colorspace": 9, "color_primaries": primaries, "color_trc": transfer}
    return make_video(path, [frame], codec="ffv1", pixel_format="yuv420p10le", settings=settings)


@pytest.mark.parametrize(
    ("transfer", "level", "wanted"),
    [
        (16, 0.0, 0),
        (16, 0.4400, 142),  # 49.6 cd/m2, below the knee: 255 (49.6 / 203)^(1/2.4)
        (16, 0.5807, 230),  # 203 cd/m2, reference white
        (16, 0.7518, 255),  # 1,000 cd/m2
        (16, 1.0, 255),
        (18, 0.0, 0),
        (18, 0.75, 230),  # reference white in HLG
        (18, 1.0, 255),
        (14, 0.5, 128),  # BT.2020 of standard range
    ],
)
def test_hdr_levels(tmp_path: Path, transfer: int, level: float, wanted: int):
    frame = read_video(hdr_file(tmp_path / "a.mkv", transfer, level)).frames[0]
    assert (frame == frame[0, 0, 0]).all()  # gray stays gray
    assert abs(int(frame[0, 0, 0]) - wanted) <= 1


def test_dolby_vision_that_others_cannot_show_is_refused():
    stream: Any = SimpleNamespace(sample_aspect_ratio=None, codec_context=av.CodecContext.create("hevc", "r"))
    frame = plane_frame("yuv420p10le", 16, 16, [400, 512, 512])
    for tag, matrix, is_refused in (("dvhe", 2, True), ("dvh1", 2, True), ("dvhe", 9, False), ("hvc1", 2, False)):
        stream.codec_context.codec_tag = tag
        frame.colorspace = matrix
        display = Display(stream, stream.codec_context, "a.mp4", "path")
        if is_refused:
            with pytest.raises(KinemaError, match=r"`path` \(='a.mp4'\): .*Dolby Vision"):
                display(frame)
        else:
            assert display(frame).shape == (16, 16, 3)


def test_colours_of_another_kind_are_refused(tmp_path: Path):
    frame = plane_frame("yuv444p", 16, 16, [120, 90, 170])
    path = make_video(tmp_path / "a.mp4", [frame], pixel_format="yuv444p", settings={"colorspace": 14})
    with pytest.raises(KinemaError, match="matrix 14"):
        read_video(path)
