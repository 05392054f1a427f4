"""Sound comes along: copied where the container takes it, else as AAC, in time with the frames."""

from pathlib import Path

import av
import pytest

from kinema.video import Sound, VideoReader, VideoWriter, read_video
from videos import gray_ramp, make_sounding_video, make_video, spans


def rewrite(source: Path, target: Path) -> str | None:
    """Frames and sound of a file into another; how the sound got there."""
    with VideoReader(source) as reader, Sound(source, origin=reader.timing.origin) as sound:
        timing = reader.timing
        with VideoWriter(target, reader.fps, start=timing.start, end=timing.start + timing.duration,
                         sound=sound) as writer:  # fmt: skip
            for time, frame in reader.timed():
                writer.write(frame[None], [timing.start + time] if reader.is_variable else None)
        return sound.kind


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize(
    ("source", "codec", "target", "kind"),
    [
        ("a.mp4", "aac", ".mp4", "copied"),
        ("a.mp4", "aac", ".mkv", "copied"),
        ("a.mp4", "aac", ".mov", "copied"),
        ("a.mkv", "libopus", ".mp4", "copied"),
        ("a.mkv", "libmp3lame", ".mp4", "copied"),
        ("a.webm", "libopus", ".mkv", "copied"),
        ("a.mov", "pcm_s16le", ".mov", "copied"),
        ("a.mov", "pcm_s16le", ".mkv", "copied"),
        ("a.mkv", "flac", ".mov", "aac"),
        ("a.mkv", "libopus", ".mov", "aac"),
        ("a.avi", "libmp3lame", ".mkv", "copied"),
        ("a.ts", "aac", ".mkv", None),
    ],
)
def test_sound_is_kept_in_time(tmp_path: Path, source: str, codec: str, target: str, kind: str | None):
    video_codec = {".webm": "libvpx", ".avi": "mpeg4"}.get(Path(source).suffix, "libx264")
    clock = 24 if source == "a.avi" else 90000
    path = make_sounding_video(tmp_path / source, sound=codec, codec=video_codec, clock=clock)
    done = rewrite(path, tmp_path / f"out{target}")
    assert done == kind or kind is None
    before, after = spans(path), spans(tmp_path / f"out{target}")
    offset = before["audio"][0] - before["video"][0]
    assert after["audio"][0] - after["video"][0] == pytest.approx(offset, abs=0.03)
    length = before["audio"][1] - before["audio"][0]
    assert after["audio"][1] - after["audio"][0] == pytest.approx(length, abs=0.05)
    # PCM may be cut into other packets; those of a broadcast carry headers that go.
    if done == "copied" and codec != "pcm_s16le" and source != "a.ts":
        assert sound_packets(tmp_path / f"out{target}") == sound_packets(path)
    assert len(read_video(tmp_path / f"out{target}").frames) == 24


@pytest.mark.parametrize(("video_start", "sound_start"), [(0.5, 0.0), (0.0, 0.5), (100.0, 100.0)])
def test_the_later_track_stays_later(tmp_path: Path, video_start: float, sound_start: float):
    path = make_sounding_video(tmp_path / "a.mkv", video_start=video_start, sound_start=sound_start)
    rewrite(path, tmp_path / "out.mkv")
    after = spans(tmp_path / "out.mkv")
    assert after["audio"][0] - after["video"][0] == pytest.approx(sound_start - video_start, abs=0.03)
    assert min(after["audio"][0], after["video"][0]) == pytest.approx(0, abs=0.03)


def test_damaged_sound_is_said_and_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = make_sounding_video(tmp_path / "a.mkv")
    data = bytearray(path.read_bytes())
    packets = sound_packets(path)
    for packet in packets[10:14]:
        position = data.index(packet)
        data[position : position + len(packet)] = b"\xff" * len(packet)
    (tmp_path / "b.mkv").write_bytes(bytes(data))
    assert rewrite(tmp_path / "b.mkv", tmp_path / "out.mkv") == "copied"
    assert "damaged" in caplog.text
    assert len(caplog.records) == 1
    assert len(read_video(tmp_path / "out.mkv").frames) == 24


def test_a_file_without_sound_has_none(tmp_path: Path):
    path = make_video(tmp_path / "a.mp4", gray_ramp(4))
    assert rewrite(path, tmp_path / "out.mp4") is None
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert not container.streams.audio
