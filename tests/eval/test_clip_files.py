"""Clips on disk: every kind of file gives the same frames, folders pair by name, and what cannot be read is counted."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from kinema.errors import KinemaError
from kinema.eval.clips import (
    ClipFile,
    ReadableClips,
    first_fps,
    list_clips,
    pair_clips,
    read_clip,
    read_fitted,
    read_fps,
    read_pairs,
)
from kinema.video import write_video


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


FRAMES = noise(11, 16, 24)


def write_pictures(folder: Path, frames: torch.Tensor) -> None:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):  # numbers are not padded: 10 comes after 9
        Image.fromarray(frame.numpy()).save(folder / f"frame_{index}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One clip in every kind of file."""
    write_video(tmp_path / "video.mkv", FRAMES, 12, lossless=True)
    np.save(tmp_path / "array.npy", FRAMES.numpy())
    np.save(tmp_path / "channels.npy", FRAMES.permute(0, 3, 1, 2).numpy())
    save_file({"clip": FRAMES.permute(3, 0, 1, 2).contiguous()}, tmp_path / "tensor.safetensors")
    save_file({"other": torch.zeros(2), "frames": FRAMES / 127.5 - 1}, tmp_path / "floats.safetensors")
    write_pictures(tmp_path / "deep" / "pictures", FRAMES)
    return tmp_path


def test_every_kind_of_file_gives_the_same_frames(folder: Path):
    clips = list_clips(folder)
    assert [clip.name for clip in clips] == ["array", "channels", "deep/pictures", "floats", "tensor", "video"]
    for clip in clips:
        assert torch.equal(read_clip(clip), FRAMES), clip.name


def test_lossy_files_are_read_too(tmp_path: Path):
    still = torch.full((4, 32, 32, 3), 90, dtype=torch.uint8)
    write_video(tmp_path / "a.mp4", still, 8)
    pictures = [Image.fromarray(frame.numpy()) for frame in still]
    pictures[0].save(tmp_path / "b.gif", save_all=True, append_images=pictures[1:], duration=125)
    (clip, gif) = list_clips(tmp_path)
    for each in (clip, gif):
        frames = read_clip(each)
        assert frames.shape[1:] == (32, 32, 3)
        assert (frames.int() - 90).abs().max() <= 3
    assert read_fps(clip) == 8
    assert read_fps(ClipFile("x", tmp_path / "x.npy"), 5.0) == 5.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 12), st.none() | st.integers(1, 12), st.integers(1, 5))
def test_part_of_a_clip(start: int, num_frames: int | None, stride: int):
    wanted = FRAMES[start::stride][:num_frames]
    for clip in PARTS:
        if len(wanted):
            assert torch.equal(read_clip(clip, start=start, num_frames=num_frames, stride=stride), wanted)
        else:
            with pytest.raises(KinemaError, match=f"must have a frame at {start}"):
                read_clip(clip, start=start, num_frames=num_frames, stride=stride)


PARTS: list[ClipFile] = []


@pytest.fixture(autouse=True, scope="module")
def _parts(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("parts")
    write_video(folder / "video.mp4", FRAMES, 12, lossless=True)
    np.save(folder / "array.npy", FRAMES.numpy())
    write_pictures(folder / "pictures", FRAMES)
    PARTS[:] = list_clips(folder)


def test_resolution_scales_the_short_side_and_crops(tmp_path: Path):
    half = torch.zeros(3, 40, 80, 3, dtype=torch.uint8)
    half[:, :, 40:] = 255
    np.save(tmp_path / "a.npy", half.numpy())
    frames = read_fitted(list_clips(tmp_path)[0], num_frames=2, resolution=20)
    assert frames.shape == (2, 20, 20, 3)
    assert frames[:, :, :9].max() == 0
    assert frames[:, :, 11:].min() == 255


def test_pictures_beside_clips_and_hidden_files_are_no_clips(tmp_path: Path):
    np.save(tmp_path / "a.npy", FRAMES.numpy())
    Image.new("RGB", (8, 8)).save(tmp_path / "contact_sheet.png")
    (tmp_path / ".hidden.mp4").write_text("no clip")
    write_pictures(tmp_path / ".cache", FRAMES[:1])
    assert [clip.name for clip in list_clips(tmp_path)] == ["a"]


def test_clips_come_in_counting_order(tmp_path: Path):
    names = [f"video_{number}" for number in (0, 1, 2, 9, 10, 11, 100, 9999, 10000)]
    for side in ("left", "right"):
        (tmp_path / side).mkdir()
        for name in reversed(names):
            (tmp_path / side / f"{name}{'.mp4' if side == 'left' else '.npy'}").write_bytes(b"x")
    left, right = list_clips(tmp_path / "left"), list_clips(tmp_path / "right")
    assert [clip.name for clip in left] == names
    assert [(one.name, other.name) for one, other in pair_clips(left[::-1], right)] == [(n, n) for n in names]
    for index, name in enumerate(("a2/x", "a10/x", "a10/y1", "a10/y01", "a010/x", "0000", "10000")):
        path = tmp_path / "deep" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([index]))
    listed = [clip.name for clip in list_clips(tmp_path / "deep")]
    assert listed == ["0000", "10000", "a2/x", "a010/x", "a10/x", "a10/y01", "a10/y1"]


