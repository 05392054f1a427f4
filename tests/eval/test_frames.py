"""Frame metrics that need no network, against other implementations, formulas and their own definitions."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from kinema.errors import KinemaError
from kinema.eval.frames import METRICS, FrameMeasure
from kinema.eval.frames.flicker import flicker
from kinema.eval.frames.ms_ssim import MIN_SIDE, ms_ssim
from kinema.eval.frames.pixels import as_float, by_image, to_levels
from kinema.eval.frames.psnr import clip_psnr, decibels, psnr
from kinema.eval.frames.ssim import ssim

PLAIN = ("psnr", "ssim", "flicker")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def near(clip: Tensor, by: float = 0.1) -> Tensor:
    return (clip + by * noise(*clip.shape, seed=1)).clamp(-1, 1)


def plain(name: str) -> FrameMeasure:
    measure = METRICS[name].make(torch.device("cpu"))
    assert isinstance(measure, FrameMeasure)
    return measure


def test_psnr_is_of_each_frame_and_as_torchmetrics():
    reference = noise(2, 3, 4, 8, 9)
    clip = near(reference)
    found = psnr(reference, clip)
    for b in range(2):
        for t in range(4):
            wanted = peak_signal_noise_ratio(clip[b, :, t], reference[b, :, t], data_range=2.0)
            assert float(found[b, t]) == pytest.approx(float(wanted), abs=1e-4)


def test_psnr_by_its_formula_and_of_equal_clips():
    video = torch.zeros(2, 3, 5, 4, 4)
    clip = video.clone()
    clip[0] += 0.2
    for values in (psnr(video, clip).mean(1), clip_psnr(video, clip)):
        assert values[0].item() == pytest.approx(20 * math.log10(2 / 0.2), rel=1e-4)
        assert values[1].item() == pytest.approx(100.0)
    assert float(decibels(torch.tensor(0.0), peak=255.0, ceiling=120.0)) == pytest.approx(120.0, abs=1e-3)
    assert float(decibels(torch.tensor(255.0**2), peak=255.0)) == pytest.approx(0.0)


def test_psnr_of_a_clip_is_of_its_mean_error_and_clamps_as_a_file_does():
    video = noise(1, 3, 6, 8, 8)
    clip = video.clone()
    clip[:, :, 0] = clip[:, :, 0].neg()
    error = ((video - clip) / 2).square().mean()
    assert clip_psnr(video, clip).item() == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert clip_psnr(video, clip).item() < psnr(video, clip).mean().item()
    assert clip_psnr(torch.ones(1, 3, 1, 2, 2), torch.full((1, 3, 1, 2, 2), 4.0)).item() == pytest.approx(100.0)


def test_ssim_is_that_of_pixels_from_zero_to_one():
    reference = levels(1, 3, 3, 16, 20)
    clip = (reference.int() + levels(1, 3, 3, 16, 20, seed=2) // 8).clamp(0, 255).to(torch.uint8)
    found = ssim(reference, clip)
    for t in range(3):
        a, b = reference[:, :, t].float(), clip[:, :, t].float()
        wanted = structural_similarity_index_measure(b, a, data_range=255.0)
        assert float(found[0, t]) == pytest.approx(float(wanted), abs=1e-5)  # type: ignore[arg-type]


def test_ssim_by_its_formula_where_nothing_varies():
    # Two flat images: variances vanish, and the luminance term is left (Wang et al. 2004, eq. 6).
    a, b = 0.25, 0.75
    wanted = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    flat = [torch.full((1, 3, 1, 12, 12), 2 * value - 1) for value in (a, b)]
    # float32: round-off of the variances, which are 0, stands against K2's 0.0009.
    assert float(ssim(flat[0], flat[1])) == pytest.approx(wanted, abs=1e-3)


def test_ms_ssim_is_of_each_frame_and_as_torchmetrics():
    reference = noise(1, 3, 2, 176, 180)
    clip = near(reference, 0.5)
    found = ms_ssim(reference, clip)
    for t in range(2):
        a, b = (x[:, :, t] / 2 + 0.5 for x in (reference, clip))
        wanted = multiscale_structural_similarity_index_measure(b, a, data_range=1.0)
        assert float(found[0, t]) == pytest.approx(float(wanted), abs=1e-5)
    assert found.max() < 1
    assert torch.allclose(ms_ssim(reference, reference), torch.ones(1, 2))


def test_flicker_by_hand():
    still = torch.zeros(1, 3, 4, 2, 2)
    assert flicker(still, still + 0.5)[0, 1:].tolist() == [0.0, 0.0, 0.0]  # a constant error does not flicker
    blinking = still.clone()
    blinking[:, :, 2] += 2 / 255  # one level up and down again
    curve = flicker(still, blinking)[0]
    assert math.isnan(curve[0])
    assert curve[1:].tolist() == pytest.approx([0, 1, 1], abs=1e-5)
    moving = noise(1, 3, 4, 2, 2)
    assert flicker(moving, moving)[0, 1:].tolist() == [0, 0, 0]
    assert flicker(still[:, :, :1], still[:, :, :1]).isnan().all()


@pytest.mark.parametrize("name", PLAIN)
def test_uint8_and_float_give_the_same(name: str):
    a, b = levels(1, 3, 3, 12, 13), levels(1, 3, 3, 12, 13, seed=1)
    found = plain(name)(a, b)
    assert torch.allclose(found, plain(name)(as_float(a), as_float(b)), equal_nan=True)
    assert found.shape == (1, 3)
    assert torch.equal(to_levels(as_float(a)), a)


@pytest.mark.parametrize("name", PLAIN)
@settings(max_examples=15, deadline=None)
@given(num_clips=st.integers(1, 3), num_frames=st.integers(1, 5), seed=st.integers(0, 99))
def test_clips_do_not_influence_one_another(name: str, num_clips: int, num_frames: int, seed: int):
    a, b = (noise(num_clips, 3, num_frames, 11, 12, seed=s) for s in (seed, seed + 1))
    whole = plain(name)(a, b)
    each = torch.cat([plain(name)(a[i : i + 1], b[i : i + 1]) for i in range(num_clips)])
    assert torch.allclose(whole, each, atol=1e-5, equal_nan=True)
    # A later frame changes nothing of an earlier one.
    assert torch.allclose(whole[:, :1], plain(name)(a[:, :, :1], b[:, :, :1]), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_more_noise_is_worse(name: str):
    reference = noise(1, 3, 1, 16, 16) * 0.5
    values = [float(plain(name)(reference, near(reference, by))) for by in (0.01, 0.05, 0.2, 0.5)]
    assert METRICS[name].direction == "higher"
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


@pytest.mark.parametrize("pixels", [1, 30, 64, 10**6])
def test_pieces_do_not_change_the_values(pixels: int):
    a, b = noise(2, 3, 5, 4, 8), noise(2, 3, 5, 4, 8, seed=1)
    seen: list[int] = []

    def measure(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return (x - y).square().mean(dim=(1, 2, 3))

    found = by_image(measure, a, b, pixels=pixels)
    assert torch.allclose(found, (a - b).square().mean(dim=(1, 3, 4)))
    assert sum(seen) == 10
    assert max(seen) == min(10, max(1, pixels // 32))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.full((1, 3, 2, 12, 12), 1.5), r"`clip` \(of values in \[1.5, 1.5\]\) must have values in \[-1, 1\]"),
        (torch.full((1, 3, 2, 12, 12), float("nan")), r"must have values in \[-1, 1\]"),
        (torch.zeros(1, 3, 1, 12, 12), r"must have the shape of `reference`, \(1, 3, 2, 12, 12\)"),
    ],
)
def test_wrong_clips(name: str, clip: Tensor, message: str):
    with pytest.raises(KinemaError, match=message):
        plain(name)(torch.zeros(1, 3, 2, 12, 12), clip)


def test_too_small_and_empty_clips():
    small = torch.zeros(1, 3, 1, 10, 40)
    with pytest.raises(KinemaError, match=r"`clip` \(of 10x40 pixels\) must be at least 11 pixels"):
        ssim(small, small)
    small = torch.zeros(1, 3, 1, 175, 176)
    with pytest.raises(KinemaError, match="at least 176 pixels"):
        ms_ssim(small, small)
    empty = torch.zeros(1, 3, 0, 12, 12)
    with pytest.raises(KinemaError, match="at least one pixel"):
        psnr(empty, empty)


def test_names_are_checked():
    METRICS.check(["psnr", "fid"])
    with pytest.raises(KinemaError, match=r"`metrics` \(='mse'\) must be one of psnr, ssim"):
        METRICS.check(["psnr", "mse"])
    with pytest.raises(KinemaError, match="at least one of"):
        METRICS.check([])
    with pytest.raises(KinemaError, match="every metric once"):
        METRICS.check(["psnr", "psnr"])


def test_the_table_has_a_file_for_every_row_and_no_file_without_one():
    folder = Path(sys.modules["kinema.eval.frames"].__path__[0])
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "interface", "pixels", "features"}
    assert {metric.module for metric in METRICS.values()} == {f"kinema.eval.frames.{file}" for file in files}


def test_the_table_imports_no_torch():
    code = "import sys; from kinema.eval.frames import METRICS; assert METRICS; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numpy_agrees_on_levels():
    # The pixel conversion of this package and a plain one, without torch.
    a = levels(1, 3, 1, 4, 4)
    wanted = np.asarray(a, dtype=np.float64) / 127.5 - 1
    assert np.allclose(as_float(a).numpy(), wanted, atol=1e-6)


def test_the_least_side_of_ms_ssim_is_that_of_torchmetrics():
    for side in (MIN_SIDE - 1, MIN_SIDE):
        images = torch.rand(1, 3, side, 300)
        if side < MIN_SIDE:
            with pytest.raises(ValueError, match="kernel"):
                multiscale_structural_similarity_index_measure(images, images, data_range=1.0)
            with pytest.raises(KinemaError, match=f"must be at least {MIN_SIDE} pixels"):
                ms_ssim(images[:, :, None], images[:, :, None])
        else:
            assert ms_ssim(images[:, :, None], images[:, :, None]).item() == pytest.approx(1)
