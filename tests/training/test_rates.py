"""Clips at a rate: which frames of a file they are made of, and the rate of a training."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinema.training.config import DiffusionTrainingConfig
from kinema.training.data.clips import ClipsDataset, centre_clips
from kinema.training.data.frames import cached_frames
from kinema.training.data.rates import FrameTimes, clip_frames, rate_without_repeats
from kinema.training.data.sources import CaptionedClips
from kinema.training.diffusion import train
from kinema.video import VideoReader, read_video


def regular(num_frames: int, fps: float) -> FrameTimes:
    return FrameTimes(
        fps=fps,
        is_variable=False,
        last_duration=1 / fps,
        tick=1 / 90_000,
        is_cut=False,
        times=np.arange(num_frames) / fps,
    )


@given(
    num_frames=st.integers(1, 60),
    fps=st.sampled_from([0.5, 8.0, 24000 / 1001, 25.0, 30.0, 60.0, 120.0]),
    clip=st.integers(1, 20),
    stride=st.integers(1, 3),
    start=st.floats(0, 1, exclude_max=True),
)
def test_at_the_rate_of_the_file_clips_are_its_frames(num_frames, fps, clip, stride, start):
    frames = clip_frames(regular(num_frames, fps), clip, fps, stride=stride, start=start)
    if clip <= num_frames:
        step = min(stride, max(1, (num_frames - 1) // max(1, clip - 1)))
        assert np.diff(frames).tolist() == [step] * (clip - 1)
        assert frames[0] == int(start * (num_frames - step * (clip - 1)))
    assert 0 <= frames.min() <= frames.max() < num_frames


@given(
    num_frames=st.integers(2, 60),
    fps=st.sampled_from([8.0, 24000 / 1001, 30.0, 60.0]),
    rate=st.floats(2, 120),
    start=st.floats(0, 1, exclude_max=True),
)
def test_time_runs_as_in_the_file(num_frames, fps, rate, start):
    times = regular(num_frames, fps)
    clip = max(1, int(times.duration * rate) // 2)
    frames = clip_frames(times, clip, rate, start=start)
    wanted = times.times[frames[0]] + np.arange(clip) / rate
    shown = times.times[frames]
    assert (shown <= wanted + 0.25 / rate + 1e-6).all()
    assert (wanted < shown + 1 / fps + 1e-6).all()


@given(st.integers(2, 40), st.sampled_from([8.0, 30.0]), st.floats(0.5, 200), st.integers(1, 12))
def test_no_frame_is_repeated_where_the_file_has_enough(num_frames, fps, rate, clip):
    times = regular(num_frames, fps)
    frames = clip_frames(times, clip, rate_without_repeats(times, rate, clip))
    if clip <= num_frames:
        assert (np.diff(frames) > 0).all()


def test_a_short_file_is_played_back_and_forth():
    assert clip_frames(regular(3, 8), 6, 8).tolist() == [0, 1, 2, 1, 0, 1]
    assert clip_frames(regular(3, 8), 6, 16, start=0.9).tolist() == [0, 0, 1, 1, 2, 2]
    assert clip_frames(regular(1, 8), 3, 8).tolist() == [0, 0, 0]
    assert clip_frames(regular(6, 8), 3, 4, start=0.99).tolist() == [1, 3, 5]


TIMES = [0, 40, 80, 1000, 1040, 1500]  # in milliseconds: bursts of frames, and stills between them


def test_variable_rates_are_sampled_by_time(tmp_path, make_timed_video):
    path = make_timed_video(tmp_path / "data/a.mkv", TIMES)
    cached = cached_frames(path, tmp_path / "cache", 16, 100)
    assert cached.times.is_variable
    np.testing.assert_allclose(cached.times.times, np.array(TIMES) / 1000)
    assert clip_frames(cached.times, 6, 5).tolist() == [0, 2, 2, 2, 2, 3]  # at 0, 0.2, ..., 1.0 s
    assert clip_frames(cached.times, 16, 10).tolist() == [0] + 9 * [2] + [3] + 4 * [4] + [5]
    dataset = ClipsDataset([tmp_path / "data"], tmp_path / "cache", short_side=16)
    choices: list[tuple[float, dict[str, Any]]] = [
        (25.0, {"fps": 25.0}),
        (cached.times.fps, {}),
        (2.0, {"frame_rates": (2.0,)}),
    ]
    for rate, arguments in choices:
        clip, _ = dataset.random_clip((4, 16, 16), torch.Generator().manual_seed(0), flip=False, **arguments)
        levels = ((clip[0, :, 0, 0] + 1) * 12.75).round().long().tolist()
        seconds = TIMES[levels[0]] / 1000 + np.arange(4) / rate
        assert levels == [int(np.searchsorted(np.array(TIMES) / 1000, s + 1e-3, side="right")) - 1 for s in seconds]


def test_clips_and_the_reader_agree(tmp_path, make_timed_video):
    path = make_timed_video(tmp_path / "a.mkv", TIMES)
    cached = cached_frames(path, tmp_path / "cache", 16, 100)
    with VideoReader(path) as reader:
        for rate in (3.0, 10.0, 24.0, 30.0):
            read = [round(float(frame.float().mean()) / 10) for frame in reader.at_rate(rate)]
            num = min(len(read), cached.times.num_at_rate(rate))
            assert clip_frames(cached.times, num, rate).tolist() == read[:num]


def test_validation_clips_go_by_time(tmp_path, make_timed_video, make_video):
    path = make_timed_video(tmp_path / "a.mkv", TIMES)
    (clip,) = centre_clips(path, 1, (3, 16, 16), fps=2)
    assert ((clip[0, :, 0, 0] + 1) * 12.75).round().tolist() == [0, 2, 3]  # at 0, 0.5 and 1 s
    steady = make_video(tmp_path / "b.mp4", num_frames=12, fps=24)
    frames = read_video(steady).frames
    (clip,) = centre_clips(steady, 1, (3, 40, 56), fps=8)
    torch.testing.assert_close(clip.permute(1, 2, 3, 0), frames[[0, 3, 6]].float() / 127.5 - 1)
    (clip,) = centre_clips(steady, 1, (12, 40, 56), fps=100)  # no frame is shown twice
    torch.testing.assert_close(clip.permute(1, 2, 3, 0), frames.float() / 127.5 - 1)


@pytest.fixture
def config(tmp_path, make_video, tiny_tokenizer_folder):
    make_video(tmp_path / "data/a.mp4", num_frames=24, height=16, width=16, fps=30)
    (tmp_path / "data/a.txt").write_text("bars move")
    return DiffusionTrainingConfig(
        preset="tiny",
        data=(str(tmp_path / "data"),),
        tokenizer=tiny_tokenizer_folder,
        output=tmp_path / "run",
        shape="5x16x16",
        num_clips=2,
        batch_size=1,
        num_steps=1,
        validation_clips=0,
        num_workers=0,
        cpu=True,
    )


@pytest.mark.parametrize(("fps", "saved"), [(None, 30.0), (8.0, 8.0)])
def test_a_generator_knows_the_rate_of_its_data(config, fps, saved):
    folder = train(dataclasses.replace(config, fps=fps))
    assert json.loads((folder / "model_index.json").read_text())["sample_fps"] == saved
    assert json.loads((config.run_dir / "config.json").read_text())["fps"] == saved
    report = json.loads((config.run_dir / "data_report.json").read_text())
    assert report[0]["num_files"] == 1


def test_rates_of_files_and_toybox(config, tmp_path, make_video, caplog):
    caplog.set_level(logging.INFO)
    for index, fps in enumerate((30, 60, 10)):
        make_video(tmp_path / f"more/{index}.mp4", num_frames=4, height=16, width=16, fps=fps)
    both = dataclasses.replace(config, data=(*config.data, str(tmp_path / "more")))
    assert CaptionedClips(config).fps == 30
    assert "clips have 30 frames a second, as the video files have" in caplog.text
    caplog.clear()
    clips = CaptionedClips(both)
    assert clips.fps == 30
    assert (
        "clips have 30 frames a second; 2 of 4 video files have another rate (10 to 60) and are resampled"
        in caplog.text
    )
    assert "1 of 4 video files have far fewer than 30 frames a second, and their frames are repeated" in caplog.text
    clips.save_report(tmp_path / "report.json")
    (line,) = json.loads((tmp_path / "report.json").read_text())[1]["slower"]
    assert "2.mp4' (10)" in line
    caplog.clear()
    toybox = dataclasses.replace(config, data=(*config.data, "toybox"))
    assert CaptionedClips(toybox).fps == 8
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert CaptionedClips(dataclasses.replace(toybox, fps=24.0)).fps == 24
    assert "Toybox clips have 8 frames a second; at 24 everything in them moves 3 times as fast" in caplog.text


def test_files_are_resampled_and_kept_latents_depend_on_the_rate(config, tmp_path):
    frames = read_video(tmp_path / "data/a.mp4").frames.float().mean(dim=(1, 2, 3)).numpy()

    def steps(fps: float) -> set[tuple[Any, ...]]:
        video, _ = CaptionedClips(dataclasses.replace(config, fps=fps, max_zoom_out=1.0))(range(8))
        levels = (video + 1).mean(dim=(1, 3, 4)) * 127.5
        return {tuple(np.diff([int(np.abs(frames - float(v)).argmin()) for v in clip])) for clip in levels}

    assert steps(30) == {(1, 1, 1, 1)}
    assert steps(10) == {(3, 3, 3, 3)}
    assert steps(8) == {(3, 4, 4, 4)}  # 0, 3.75, 7.5, 11.25, 15
    assert steps(60) == {(0, 1, 0, 1)}
    train(config)
    train(dataclasses.replace(config, fps=10.0, output=tmp_path / "second", cache_dir=config.run_cache_dir))
    assert len(list(Path(config.run_cache_dir).glob("latents-*"))) == 2
