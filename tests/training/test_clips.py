"""The clips data set: captions, unreadable files, the cache of decoded frames, random clips."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.errors import KinemaError
from kinema.training.data.clips import (
    ClipsDataset,
    centre_clips,
)
from kinema.training.data.frames import cached_frames
from kinema.training.data.listing import list_videos
from kinema.training.data.rates import bounce
from kinema.training.data.resize import cover_frame
from kinema.video import read_video


@pytest.fixture
def folder(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4")
    make_video(tmp_path / "data/sub/b.mp4", num_frames=20)
    make_video(tmp_path / "data/cat_c.mp4")
    return tmp_path / "data"


def test_finds_files_in_subfolders_and_holds_out_by_name(folder, tmp_path):
    dataset = ClipsDataset([folder], tmp_path / "cache", short_side=32, hold_out=("cat_",))
    assert [s.path.name for s in dataset.sources] == ["a.mp4", "b.mp4"]
    assert dataset.report.num_frames == 32
    assert [os.path.basename(p) for p in dataset.report.held_out] == ["cat_c.mp4"]
    only = ClipsDataset([folder], tmp_path / "cache", short_side=32, only=("cat_",))
    assert [s.path.name for s in only.sources] == ["cat_c.mp4"]


def test_unreadable_files_are_skipped_counted_and_named(folder, tmp_path, caplog):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video at all" * 100)
    whole = (folder / "a.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        dataset = ClipsDataset([folder], tmp_path / "cache", short_side=32)
    names = {os.path.basename(p) for p in dataset.report.unreadable}
    assert names == {"empty.mp4", "text.mp4", "cut.mp4"}
    assert dataset.report.num_files == 6
    assert len(dataset) == 3
    assert "3 unreadable" in caplog.text
    assert all(name in caplog.text for name in names)
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == 3 * [".json"] + 3 * [".npy"]


def test_a_file_of_too_many_frames_is_named(folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = ClipsDataset([folder], tmp_path / "cache", short_side=32, max_frames_per_file=15)
    assert [Path(p.split("'")[1]).name for p in dataset.report.cut] == ["b.mp4"]
    assert "only the first frames used" in caplog.text
    assert "b.mp4' (15 frames, 2 s)" in caplog.text
    caplog.clear()
    exactly = ClipsDataset([folder], tmp_path / "cache", short_side=32, max_frames_per_file=20, captions=False)
    assert not exactly.report.cut  # it has all of its frames
    assert not caplog.text


def test_two_at_once_decode_the_same_file(folder, tmp_path):
    """Processes that share a cache and begin together; neither breaks the other's files."""
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: cached_frames(folder / "sub/b.mp4", tmp_path / "cache", 32, 100), range(8)))
    assert len({cached.path for cached in paths}) == 1
    path = paths[0].path
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [path.with_suffix(".json").name, path.name]
    assert np.load(path).shape[0] == 20


@pytest.mark.parametrize("kind", ["missing", "empty", "unreadable"])
def test_nothing_to_train_on_is_an_error(tmp_path, kind):
    folder = tmp_path / "data"
    if kind != "missing":
        folder.mkdir()
    if kind == "unreadable":
        (folder / "a.mp4").write_bytes(b"")
    with pytest.raises(KinemaError, match=f"`data` .*{folder}"):
        ClipsDataset([folder], tmp_path / "cache")


def test_frames_are_decoded_once_and_again_when_the_file_changes(folder, tmp_path, make_video):
    path, cache = folder / "a.mp4", tmp_path / "cache"
    first = cached_frames(path, cache, 1000, 100)
    np.testing.assert_array_equal(first.frames(), read_video(path).frames.numpy())
    written = first.path.stat().st_mtime_ns
    assert cached_frames(path, cache, 1000, 100).path == first.path
    assert first.path.stat().st_mtime_ns == written
    path.unlink()
    make_video(path, num_frames=5)
    second = cached_frames(path, cache, 1000, 100)
    assert second.path != first.path
    assert second.shape[0] == len(second.frames()) == 5
    few = cached_frames(path, cache, 1000, 3)
    assert few.shape[0] == len(few.frames()) == len(few.times.times) == 3
    assert few.times.is_cut
    assert not second.times.is_cut


def test_clips_are_a_function_of_the_generator(folder, tmp_path):
    dataset = ClipsDataset([folder], tmp_path / "cache", short_side=32)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        clips = [dataset.random_clip((9, 24, 24), generator, max_stride=2, max_zoom_out=1.3)[0] for _ in range(3)]
        return torch.stack(clips)

    assert draw(0).shape == (3, 3, 9, 24, 24)
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert draw(0).abs().max() <= 1