def test_what_is_no_file_is_no_clip(tmp_path: Path):
    np.save(tmp_path / "a.npy", FRAMES.numpy())
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self.mp4").symlink_to(tmp_path / "self.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "none.mp4")
    clips = list_clips(tmp_path)
    assert [clip.name for clip in clips] == ["a", "gone", "self"]
    readable = ReadableClips(clips, max_unreadable=0.9)
    assert [name for name, _ in readable] == ["a"]
    assert sorted(readable.unreadable) == ["gone", "self"]  # a dangling link is a clip that someone expects


def test_pictures_of_a_folder_are_its_files(tmp_path: Path):
    write_pictures(tmp_path / "a", FRAMES)
    os.mkfifo(tmp_path / "a" / "frame_3b.png")
    (clip,) = list_clips(tmp_path)
    assert torch.equal(read_clip(clip), FRAMES)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("bad \x1b[31m"), ZeroDivisionError("x"), struct.error("y")]
)
def test_whatever_a_reader_raises_is_counted_and_named(many: list[ClipFile], error: Exception):
    def read(clip: ClipFile) -> torch.Tensor:
        if clip.name == "4":
            raise error
        return FRAMES

    clips = ReadableClips(many, max_unreadable=0.1, read=read)
    assert len(list(clips)) == 9
    assert "4.npy" in clips.unreadable["4"]
    assert clips.unreadable["4"].isprintable()


def test_a_folder_of_pictures_alone_is_one_clip(tmp_path: Path):
    write_pictures(tmp_path / "mine", FRAMES)
    (clip,) = list_clips(tmp_path / "mine")
    assert clip.name == "mine"
    assert torch.equal(read_clip(clip), FRAMES)


@pytest.mark.parametrize("suffix", [".PNG", ".webp", ".bmp", ".tif"])
def test_pictures_of_any_lossless_kind(tmp_path: Path, suffix: str):
    for index, frame in enumerate(FRAMES):
        Image.fromarray(frame.numpy()).save(tmp_path / f"{index}{suffix}", lossless=True)
    (clip,) = list_clips(tmp_path)
    assert torch.equal(read_clip(clip), FRAMES)


