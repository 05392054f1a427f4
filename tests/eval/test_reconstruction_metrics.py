"""Reports on reconstructions: what is averaged over what, and bad input."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.frames.features import FrameFeatures
from kinema.eval.frames.fid import FrameFID
from kinema.eval.frames.psnr import clip_psnr
from kinema.eval.reconstruction import (
    border_frames,
    compare_clips,
    evaluate_reconstruction,
    reconstruct_clip,
)
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.interface import Decoded, TokenizerOutput
from kinema.video import read_video, to_float, to_uint8, write_video


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@dataclass
class Off:
    """A tokenizer whose frame i, counted from where a piece starts, comes back `error(i)` levels too bright."""

    temporal_compression_ratio: int = 4
    spatial_compression_ratio: int = 8
    latent_channels: int = 1

    def error(self, index: int) -> int:
        return 8 if index == 0 else 4 if index % self.temporal_compression_ratio == 0 else 1

    def reconstruct(self, video: Tensor) -> Tensor:
        errors = torch.tensor([self.error(i) for i in range(video.shape[2])]) / 127.5
        return video + errors.view(1, 1, -1, 1, 1)

    def encode(self, video: Tensor) -> TokenizerOutput:
        raise NotImplementedError

    def decode(
        self, latents: Tensor, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> Decoded:
        raise NotImplementedError

    def normalize(self, latents: Tensor) -> Tensor:
        return latents

    def denormalize(self, latents: Tensor) -> Tensor:
        return latents


def decibels(levels: float) -> float:
    return 20 * math.log10(255 / levels)


def dark(num_frames: int) -> Tensor:
    """A clip with room above every level."""
    return frames(num_frames, 12, 16) // 2


def test_columns_and_curves_by_hand():
    clips = [("b", dark(9)), ("a", dark(6))]
    report = evaluate_reconstruction(Off(), clips, ["psnr"])
    curve = [decibels(level) for level in (8, 1, 1, 1, 4, 1, 1, 1, 4)]
    assert report.curves["psnr"] == pytest.approx(curve, abs=1e-3)
    assert [clip.name for clip in report.clips] == ["a", "b"]
    assert report.clips[1].curves["psnr"] == pytest.approx(curve, abs=1e-3)
    assert report.clips[0].metrics["psnr"] == pytest.approx(sum(curve[:6]) / 6, abs=1e-3)
    # Clips count alike, long or short.
    assert report.metrics["psnr"] == pytest.approx((sum(curve[:6]) / 6 + sum(curve) / 9) / 2, abs=1e-3)
    assert report.first_frame["psnr"] == pytest.approx(decibels(8), abs=1e-3)
    assert report.chunk_border["psnr"] == pytest.approx(decibels(4), abs=1e-3)
    assert report.num_frames == 15


def test_chunks_begin_anew_and_their_borders_count():
    report = evaluate_reconstruction(Off(), [("a", dark(8))], ["psnr"], chunk=5)
    curve = [decibels(level) for level in (8, 1, 1, 1, 4, 8, 1, 1)]
    assert report.curves["psnr"] == pytest.approx(curve, abs=1e-3)
    assert report.chunk_border["psnr"] == pytest.approx((decibels(4) + decibels(8)) / 2, abs=1e-3)
    assert (report.chunk, report.temporal_ratio) == (5, 4)


@given(num_frames=st.integers(1, 40), ratio=st.integers(1, 9), chunk=st.none() | st.integers(1, 40))
def test_border_frames(num_frames: int, ratio: int, chunk: int | None):
    found = border_frames(num_frames, ratio, chunk)
    assert 0 not in found
    for i in range(1, num_frames):
        inside = i if chunk is None else i % chunk
        assert (i in found) == (inside == 0 or (ratio > 1 and inside % ratio == 0))


def test_flicker_has_no_first_frame():
    report = evaluate_reconstruction(Off(), [("a", dark(3)), ("b", dark(1))], ["flicker"])
    assert report.curves["flicker"][0] is None
    assert report.curves["flicker"][1:] == pytest.approx([7, 0], abs=1e-3)
    assert report.first_frame["flicker"] is None
    assert report.clips[1].metrics["flicker"] is None
    assert report.metrics["flicker"] == pytest.approx(3.5, abs=1e-3)  # of the one clip that has it


def test_same_numbers_as_from_a_lossless_file(tmp_path: Path):
    tokenizer = CausalVideoTokenizer(**TINY).eval()
    clips = {name: frames(t, 16, 24, seed=t) for name, t in (("a", 5), ("b", 9))}
    report = evaluate_reconstruction(tokenizer, clips.items())
    pairs = []
    for name, clip in clips.items():
        with torch.no_grad():
            write_video(tmp_path / f"{name}.mp4", to_uint8(tokenizer.reconstruct(to_float(clip))[0]), 24, lossless=True)
        pairs.append((name, clip, read_video(tmp_path / f"{name}.mp4").frames))
    again = compare_clips(pairs, temporal_ratio=tokenizer.temporal_compression_ratio)
    assert again == report
    wanted = clip_psnr(to_float(clips["a"][:1]), to_float(pairs[0][2][:1]))
    assert report.clips[0].curves["psnr"][0] == pytest.approx(wanted.item(), abs=1e-4)


def test_a_clip_against_itself():
    clip = frames(3, 12, 12)
    report = compare_clips([("a", clip, clip)], ["psnr", "ssim", "flicker"])
    assert report.metrics["psnr"] == pytest.approx(100.0)
    assert report.metrics["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert report.metrics["flicker"] == 0.0
    assert report.chunk_border == {"psnr": None, "ssim": None, "flicker": None}


def test_json_has_the_metrics_by_name():
    report = evaluate_reconstruction(Off(), [("a", dark(3)), ("b", dark(1))])
    text = json.dumps(report.as_dict(), allow_nan=False)
    read = json.loads(text)
    assert read["psnr"] == report.metrics["psnr"]
    assert set(read) >= {"psnr", "ssim", "flicker", "first_frame", "chunk_border", "curves", "clips", "num_clips"}
    assert read["clips"][1]["curves"]["flicker"] == [None]
    assert "rfvd" not in read


def test_sets_share_one_pass_of_the_network(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))

    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return images.float().mean(dim=(2, 3)) @ weight / 255

    monkeypatch.setattr("kinema.eval.frames.fid.make", lambda *_: FrameFID(dim=8))
    monkeypatch.setattr("kinema.eval.reconstruction.load_features", lambda *_: FrameFeatures(Network()))
    clips = [(name, dark(t)) for name, t in (("a", 3), ("b", 4))]
    report = evaluate_reconstruction(Off(), clips, ["fid", "psnr", "kid"])
    assert sum(seen) == 2 * 7  # both sides, once
    assert list(report.metrics) == ["fid", "psnr", "kid"]
    assert report.metrics["fid"] is not None
    assert report.metrics["fid"] > 0
    assert set(report.curves) == {"psnr"}
    # Equal frames are exactly 0.
    same = compare_clips([(name, clip, clip) for name, clip in clips], ["fid"])
    assert same.metrics["fid"] == 0.0


class Counting:
    """A video distance that only counts."""

    def __init__(self) -> None:
        self.counts = {True: 0, False: 0}
        self.names: list[str] = []

    def update(self, videos: Tensor, real: bool, names: Sequence[str] | None = None) -> None:
        assert videos.dtype == torch.uint8
        assert names is not None
        self.names.append(*names)
        self.counts[real] += videos.shape[2]

    def result(self) -> SimpleNamespace:
        return SimpleNamespace(as_dict=lambda: {"fvd": 12.5, "protocol": "p"})


def test_reconstruction_fvd_and_watching():
    distance, names = Counting(), []
    clips = [("a", dark(3)), ("b", dark(4))]
    watch = lambda name, reference, clip: names.append((name, reference.shape == clip.shape))  # noqa: E731
    report = evaluate_reconstruction(Off(), clips, ["psnr"], fvd=distance, watch=watch)
    assert distance.counts == {True: 7, False: 7}
    assert distance.names == ["a", "a", "b", "b"]
    assert names == [("a", True), ("b", True)]
    assert report.as_dict()["rfvd"] == 12.5
    assert report.as_dict()["rfvd_details"] == {"fvd": 12.5, "protocol": "p"}


def test_every_process_gets_the_whole_report(monkeypatch: pytest.MonkeyPatch):
    clips = [(f"c{i}", dark(3 + i)) for i in range(3)]
    whole = evaluate_reconstruction(Off(), clips)
    # Two processes one after the other: each share's scores, then the gathering of both.
    shares = [list(evaluate_reconstruction(Off(), clips[rank::2]).clips) for rank in range(2)]
    monkeypatch.setattr("kinema.eval.reconstruction.gather", lambda scores: shares)
    for rank in range(2):
        assert evaluate_reconstruction(Off(), clips[rank::2]) == whole


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)).repeat(1, 2)


def test_a_process_without_clips_is_an_error_where_all_wait_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kinema.eval.reconstruction.gather", lambda scores: [scores, []])
    assert evaluate_reconstruction(Off(), [("a", dark(3))]).num_frames == 3
    distance = Counting()  # FVD's processes may be idle
    assert evaluate_reconstruction(Off(), [("a", dark(3))], fvd=distance).fvd is not None
    monkeypatch.setattr("kinema.eval.frames.fid.make", lambda *_: FrameFID(dim=6))
    monkeypatch.setattr("kinema.eval.reconstruction.load_features", lambda *_: FrameFeatures(Means()))
    with pytest.raises(KinemaError, match=r"`clips` \(=1 of them\) must be at least one for each of 2 processes"):
        evaluate_reconstruction(Off(), [("a", dark(3))], ["fid"])


def test_bad_input():
    with pytest.raises(KinemaError, match=r"`clips` \(=0 of them\) must be at least one clip"):
        evaluate_reconstruction(Off(), [])
    with pytest.raises(KinemaError, match=r"`chunk` \(=0\) must be >= 1"):
        evaluate_reconstruction(Off(), [("a", dark(2))], chunk=0)
    with pytest.raises(KinemaError, match=r"clip 'a': `clip` \(=0 frames\) must be at least one frame"):
        evaluate_reconstruction(Off(), [("a", dark(0))])
    with pytest.raises(KinemaError, match=r"`metrics` \(='nope'\) must be one of psnr"):
        evaluate_reconstruction(Off(), [("a", dark(2))], ["nope"])
    with pytest.raises(KinemaError, match=r"clip 'tiny': `clip` \(of 4x4 pixels\) must be at least 11 pixels"):
        evaluate_reconstruction(Off(), [("a", dark(2)), ("tiny", frames(2, 4, 4))], ["ssim"])
    with pytest.raises(KinemaError, match=r"clip 'a': `clip` \(of shape \(2, 12, 16, 3\)\) must have the shape"):
        compare_clips([("a", dark(3), dark(2))])


@pytest.mark.parametrize("chunk", [None, 1, 3, 99])
def test_reconstruct_clip_keeps_the_length(chunk: int | None):
    clip = dark(7)
    result = reconstruct_clip(Off(), clip, chunk=chunk)
    first = [i for i in range(7) if i % (chunk or 7) == 0]
    difference = (result.int() - clip.int()).amax(dim=(1, 2, 3)).tolist()
    assert [i for i, levels in enumerate(difference) if levels == 8] == first


def _one_of_two(rank: int, folder: str) -> None:
    """A process that has every second clip; writes what it reports."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    report = _report_with_sets([(f"c{i}", dark(3 + i)) for i in range(rank, 5, 2)])
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
    torch.distributed.destroy_process_group()


def _report_with_sets(clips: list[tuple[str, Tensor]]) -> dict[str, Any]:
    class Network(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([images.float().mean(dim=(2, 3)), images.float().std(dim=(2, 3))], dim=1) / 255

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kinema.eval.frames.fid.make", lambda *_: FrameFID(dim=6))
        patch.setattr("kinema.eval.reconstruction.load_features", lambda *_: FrameFeatures(Network()))
        return evaluate_reconstruction(Off(), clips, ["psnr", "flicker", "fid", "kid"]).as_dict()


@pytest.mark.slow
def test_two_real_processes_report_as_one(tmp_path: Path):
    # Its functions are run in new processes, for which the names of tests are no modules: so as a program.
    program = f"import runpy, sys; runpy.run_path({__file__!r})['_one_of_two'](int(sys.argv[1]), {str(tmp_path)!r})"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(rank)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    whole = _report_with_sets([(f"c{i}", dark(3 + i)) for i in range(5)])
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("fid", "kid"):  # sums in another order
            assert found.pop(name) == pytest.approx(whole[name], rel=1e-6, abs=1e-9)
        assert found == {key: value for key, value in whole.items() if key not in ("fid", "kid")}
