"""Losses against their definitions."""

import math

import pytest
import torch

from kinema.training.losses.reconstruction import charbonnier, l1, mse, psnr


def test_errors_of_a_constant_difference():
    video = torch.zeros(2, 3, 5, 4, 4)
    assert mse(video + 0.5, video).item() == pytest.approx(0.25)
    assert l1(video - 0.5, video).item() == pytest.approx(0.5)
    assert charbonnier(video + 0.5, video, epsilon=0.1).item() == pytest.approx(math.sqrt(0.26) - 0.1)
    assert charbonnier(video, video).item() == pytest.approx(0.0, abs=1e-7)


def test_psnr_is_of_each_clip_with_a_range_of_two():
    video = torch.zeros(2, 3, 5, 4, 4)
    reconstruction = video.clone()
    reconstruction[0] += 0.2
    values = psnr(reconstruction, video)
    assert values[0].item() == pytest.approx(20 * math.log10(2 / 0.2), rel=1e-4)
    assert values[1].item() == pytest.approx(100.0)


def test_psnr_clamps_as_a_file_does():
    video = torch.ones(1, 3, 1, 2, 2)
    assert psnr(video + 3, video).item() == pytest.approx(100.0)
