"""Rates and times of video files are those of their frames, whatever the header says."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kinema.errors import KinemaError
from kinema.video import VideoReader, read_video
from videos import gray_ramp, make_video

COUNT = 24
NTSC = Fraction(30000, 1001)
JITTER = [round(float(t), 3) for t in np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, COUNT))]


def steady(rate: Any = 24, start: float = 0.0, count: int = COUNT) -> list[float]:
    return [start + float(index / Fraction(rate)) for index in range(count)]


def read_times(path: Path) -> tuple[list[float], list[int]]:
    """The times of the frames, and their numbers by what they show."""
    with VideoReader(path) as reader:
        pairs = [(time, round(int(frame[16, 16, 1]) / 5)) for time, frame in reader.timed()]
    return [time for time, _ in pairs], [number for _, number in pairs]


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        ("a.mp4", 24, {}),
        ("a.mp4", NTSC, {}),
        ("a.mkv", 24, {}),
        ("a.mkv", NTSC, {}),  # stored in milliseconds
        ("a.flv", NTSC, {}),
        ("a.ts", 24, {}),
        ("a.ts", NTSC, {}),
        ("a.mov", Fraction(1, 2), {}),
        ("a.avi", 24, {"codec": "mpeg4", "clock": 24, "options": {"bf": "2"}}),
        ("b.avi", 24, {"clock": 24}),  # H.264 with B-frames, in a container without times of display
        ("a.mpg", 24, {"codec": "mpeg2video", "clock": 24, "options": {"bf": "2"}}),
        ("a.webm", 24, {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),  # hidden frames
        ("b.webm", 24, {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "cpu-used": "8"}}),
        ("a.gif", 10, {"codec": "gif", "pixel_format": "rgb8", "clock": 100}),
        ("a.apng", 10, {"codec": "apng", "pixel_format": "rgb24", "clock": 100}),
    ],
)
def test_regular_files_have_their_exact_rate(tmp_path: Path, name: str, rate: Any, options: dict[str, Any]):
    path = make_video(tmp_path / name, gray_ramp(COUNT), rate=rate, **options)
    with VideoReader(path) as reader:
        assert reader.fps == float(rate)
        assert not reader.is_variable
        assert reader.timing.duration == pytest.approx(COUNT / rate)
    times, numbers = read_times(path)
    assert times == pytest.approx(steady(rate))
    assert numbers == pytest.approx(range(COUNT), abs=8 if name == "a.gif" else 1)  # a GIF of few colours
    with VideoReader(path) as reader:
        assert len(list(reader.at_rate(float(rate)))) == COUNT


def test_a_header_that_states_another_rate(tmp_path: Path):
    for name, times, wanted in (("jitter.webm", JITTER, (COUNT - 1) / (JITTER[-1] - JITTER[0])),
                                ("slides.mkv", [0, 2, 5], 0.4), ("slides.mp4", [0, 2, 5], 0.4)):  # fmt: skip
        codec = "libvpx" if name.endswith("webm") else "libx264"
        path = make_video(tmp_path / name, gray_ramp(len(times)), times, codec=codec, rate=25)
        with VideoReader(path) as reader:
            assert reader.is_variable
            assert reader.fps == pytest.approx(wanted)
        read, numbers = read_times(path)
        assert read == pytest.approx([time - times[0] for time in times], abs=2e-3)
        assert numbers == pytest.approx(range(len(times)), abs=1)


def test_avi_with_empty_packets(tmp_path: Path):
    # Ten frames a second at twenty ticks: the muxer fills the gaps with packets of no bytes.
    path = make_video(tmp_path / "a.avi", gray_ramp(20), steady(10, count=20), codec="mpeg4", rate=20, clock=20)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 20
    with VideoReader(path) as reader:
        assert (reader.fps, reader.is_variable) == (10.0, False)
        assert len(list(reader)) == 20


@pytest.mark.parametrize(
    ("name", "start", "options"),
    [
        ("late.mkv", 3600.0, {}),
        ("late.ts", 5000.0, {}),
        ("wrap.ts", 2**33 / 90000 - 0.5, {}),
        ("negative.mp4", -0.5, {"container_options": {"use_editlist": "0"}}),
        ("negative.mkv", -0.5, {"container_options": {"avoid_negative_ts": "disabled"}, "options": {"bf": "0"}}),
    ],
)
def test_clocks_that_start_anywhere(tmp_path: Path, name: str, start: float, options: dict[str, Any]):
    path = make_video(tmp_path / name, gray_ramp(COUNT), steady(start=start), **options)
    with VideoReader(path) as reader:
        assert (reader.fps, reader.is_variable) == (24.0, False)
    times, numbers = read_times(path)
    assert times == pytest.approx(steady())
    assert numbers == pytest.approx(range(COUNT), abs=1)


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", gray_ramp(COUNT), steady(start=-0.5))
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    times, numbers = read_times(path)
    assert times == pytest.approx(steady(count=12))
    assert numbers == pytest.approx(range(12, 24), abs=1)
    with VideoReader(path) as reader:
        assert (reader.fps, len(reader.timing.times)) == (24.0, 12)


def test_a_broadcast_that_was_joined_or_starts_in_the_middle(tmp_path: Path):
    data = make_video(tmp_path / "a.ts", gray_ramp(COUNT), options={"g": "6"}).read_bytes()
    (tmp_path / "b.ts").write_bytes(data + data)
    times, numbers = read_times(tmp_path / "b.ts")
    assert times == pytest.approx(steady(count=2 * COUNT))
    assert numbers == pytest.approx([*range(COUNT), *range(COUNT)], abs=1)
    (tmp_path / "c.ts").write_bytes(data[188 * 8 :])
    with VideoReader(tmp_path / "c.ts") as reader:
        frames = list(reader)
        assert reader.fps == 24
        assert len(frames) == len(reader.timing.times) < COUNT


def test_a_pause_in_a_file_is_kept_and_a_jump_of_a_broadcast_clock_is_not(tmp_path: Path):
    late = [time + 20 * (time > 0.4) for time in steady()]
    for name in ("a.mkv", "a.mp4"):
        path = make_video(tmp_path / name, gray_ramp(COUNT), late)
        assert read_times(path)[0] == pytest.approx(late, abs=2e-3)
    first = make_video(tmp_path / "1.ts", gray_ramp(12), steady(count=12)).read_bytes()
    second = make_video(tmp_path / "2.ts", gray_ramp(12), steady(count=12, start=500)).read_bytes()
    (tmp_path / "b.ts").write_bytes(first + second)
    assert read_times(tmp_path / "b.ts")[0] == pytest.approx(steady())


def test_times_that_repeat_still_increase(tmp_path: Path):
    # In milliseconds, frames of a tenth of one fall on each other.
    path = make_video(tmp_path / "a.mkv", gray_ramp(COUNT), steady(10000), options={"bf": "0"})
    times, numbers = read_times(path)
    assert len(times) == COUNT
    assert all(a < b for a, b in itertools.pairwise(times))
    assert numbers == pytest.approx(range(COUNT), abs=1)


@pytest.mark.parametrize(("name", "rate"), [("a.mp4", 5.0), ("a.mkv", 5.0), ("a.png", 25.0)])
def test_one_frame(tmp_path: Path, name: str, rate: float):
    codec, pixel_format = ("png", "rgb24") if name == "a.png" else ("libx264", "yuv420p")
    kind = {"container_options": {"update": "1"}, "clock": 25} if name == "a.png" else {}
    path = make_video(tmp_path / name, gray_ramp(1), codec=codec, pixel_format=pixel_format, rate=int(rate), **kind)
    with VideoReader(path) as reader:
        assert (reader.fps, reader.is_variable, len(list(reader.at_rate(rate)))) == (rate, False, 1)


def test_files_without_times_have_the_rate_that_their_stream_states(tmp_path: Path):
    path = make_video(tmp_path / "a.h264", gray_ramp(COUNT), rate=12, clock=12)
    with VideoReader(path) as reader:
        assert reader.fps == 12
    assert read_times(path)[0] == pytest.approx(steady(12))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_another_rate_takes_the_frame_shown_at_each_time(tmp_path: Path, name: str):
    path = make_video(tmp_path / name, gray_ramp(30), rate=30, codec="libx264rgb", pixel_format="rgb24",
                      options={"qp": "0"})  # fmt: skip
    for rate, wanted in ((30, range(30)), (10, range(0, 30, 3)), (60, [k // 2 for k in range(60)]),
                         (20, [int(k * 1.5) for k in range(20)])):  # fmt: skip
        video = read_video(path, fps=rate)
        assert video.fps == rate
        assert [int(level) // 5 for level in video.frames[:, 0, 0, 0]] == list(wanted)
    slides = make_video(tmp_path / f"slides-{name}", gray_ramp(3), [0, 0.5, 2], options={"bf": "0"})
    assert len(read_video(slides, fps=4).frames) in (8, 9)  # the last frame is shown for a 24th of a second
    with pytest.raises(KinemaError, match="`fps`"):
        read_video(path, fps=0)


def test_damaged_times_do_not_repeat_a_frame_for_ever(tmp_path: Path):
    path = make_video(tmp_path / "a.mkv", gray_ramp(3), [0, 0.5, 1e6], options={"bf": "0"})
    with pytest.raises(KinemaError, match="times are damaged"):
        read_video(path, fps=24)
    with VideoReader(path) as reader, pytest.raises(KinemaError, match="times are damaged"):
        list(reader.timed())
    assert len(read_video(path).frames) == 3


def test_reader_starts_anew(tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", gray_ramp(5))
    with VideoReader(path) as reader:
        first = next(iter(reader))
        assert [len(list(reader)), len(list(reader.timed()))] == [5, 5]
        assert int((next(iter(reader)) != first).sum()) == 0


def put_times(source: Path, target: Path, milliseconds: list[int]) -> Path:
    """A copy of a Matroska file whose blocks have other times."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    position = 0
    for packet, time in zip(packets, milliseconds, strict=True):
        position = data.index(packet, position)
        data[position - 3 : position - 1] = time.to_bytes(2, "big", signed=True)
        position += len(packet)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize(
    "milliseconds",
    [
        [0, 42, 125, 83, 167, 250, 208, 292],  # two frames the wrong way round, twice
        [0, 42, 42, 42, 167, 208, 208, 292],
        [167, 208, 250, 292, 0, 42, 83, 125],
        [100] * 8,
        [-300, -200, 0, 42, 83, 125, 167, 208],
    ],
)
def test_times_in_no_order_keep_all_frames_in_the_file_s_order(tmp_path: Path, milliseconds: list[int]):
    path = make_video(tmp_path / "a.mkv", gray_ramp(8), codec="ffv1", pixel_format="bgr0")
    times, numbers = read_times(put_times(path, tmp_path / "b.mkv", milliseconds))
    assert numbers == list(range(8))
    assert times[0] == 0
    assert all(a < b for a, b in itertools.pairwise(times))
    assert times[-1] < 1
    with VideoReader(tmp_path / "b.mkv") as reader:
        assert len(list(reader.at_rate(24))) >= 1


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")])
@pytest.mark.parametrize("value", [0, 255])
def test_damage_in_the_middle_is_said(
    tmp_path: Path, name: str, codec: str, value: int, caplog: pytest.LogCaptureFixture
):
    frames = [np.random.default_rng(k).integers(0, 256, (64, 64, 3), dtype=np.uint8) for k in range(8)]
    path = make_video(tmp_path / name, frames, codec=codec, clock=24)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    assert not caplog.records
    path.write_bytes(data.replace(packets[4], packets[4][:40] + bytes([value]) * (len(packets[4]) - 40)))
    try:
        assert len(read_video(path).frames) in (7, 8)
    except KinemaError as error:
        assert "damaged" in str(error)  # noqa: PT017
    else:
        assert "it is damaged: " in caplog.text
        assert len(caplog.records) == 1