def test_unscaled_clips_hold_the_files_own_pixels(folder, tmp_path):
    dataset = ClipsDataset([folder], tmp_path / "cache", short_side=1000, only=("a",))
    frames = read_video(folder / "a.mp4").frames.permute(3, 0, 1, 2).float() / 127.5 - 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        clip, _ = dataset.random_clip((5, 40, 56), generator)
        windows = [frames[:, k : k + 5] for k in range(frames.shape[1] - 4)]
        assert any(torch.allclose(clip, w) or torch.allclose(clip, w.flip(-1)) for w in windows)


def test_short_and_small_files_still_give_clips(tmp_path, make_video):
    make_video(tmp_path / "data/short.mp4", num_frames=3, height=16, width=20)
    dataset = ClipsDataset([tmp_path / "data"], tmp_path / "cache")
    clip, _ = dataset.random_clip((9, 32, 32), torch.Generator().manual_seed(0), max_stride=3)
    assert clip.shape == (3, 9, 32, 32)
    # The crop is square as the clip is: its bars rise across it by less than across the whole, wider frame.
    rise = (clip[:, 0, 16, -1] - clip[:, 0, 16, 0]).abs() * 127.5
    assert rise.max() < 3 * 16
    image, _ = dataset.random_clip((1, 8, 8), torch.Generator().manual_seed(0), max_stride=3)
    assert image.shape == (3, 1, 8, 8)


def test_captions_come_with_the_clips(folder, tmp_path):
    (folder / "a.txt").write_text("bars that move")
    dataset = ClipsDataset([folder], tmp_path / "cache", short_side=32, only=("a",))
    assert dataset.random_clip((1, 8, 8), torch.Generator().manual_seed(0))[1] == "bars that move"


def test_validation_clips_are_scaled_to_cover_and_cropped_at_the_centre(folder):
    clips = centre_clips(folder / "a.mp4", 2, (5, 20, 20))
    assert clips.shape == (2, 3, 5, 20, 20)
    assert not torch.equal(clips[0], clips[1])
    expected = cover_frame(read_video(folder / "a.mp4").frames[2], 20, 20).permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(clips[0][:, 0], expected)


def test_validation_clips_lie_evenly_in_a_file(folder):
    frames = read_video(folder / "sub/b.mp4").frames
    first = [clip[:, 0] for clip in centre_clips(folder / "sub/b.mp4", 3, (8, 20, 20))]
    for start, got in zip((3, 6, 9), first, strict=True):
        expected = cover_frame(frames[start], 20, 20).permute(2, 0, 1).float() / 127.5 - 1
        torch.testing.assert_close(got, expected)
    assert centre_clips(folder / "sub/b.mp4", 2, (50, 20, 20)).shape == (2, 3, 50, 20, 20)


def test_cover_frame_keeps_the_aspect():
    frame = torch.zeros(40, 80, 3, dtype=torch.uint8)
    assert cover_frame(frame, 20, 20).shape == (20, 20, 3)
    assert cover_frame(frame, 20, 20, crop=False).shape == (20, 40, 3)
    assert cover_frame(frame, 100, 100, crop=False).shape == (40, 80, 3)
    assert cover_frame(frame, 100, 100).shape == (100, 100, 3)


def test_bounce():
    assert bounce(np.arange(8), 3).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert bounce(np.arange(3), 1).tolist() == [0, 0, 0]


def test_other_files_are_not_videos(folder):
    (folder / "notes.md").write_text("x")
    assert len(list_videos(folder)) == 3


def test_frame_rates_leave_frames_out(folder, tmp_path):
    """The file has 8 frames a second; frame k of `b` is found again by its brightness."""
    dataset = ClipsDataset([folder], tmp_path / "cache", short_side=1000, only=("b",))
    frames = read_video(folder / "sub/b.mp4").frames.permute(0, 3, 1, 2).float() / 127.5 - 1

    def steps(rate: float, count: int) -> set[tuple[int, ...]]:
        found = set()
        generator = torch.Generator().manual_seed(0)
        for _ in range(12):
            clip, _ = dataset.random_clip((count, 40, 56), generator, frame_rates=(rate,), flip=False)
            places = [int((frames - frame).abs().mean(dim=(1, 2, 3)).argmin()) for frame in clip.transpose(0, 1)]
            found.add(tuple(np.diff(places).tolist()))
        return found

    assert steps(8.0, 4) == steps(30.0, 4) == {(1, 1, 1)}  # faster than the file: all its frames
    assert steps(4.0, 4) == {(2, 2, 2)}
    assert steps(3.2, 5) == {(2, 3, 2, 3)}  # what is shown at every 2.5th: 0, 2 (2.5), 5, 7 (7.5), 10
    assert steps(1.0, 4) == {(6, 6, 7)}  # every 8th would need 25 frames of 20: 0, 6 (6.3), 12 (12.7), 19
