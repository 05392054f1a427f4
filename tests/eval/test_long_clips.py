"""Clips too long for memory: measured in windows with the same result, and memory that does not grow with them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.clips import ClipFile, LongClip, Reading, WindowPicker, open_clip, pick_windows, read_clip
from kinema.eval.frames.features import FrameFeatures
from kinema.eval.frames.fid import FrameFID
from kinema.eval.fvd import FrechetVideoDistance, LenientDistance, Protocol, Resize, VideoFeatures, evaluate_fvd
from kinema.eval.generation import DEFAULT_METRICS, evaluate_generation
from kinema.eval.generation.looks import Networks
from kinema.eval.networks.i3d import I3D
from kinema.eval.reconstruction import compare_clips, evaluate_reconstruction
from kinema.eval.round_trip import LongReconstruction, reconstruct_clip
from kinema.eval.text.clip import CLIPEncoder
from kinema.eval.windows import in_windows, regrouped
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import VideoWriter, write_video

LENGTH = 61


def moving(seed: int, length: int = LENGTH, side: int = 16) -> Tensor:
    """Noise that drifts, faster from frame to frame, so that no two frames are alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8)
    return torch.cat([noise.roll((index * index // 30, index // 2), (1, 2)) for index in range(length)])


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of more than a few frames are long, and windows are short."""
    monkeypatch.setattr("kinema.eval.clips.reading.WHOLE_BYTES", 5 * 16 * 16 * 3)
    monkeypatch.setattr("kinema.eval.windows.WINDOW_BYTES", 11 * 16 * 16 * 3)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, ClipFile]:
    """A clip and a changed one in a file each, of several kinds."""
    write_video(tmp_path / "a.mkv", moving(0), 8, lossless=True)
    np.save(tmp_path / "b.npy", (moving(0) // 2 + moving(1) // 3 + 20).numpy())
    return {name: ClipFile(name, tmp_path / file) for name, file in {"a": "a.mkv", "b": "b.npy"}.items()}


@given(st.lists(st.integers(1, 7), min_size=1, max_size=12), st.integers(1, 9), st.integers(0, 4), st.integers(0, 3))
def test_windows_cover_each_frame_once_with_its_neighbours(pieces: list[int], length: int, before: int, after: int):
    frames = torch.arange(sum(pieces), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)
    split = zip(frames.split(pieces), (255 - frames).split(pieces), strict=True)
    found: list[int] = []
    for counted, (one, other) in in_windows(split, length, before=before, after=after):
        assert torch.equal(one, 255 - other)
        values = one[:, 0, 0, 0].tolist()
        assert values == list(range(values[0], values[0] + len(values)))
        first, last = values[counted.start], values[counted.stop - 1]
        assert values[0] == max(0, first - before)
        assert values[-1] == min(sum(pieces) - 1, last + after)
        assert len(values) <= before + length + 2 * after
        found += values[counted]
    assert found == list(range(sum(pieces)))


@given(st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=6).map(sorted), max_size=6), st.integers(1, 7))
def test_windows_are_picked_out_of_a_stream(windows: list[list[int]], size: int):
    frames = torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)
    picker = WindowPicker(map(torch.tensor, windows))
    found = [window[:, 0, 0, 0].tolist() for piece in frames.split(size) for window in picker.push(piece)]
    assert picker.is_done
    assert sorted(found) == sorted(windows)
    assert not picker._kept


@pytest.mark.usefixtures("long")
def test_a_long_clip_is_like_a_tensor(files: dict[str, ClipFile]):
    for name in files:
        whole = read_clip(files[name])
        clip = open_clip(files[name])
        assert isinstance(clip, LongClip)
        assert (clip.shape, clip.ndim, len(clip), clip.dtype) == (whole.shape, 4, LENGTH, torch.uint8)
        assert torch.equal(torch.cat(list(clip.split(7))), whole)
        assert torch.equal(torch.stack(list(clip)), whole)
        assert torch.equal(clip[:9], whole[:9])
        indices = [torch.tensor([3, 5, 7]), torch.tensor([0, 1]), torch.tensor([60, 60])]
        assert sorted(w.sum().item() for w in pick_windows(clip, indices)) == sorted(
            whole[index].sum().item() for index in indices
        )
        part = open_clip(files[name], Reading(start=2, num_frames=4, stride=3))
        assert isinstance(part, Tensor)
        assert torch.equal(part, whole[2::3][:4])


@pytest.mark.usefixtures("long")
def test_a_clip_that_changes_while_it_is_read(files: dict[str, ClipFile]):
    clip = open_clip(files["b"])
    np.save(files["b"].path, moving(0)[:50].numpy())
    with pytest.raises(KinemaError, match="must not change while it is read"):
        list(clip.split(7))


class Drift(nn.Module):
    """In place of a flow network: what its input decides, smoothly."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(a - b).mean(1) * 9 + 3, (a + b).mean(1)], 1)


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)).repeat(1, 2)


class Colours(CLIPEncoder):
    """In place of CLIP."""

    def __init__(self) -> None:
        self.name = "colours"

    def image_features(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images.float()[:, :, :4].mean(dim=(2, 3)) - 120, dim=-1)

    def text_features(self, texts: Any) -> Tensor:
        return torch.eye(3)[[0] * len(texts)]


class Tiny(I3D):
    """In place of I3D."""

    num_features = 6

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, video: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool3d(video[:, :1], (2, 1, 3)).flatten(1)


def features(**changes: Any) -> VideoFeatures:
    small = Resize(size=12, mode="crop", antialias=False)
    return VideoFeatures(Protocol(**{"name": "plain", "num_frames": 9, "network": small} | changes), network=Tiny())


def patch_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kinema.eval.motion.flow.load_flow", lambda *_: Drift())
    monkeypatch.setattr("kinema.eval.frames.fid.make", lambda *_: FrameFID(dim=6))
    monkeypatch.setattr("kinema.eval.reconstruction.load_features", lambda *_: FrameFeatures(Means()))


def close(one: Any, other: Any) -> bool:
    """Whether two reports say the same but for round-off."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-5, abs=1e-6) if isinstance(one, float) else one == other


@pytest.mark.usefixtures("long")
def test_frame_metrics_in_windows_are_those_of_the_whole(files: dict[str, ClipFile], monkeypatch: pytest.MonkeyPatch):
    patch_networks(monkeypatch)
    metrics = ("psnr", "ssim", "flicker", "warping_error", "fid", "kid")
    distances = [FrechetVideoDistance(features=features(position="consecutive", clips_per_video=0)) for _ in range(2)]
    clips = open_clip(files["a"]), open_clip(files["b"])
    watched = []
    watch = lambda name, a, b: watched.append((name, a[:7], b[:7]))  # noqa: E731
    found = compare_clips([("x", *clips)], metrics, fvd=LenientDistance(distances[0]), watch=watch)
    monkeypatch.setattr("kinema.eval.windows.WINDOW_BYTES", 2**24)
    whole = read_clip(files["a"]), read_clip(files["b"])
    wanted = compare_clips([("x", *whole)], metrics, fvd=distances[1])
    assert close(found.as_dict(), wanted.as_dict())
    assert found.clips[0].num_frames == LENGTH
    ((name, first, second),) = watched
    assert (name, first.shape) == ("x", (7, 16, 16, 3))
    assert torch.equal(second, whole[1][:7])


def test_vmaf_in_windows_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    pair = moving(0, 20, 32), moving(0, 20, 32) // 2 + moving(1, 20, 32) // 3
    wanted = compare_clips([("x", *pair)], ["vmaf"])
    monkeypatch.setattr("kinema.eval.windows.WINDOW_BYTES", 1)  # windows of 8 frames
    assert close(compare_clips([("x", *pair)], ["vmaf"]).as_dict(), wanted.as_dict())


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("fps", [4.0, 8.0, 25.0, 60.0])
def test_metrics_of_generated_clips_in_windows_are_those_of_the_whole(
    files: dict[str, ClipFile], fps: float, monkeypatch: pytest.MonkeyPatch
):
    def report(frames: Any) -> dict[str, Any]:
        networks = Networks(clip=Colours(), frame_network=Means(), flow=Drift(), fps=fps, stream_frames=13)
        metrics = ("clip_score", *DEFAULT_METRICS, "stream_t")
        clips = [(f"c{index}", frames[name], "p") for index, name in enumerate("abbaab")]
        reference = [(f"c{index}", frames["a"]) for index in range(6)]
        return evaluate_generation(clips, metrics, networks=networks, reference=reference).as_dict()

    found = report({name: open_clip(file) for name, file in files.items()})
    monkeypatch.setattr("kinema.eval.windows.WINDOW_BYTES", 2**24)
    assert close(found, report({name: read_clip(file) for name, file in files.items()}))
    assert found["num_frames"] == 6 * LENGTH


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize(
    "changes",
    [
        {"position": "random", "clips_per_video": 3},
        {"position": "center"},
        {"position": "first", "stride": 4},
        {"position": "consecutive", "clips_per_video": 0},
        {"num_frames": None},
    ],
)
def test_fvd_of_long_clips_is_that_of_clips_in_memory(files: dict[str, ClipFile], changes: dict[str, Any]):
    def clips(read: Any, *names: str) -> Iterator[tuple[str, Any]]:
        return ((f"c{index}", read(files[name])) for index, name in enumerate(names))

    results = [
        evaluate_fvd(clips(read, "a", "b"), clips(read, "b", "b"), features=features(**changes), extra=())
        for read in (open_clip, read_clip)
    ]
    assert results[0].value == pytest.approx(results[1].value, rel=1e-9)
    assert results[0].num_real == results[1].num_real


def test_whole_clips_in_fvd_have_a_limit():
    protocol = Protocol(name="plain", num_frames=None, stride=2)
    assert len(protocol.windows("a", 2048)[0]) == 1024
    with pytest.raises(KinemaError, match=r"clip 'a' \(of 2049 frames\) must have at most 2048 frames .* `num_frames`"):
        protocol.windows("a", 2049)


def test_kid_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    from kinema.eval.frames.kid import FrameKID

    monkeypatch.setattr("kinema.eval.frames.kid.MOST_FRAMES", 10)
    metric = FrameKID()
    metric.update(torch.zeros(6, 3), torch.zeros(6, 3))
    with pytest.raises(KinemaError, match=r"`frames` \(=12 of a side\) must be at most 10 for KID"):
        metric.update(torch.zeros(6, 3), torch.zeros(6, 3))


@pytest.fixture(scope="module")
def tokenizer() -> CausalVideoTokenizer:
    torch.manual_seed(0)
    return CausalVideoTokenizer(**TINY).eval()


@pytest.mark.usefixtures("long")
@pytest.mark.parametrize("chunk", [None, 9, 4])
def test_reconstructions_of_long_clips(files: dict[str, ClipFile], tokenizer: Any, chunk: int | None):
    distance = FrechetVideoDistance(features=features(clips_per_video=2, position="random"))
    metrics = ("psnr", "flicker")
    clips = [(name, open_clip(file)) for name, file in files.items()]
    found = evaluate_reconstruction(tokenizer, clips, metrics, chunk=chunk, fvd=distance)
    in_memory = [(name, read_clip(file)) for name, file in files.items()]
    again = FrechetVideoDistance(features=features(clips_per_video=2, position="random"))
    wanted = evaluate_reconstruction(tokenizer, in_memory, metrics, chunk=chunk, fvd=again)
    for name in metrics:
        assert found.metrics[name] == pytest.approx(wanted.metrics[name], rel=1e-3)
        assert found.chunk_border[name] == pytest.approx(wanted.chunk_border[name], rel=1e-3)
    assert found.fvd.value == pytest.approx(wanted.fvd.value, rel=1e-2)
    assert [clip.num_frames for clip in found.clips] == [LENGTH, LENGTH]


def test_large_clips_in_memory_are_streamed(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    clip = moving(0)
    wanted = reconstruct_clip(tokenizer, clip)
    monkeypatch.setattr("kinema.eval.round_trip._STREAMED_BYTES", 1)
    monkeypatch.setattr("kinema.eval.windows.WINDOW_BYTES", 1)
    assert (reconstruct_clip(tokenizer, clip).int() - wanted.int()).abs().max() <= 1


@pytest.mark.usefixtures("long")
def test_a_tokenizer_without_streams_needs_chunks(files: dict[str, ClipFile]):
    clip = open_clip(files["a"])
    assert isinstance(clip, LongClip)
    names = ("temporal_compression_ratio", "spatial_compression_ratio", "latent_channels", "encode", "decode")
    unused: Any = dict.fromkeys((*names, "normalize", "denormalize"), id)
    identity: Any = SimpleNamespace(reconstruct=lambda video: video, **unused)
    with pytest.raises(KinemaError, match=r"`chunk` \(=None, the whole clip\) must be given for a clip of 61 frames"):
        LongReconstruction(identity, clip, None)
    pieces = list(LongReconstruction(identity, clip, 6).split(8))
    assert torch.equal(torch.cat(pieces), read_clip(files["a"]))
    assert {len(piece) for piece in pieces[:-1]} == {8}
    assert list(regrouped(iter([]), 3)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "megabytes"),
    [
        ("compare long long --metrics psnr ssim flicker", 800),
        ("fvd long long --metrics --protocol styleganv", 400),
        ("reconstruction --data long --tokenizer tokenizer --metrics psnr", 600),
        ("generation --clips long --prompts prompts.txt --metrics temporal_flickering", 400),
    ],
)
def test_memory_does_not_grow_with_a_clip(tmp_path: Path, tokenizer: Any, line: str, megabytes: int):
    """A clip of 15,000 frames, 180 MB of pixels and 700 MB in floats, beside one of 100 frames."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "prompts.txt").write_text("a\n")
    code = (
        f"FOLDER = {str(Path(__file__).parent)!r}"
        + """
import json, resource, sys, torch
from kinema.apps.cli import main
sys.path.insert(0, FOLDER)
import test_long_clips
torch.set_num_threads(1)
import kinema.eval.clips.reading as reading
reading.WHOLE_BYTES = 2**24
import kinema.eval.fvd.features as features
features.load_i3d = lambda _: test_long_clips.Tiny()
status = main(sys.argv[1:])
print(json.dumps([status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""
    )
    peaks = []
    for length in (100, 15_000):
        with VideoWriter(tmp_path / "long" / "a.mp4", 24, overwrite=True) as writer:
            for start in range(0, length, 100):
                writer.write(moving(start, 100, 64))
        if line.startswith("fvd"):
            (tmp_path / "long" / "b.mp4").unlink(missing_ok=True)
            (tmp_path / "long" / "b.mp4").hardlink_to(tmp_path / "long" / "a.mp4")
        command = [sys.executable, "-c", code, "eval", *line.split(), "--json", f"{length}.json"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        status, peak = json.loads(done.stdout.splitlines()[-1])
        assert status == 0, done.stderr
        peaks.append(peak)
    assert peaks[1] - peaks[0] < megabytes, peaks
