"""Data as people have it: files broken in many ways, odd names, damaged caches, full disks, missing captions."""

import dataclasses
import errno
import io
import json
import os
import random
import wave
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import diffusion, tokenizer
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig
from kinema.training.data import frames
from kinema.training.data.clips import ClipsDataset
from kinema.training.data.frames import cached_frames
from kinema.training.data.report import ClipsReport
from kinema.training.data.sources import CaptionedClips
from kinema.video import VideoReader


def audio(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))


def changing_size(path: Path) -> None:
    """Motion JPEG whose pictures have two sizes."""
    pictures = io.BytesIO()
    for side in (16, 16, 32, 32):
        Image.new("RGB", (side, side), "red").save(pictures, "JPEG")
    path.write_bytes(pictures.getvalue())


def broken_files(folder: Path, whole: bytes, number: int) -> list[str]:
    """Makes a file of each broken kind, and returns the names."""
    kinds: dict[str, Callable[[Path], object]] = {
        "empty": Path.touch,
        "cut": lambda path: path.write_bytes(whole[: len(whole) // 2]),
        "start": lambda path: path.write_bytes(whole[:40]),
        "text": lambda path: path.write_text("no video at all " * 20),
        "noise": lambda path: path.write_bytes(random.Random(number).randbytes(2000)),
        "zeros": lambda path: path.write_bytes(bytes(2000)),
        "audio": audio,
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "nowhere": lambda path: path.symlink_to("missing.mp4"),
        "circle": lambda path: path.symlink_to(path.name),
    }
    for kind, make in kinds.items():
        make(folder / f"{kind}_{number}.mp4")
    return [f"{kind}_{number}.mp4" for kind in kinds]


@pytest.fixture
def many(tmp_path, make_video) -> tuple[Path, set[str]]:
    """A folder of 200 files of which 44 are broken, and the names of those."""
    whole = make_video(tmp_path / "one.mp4", num_frames=5, height=16, width=16).read_bytes()
    folder = tmp_path / "data"
    folder.mkdir()
    broken = {name for number in range(4) for name in broken_files(folder, whole, number)}
    for number in range(200 - len(broken)):
        (folder / f"clip_{number}.mp4").write_bytes(whole)
    (folder / "captions.jsonl").write_text(
        "".join(json.dumps({"file": file.name, "caption": "bars move"}) + "\n" for file in sorted(folder.iterdir()))
    )
    return folder, broken


def test_200_files_of_which_44_are_broken(many, tmp_path, tiny_tokenizer_folder, caplog):
    """Both trainings run and name each broken file; what is decoded for the one serves the other."""
    folder, broken = many
    common: dict[str, Any] = dict(
        data=(str(folder),),
        cache_dir=tmp_path / "cache",
        num_steps=1,
        batch_size=2,
        num_workers=0,
        cpu=True,
    )
    first = TokenizerTrainingConfig(
        preset="x", shapes=("5x16x16",), validation=("clip_1.",), validation_shape="5x16x16", validation_clips=1,
        output=tmp_path / "one", **common,
    )  # fmt: skip
    tokenizer.train(first, CausalVideoTokenizer(**TINY))
    told = [caplog.text]
    caplog.clear()
    second = DiffusionTrainingConfig(
        preset="tiny", tokenizer=tiny_tokenizer_folder, shape="5x16x16", num_clips=2, validation_clips=0,
        output=tmp_path / "two", **common,
    )  # fmt: skip
    diffusion.train(second)
    told.append(caplog.text)
    report: dict[str, Any] = {}
    for config, text in zip((first, second), told, strict=True):
        (report,) = json.loads((config.run_dir / "data_report.json").read_text())
        assert {os.path.basename(name) for name in report["unreadable"]} == broken
        assert report["num_files"] == 200 - len(report["held_out"])
        assert all(name in text for name in broken)
        assert "44 unreadable" in text
        assert "Traceback" not in text
    assert not [file for file in (tmp_path / "cache").iterdir() if file.name.startswith(".kinema-")]
    reasons = report["unreadable"]
    assert reasons[str(folder / "pipe_0.mp4")] == "is a pipe, a socket or a device"
    assert reasons[str(folder / "folder_0.mp4")] == "is a folder"
    assert reasons[str(folder / "nowhere_0.mp4")] == "is a link that leads nowhere"
    assert reasons[str(folder / "empty_0.mp4")] == "must not be an empty file"


def test_frames_of_changing_size_are_unreadable(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4")
    changing_size(tmp_path / "data/b.avi")
    report = ClipsDataset([tmp_path / "data"], tmp_path / "cache", short_side=32).report
    assert list(report.unreadable.values()) == ["must have frames of one size, not 16x16 and then 32x32"]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), ValueError("odd"), RuntimeError("x")]
)
def test_whatever_a_reader_raises_is_the_problem_of_one_file(tmp_path, make_video, monkeypatch, error):
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "data" / name, height=16, width=16)
    timed = VideoReader.timed

    def failing(reader):
        for index, item in enumerate(timed(reader)):
            if index == 2 and reader.path.name == "a.mp4":
                raise error
            yield item

    monkeypatch.setattr(VideoReader, "timed", failing)
    dataset = ClipsDataset([tmp_path / "data"], tmp_path / "cache", short_side=16)
    assert [source.path.name for source in dataset.sources] == ["b.mp4"]
    assert type(error).__name__ in dataset.report.unreadable[str(tmp_path / "data/a.mp4")]
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing", "times cut", "times missing", "times noise"])
def test_a_damaged_cache_is_made_anew(tmp_path, make_video, damage):
    path = make_video(tmp_path / "a.mp4", height=16, width=16)
    first = cached_frames(path, tmp_path / "cache", 16, 100)
    whole = np.array(first.frames())
    file = first.path.with_suffix(".json") if "times" in damage else first.path
    content = file.read_bytes()
    file.unlink()
    if "missing" not in damage:
        file.write_bytes({"cut": content[:-100], "empty": b""}.get(damage.split()[-1], b"PK\x03\x04" + bytes(300)))
    again = cached_frames(path, tmp_path / "cache", 16, 100)
    np.testing.assert_array_equal(again.frames(), whole)
    assert file.read_bytes() == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_no_problem_of_a_file(tmp_path, make_video, monkeypatch, code):
    make_video(tmp_path / "data/a.mp4", height=16, width=16)

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(frames, "_write_header", full)
    with pytest.raises(
        KinemaError, match=rf"`cache_dir` \(='.*cache'\) must be a folder with room.*{os.strerror(code)}"
    ):
        ClipsDataset([tmp_path / "data"], tmp_path / "cache", short_side=16)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_made_is_named(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", height=16, width=16)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KinemaError, match=r"`cache_dir` \(='.*cache'\) must be a folder"):
        ClipsDataset([tmp_path / "data"], tmp_path / "cache", short_side=16)


@pytest.mark.parametrize(
    "name", [b"-a.mp4", b"a\nb.mp4", b'it\'s "a".mp4', b"caf\xe9.mp4", b"%s%d.mp4", b"x" * 250 + b".mp4", b"a|b.mp4"]
)
def test_odd_names_of_files(tmp_path, make_video, name, caplog, capsys):
    whole = make_video(tmp_path / "one.mp4", num_frames=5, height=16, width=16).read_bytes()
    good, bad = tmp_path / "good", tmp_path / "bad"
    try:
        for folder, content in ((good, whole), (bad, b"no video")):
            folder.mkdir()
            (folder / os.fsdecode(name)).write_bytes(content)
    except OSError:
        pytest.skip("this file system does not take the name")
    caption = {"file": os.fsdecode(name), "caption": "bars"}
    (good / "captions.jsonl").write_text(json.dumps(caption))
    config = DiffusionTrainingConfig(
        preset="tiny", data=(str(good),), cache_dir=tmp_path / "cache", shape="5x16x16", cache_short_side=16
    )
    clips = CaptionedClips(config)
    assert clips([0])[1] == ["bars"]
    assert clips.fingerprint()
    with pytest.raises(KinemaError, match="must hold at least one readable video file"):
        ClipsDataset([bad], tmp_path / "cache")
    report = tmp_path / "report.json"
    clips.save_report(report)
    assert json.loads(report.read_text())[0]["num_files"] == 1
    assert all(line.isprintable() for line in caplog.text.splitlines())
    assert "Logging error" not in capsys.readouterr().err


def captioned(folder: Path, whole: bytes, with_captions: int, without: int) -> Path:
    folder.mkdir()
    for number in range(with_captions + without):
        (folder / f"{number}.mp4").write_bytes(whole)
    rows = [{"file": f"{number}.mp4", "caption": "bars" if number < with_captions else ""}
            for number in range(with_captions + without)]  # fmt: skip
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_files_without_a_caption_are_counted_and_named(tmp_path, make_video, caplog):
    whole = make_video(tmp_path / "one.mp4", num_frames=2, height=16, width=16).read_bytes()
    few, most, none = (captioned(tmp_path / name, whole, *n) for name, n in
                       {"few": (3, 2), "most": (3, 9), "none": (0, 2)}.items())  # fmt: skip
    with (few / "captions.jsonl").open("a") as file:
        file.write(json.dumps({"file": "typo.mp4", "caption": "lost"}) + "\n")
    report = ClipsDataset([few], tmp_path / "cache").report
    assert report.without_caption == [str(few / "3.mp4"), str(few / "4.mp4")]
    assert "2 of 5 files have no caption" in caplog.text
    assert f"no caption: {str(few / '3.mp4')!r}" in caplog.text
    assert f"no file: {few / 'captions.jsonl'}:6: 'typo.mp4' is no video file of the folder" in caplog.text
    assert "hardly learns" not in caplog.text
    caplog.clear()
    ClipsDataset([most], tmp_path / "cache")
    assert "9 of 12 files have no caption" in caplog.text
    assert "no caption: 4 more" in caplog.text
    assert f"`data` (={most}) has no captions for 9 of its 12 files" in caplog.text
    caplog.clear()
    ClipsDataset([most], tmp_path / "cache", captions=False)  # a tokenizer needs none
    assert not caplog.text
    config = DiffusionTrainingConfig(
        preset="tiny", data=(str(none),), cache_dir=tmp_path / "cache", shape="1x16x16", cache_short_side=160
    )
    with pytest.raises(KinemaError, match=r"`data` .*none.* must have captions: `captions.jsonl`"):
        CaptionedClips(config).check_captions()
    CaptionedClips(dataclasses.replace(config, data=(str(none), str(few)))).check_captions()
    (none / "captions.jsonl").write_text(json.dumps({"file": "z.mp4", "caption": "lost"}))
    with pytest.raises(KinemaError, match=r"1 captions fit no file, the first is .*captions.jsonl:1: 'z.mp4'"):
        CaptionedClips(config).check_captions()


def test_a_long_report_names_the_first_files(tmp_path):
    report = ClipsReport(num_files=99, unreadable={f"{n}\n.mp4": "is a folder" for n in range(70)})
    assert len(str(report).splitlines()) == 52
    assert str(report).endswith("skipped 20 more")


def test_a_long_file_is_decoded_up_to_the_limit_and_not_held_in_memory(tmp_path, make_video, monkeypatch):
    path = make_video(tmp_path / "data/long.mp4", num_frames=60, height=16, width=16)
    decoded: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []
    timed = VideoReader.timed

    def counting(reader):
        for seconds, frame in timed(reader):
            held.append(sum(reference() is not None for reference in decoded))
            decoded.append(weakref.ref(frame))
            yield seconds, frame

    monkeypatch.setattr(VideoReader, "timed", counting)
    dataset = ClipsDataset([path.parent], tmp_path / "cache", short_side=16, max_frames_per_file=20)
    assert len(decoded) == 21  # one more, to know that there are more
    assert max(held) <= 2
    assert dataset.sources[0].cached.shape == (20, 16, 16)
    assert dataset.report.cut == [f"{str(path)!r} (20 frames, 2 s)"]
