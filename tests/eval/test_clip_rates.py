"""Rates of clips: sampled by time where that is asked for, and said where they differ."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from kinema.apps.cli import main
from kinema.eval.clips import (
    ClipFile,
    Rate,
    Reading,
    SideRates,
    list_clips,
    open_clip,
    rate_notes,
    read_clip,
    read_rate,
)
from kinema.video import write_video


def write_timed(path: Path, times: list[int], levels: list[int]) -> None:
    """A lossless file whose frames are shown from the given milliseconds on, each of one grey."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=1000, options={"qp": "0"})
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb24"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, level in zip(times, levels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def greys(clip: ClipFile, **reading: float) -> list[int]:
    frames = open_clip(clip, Reading(**reading))  # pyright: ignore[reportArgumentType]
    return frames[: len(frames)][:, 0, 0, 0].tolist()


def clip_of(folder: Path) -> ClipFile:
    (clip,) = list_clips(folder)
    return clip


def test_frames_are_taken_by_their_times(tmp_path: Path):
    # Two frames a second at first, then ten.
    write_timed(tmp_path / "a.mkv", [0, 500, 1000, 1100, 1200, 1300, 1400], [10, 20, 30, 40, 50, 60, 70])
    clip = clip_of(tmp_path)
    rate = read_rate(clip)
    assert rate is not None
    assert rate.is_variable
    assert greys(clip) == [10, 20, 30, 40, 50, 60, 70]
    assert greys(clip, fps=10)[:14] == [10] * 5 + [20] * 5 + [30, 40, 50, 60]
    assert greys(clip, fps=5)[:7] == [10, 10, 10, 20, 20, 30, 50]
    # Frames and strides are counted after the sampling.
    assert greys(clip, fps=10, start=5, num_frames=3, stride=4) == [20, 20, 60]


def test_pictures_and_tensors_have_no_rate(tmp_path: Path):
    frames = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    (tmp_path / "b").mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "b" / f"{index}.png")
    for clip in list_clips(tmp_path):
        assert read_rate(clip) is None
        assert greys(clip, fps=2) == [0, 1, 2, 3]


def sides(**rates: list[float | None]) -> dict[str, SideRates]:
    return {side: SideRates.of([None if fps is None else Rate(fps) for fps in each]) for side, each in rates.items()}


@pytest.mark.parametrize(
    ("rates", "fps", "words"),
    [
        ({"real": [26], "fake": [8]}, None, ["rates differ: 26 (real) against 8 (fake)", "use `--fps 8`"]),
        ({"real": [8, 8.05], "fake": [8]}, None, []),
        ({"real": [30000 / 1001], "fake": [30]}, None, []),
        ({"real": [25], "fake": [24]}, None, ["rates differ"]),
        ({"real": [24, 30, 24], "fake": [24]}, None, ["clips of real have rates from 24 to 30"]),
        ({"real": [8, None], "fake": [8, 8]}, None, []),
        ({"real": [26], "fake": [8]}, 8.0, []),
        ({"real": [26], "fake": [8]}, 26.0, ["clips of fake have as few as 8 frames a second"]),
        ({"real": [26], "fake": [None, 8]}, 8.0, ["1 clips of fake are pictures or tensors"]),
        ({"real": [], "fake": []}, None, []),
    ],
)
def test_notes(rates: dict[str, list[float | None]], fps: float | None, words: list[str]):
    notes = " | ".join(rate_notes(sides(**rates), fps))
    assert bool(notes) == bool(words), notes
    for word in words:
        assert word in notes


def test_variable_rates_are_said():
    rates = {"data": SideRates.of([Rate(8, is_variable=True), Rate(8)])}
    assert "1 of 2 clips of data have a variable rate" in rate_notes(rates, None)[0]
    assert str(rates["data"]) == "8 frames a second (1 variable)"
    assert rate_notes(rates, 8.0) == []


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same two motions, stored at 24 and at 8 frames a second."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        motion = torch.randint(0, 256, (60, 16, 16, 3), generator=generator, dtype=torch.uint8)
        write_video(f"fast/{index}.mkv", motion, 24, lossless=True)
        write_video(f"slow/{index}.mkv", motion[::3], 8, lossless=True)
    return tmp_path


def test_compare_at_one_rate(folders: Path, capsys: pytest.CaptureFixture[str]):
    line = "eval compare fast slow --metrics psnr --json r.json --html r.html --overwrite"
    assert main(f"{line} --fps 8".split()) == 0
    found = json.loads(Path("r.json").read_text())
    assert found["psnr"] == 100
    assert found["num_frames"] == 40
    assert found["rates"]["sampled_fps"] == 8
    assert (found["rates"]["reference"]["median"], found["rates"]["clips"]["median"]) == (24, 8)
    assert found["rates"]["notes"] == []
    assert "rates: reference 24 frames a second; clips 8 frames a second; sampled at 8" in capsys.readouterr().out
    assert main(f"{line} --num-frames 5".split()) == 0
    found = json.loads(Path("r.json").read_text())
    assert found["psnr"] < 30
    (note,) = found["rates"]["notes"]
    assert note == (
        "rates differ: 24 (reference) against 8 (clips) frames a second; motion is compared at different speeds:"
        " use `--fps 8`"
    )
    assert f"note: {note}" in capsys.readouterr().out
    assert "motion is compared at different speeds" in Path("r.html").read_text()
    assert main(["eval", "compare", "fast", "slow", "--fps", "0"]) == 2
    assert "`--fps` (=0) must be >= 0.001" in capsys.readouterr().err


def test_generation_says_the_rates(folders: Path):
    Path("prompts.txt").write_text("a\nb\n")
    line = "eval generation --clips fast --prompts prompts.txt --metrics temporal_flickering --json r.json --overwrite"
    for options, num_frames in (("", 120), ("--fps 8", 40)):
        assert main(f"{line} {options}".split()) == 0
        found = json.loads(Path("r.json").read_text())
        assert found["num_frames"] == num_frames
        assert found["rates"]["clips"]["median"] == 24
    assert len(read_clip(list_clips("fast")[0], fps=8)) == 20