def test_folders_that_are_refused(tmp_path: Path):
    with pytest.raises(KinemaError, match=r"`real` .* must be a folder of clips"):
        list_clips(tmp_path / "none", argument="real")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(KinemaError, match=r"`folder` .* must have a clip"):
        list_clips(tmp_path)
    np.save(tmp_path / "a.npy", FRAMES.numpy())
    (tmp_path / "a.mp4").write_text("another")
    with pytest.raises(KinemaError, match=r"one clip of each name, and has a\.mp4 and a\.npy"):
        list_clips(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"of shape \(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), "must be `t h w 3`"),
        (np.zeros((2, 4, 8, 8, 3), np.uint8), "must be `t h w 3`"),
        (np.full((4, 8, 8, 3), 1.5, np.float32), r"in \[1\.5, 1\.5\]\) must be floats in \[-1, 1\]"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), r"must be floats in \[-1, 1\]"),
        (np.zeros((4, 8, 8, 3), np.int64), "must be of uint8, or of floats"),
        (np.zeros((0, 8, 8, 3), np.uint8), "must have a frame at 0"),
        (np.array([{"a": 1}], dtype=object), r"must be a complete \.npy file"),
    ],
    ids=["3 axes", "4 channels", "5 axes", "out of range", "nan", "integers", "empty", "pickle"],
)
def test_tensors_that_are_refused(values: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(KinemaError, match=message):
        read_clip(ClipFile("a", tmp_path / "a.npy"))


def test_other_files_that_are_refused(tmp_path: Path):
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    (tmp_path / "text.mp4").write_text("no video")
    write_pictures(tmp_path / "mixed", FRAMES[:2])
    Image.new("RGB", (5, 5)).save(tmp_path / "mixed" / "frame_2.png")
    for name, message in (
        ("cut.safetensors", r"must be a complete \.safetensors file"),
        ("two.safetensors", "must hold one tensor, or one named `frames`"),
        ("text.mp4", "must be a video file"),
        ("mixed", "must have frames of one size"),
    ):
        with pytest.raises(KinemaError, match=message):
            read_clip(ClipFile("a", tmp_path / name))


def test_pairs_by_name_whatever_the_suffix(tmp_path: Path):
    left = [ClipFile(name, tmp_path / f"{name}.mp4") for name in ("b", "a")]
    right = [ClipFile(name, tmp_path / f"{name}.npy") for name in ("a", "b")]
    assert [(x.name, y.path.name) for x, y in pair_clips(left, right)] == [("a", "a.npy"), ("b", "b.npy")]
    with pytest.raises(KinemaError, match=r"`fake` must have a clip for each of `real`, and has none named 'b'"):
        pair_clips(left, right[:1], ("real", "fake"))
    more = [*right, *(ClipFile(f"x{i}", tmp_path / "x") for i in range(5))]
    with pytest.raises(KinemaError, match=r"`reference` .* none named 'x0', 'x1', 'x2' and 2 more"):
        pair_clips(left, more)


@pytest.fixture
def many(tmp_path: Path) -> list[ClipFile]:
    """Ten clips, two of which cannot be read."""
    for index in range(10):
        np.save(tmp_path / f"{index}.npy", noise(2, 4, 4, seed=index).numpy())
    for index in (3, 6):
        (tmp_path / f"{index}.npy").write_bytes(b"broken")
    return list_clips(tmp_path)


def test_unreadable_clips_are_skipped_counted_and_named(many: list[ClipFile]):
    clips = ReadableClips(many, max_unreadable=0.2)
    for _ in range(2):  # a second time, it counts anew
        assert [name for name, _ in clips] == list("01245789")
        assert sorted(clips.unreadable) == ["3", "6"]
        assert all("must be a complete .npy file" in reason for reason in clips.unreadable.values())


def test_too_many_unreadable_clips_are_an_error(many: list[ClipFile]):
    with pytest.raises(KinemaError, match=r"`real` \(2 of 10 clips unreadable\) must be at least 90% readable"):
        list(ReadableClips(many, max_unreadable=0.1, argument="real"))
    with pytest.raises(KinemaError, match=r"`max_unreadable` \(=1\.5\)"):
        ReadableClips(many, max_unreadable=1.5)


def test_processes_share_the_clips(many: list[ClipFile]):
    shares = [ReadableClips(many, rank=rank, world_size=3).share for rank in range(3)]
    assert sorted(clip.name for share in shares for clip in share) == [clip.name for clip in many]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_pairs_of_which_one_is_unreadable_are_skipped(many: list[ClipFile]):
    good = [clip for clip in many if clip.name in "01245789"]
    pairs = [(clip, clip if clip.name != "1" else many[3]) for clip in good]
    left, right = ReadableClips(good), ReadableClips(good, max_unreadable=0.5)
    found = list(read_pairs(pairs, left, right))
    assert [name for name, _, _ in found] == list("0245789")
    assert all(torch.equal(one[:2], other[:2]) for _, one, other in found)
    assert not left.unreadable
    assert list(right.unreadable) == ["3"]


def test_the_first_clip_that_can_be_read_says_the_rate(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"broken")
    write_video(tmp_path / "b.mp4", torch.zeros(3, 16, 16, 3, dtype=torch.uint8), 12)
    assert first_fps(list_clips(tmp_path), 8.0) == 12
    (tmp_path / "b.mp4").write_bytes(b"broken, too")
    assert first_fps(list_clips(tmp_path), 8.0) == 8


def test_what_was_unreadable_before_counts_again(tmp_path: Path):
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", np.zeros((2, 8, 8, 3), np.uint8))
    clips = ReadableClips(list_clips(tmp_path), max_unreadable=0.25)
    clips.adopt({"2": "broken"})
    assert clips.unreadable == {"2": "broken"}
    with pytest.raises(KinemaError, match=r"`clips` \(2 of 4 clips unreadable\)"):
        clips.adopt({"2": "broken", "3": "broken"})
