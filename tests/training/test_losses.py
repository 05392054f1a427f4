"""Losses against their definitions."""

import math

import pytest
import torch

from kinema.training.losses.reconstruction import charbonnier, l1, mse


def test_errors_of_a_constant_difference():
    video = torch.zeros(2, 3, 5, 4, 4)
    assert mse(video + 0.5, video).item() == pytest.approx(0.25)
    assert l1(video - 0.5, video).item() == pytest.approx(0.5)
    assert charbonnier(video + 0.5, video, epsilon=0.1).item() == pytest.approx(math.sqrt(0.26) - 0.1)
    assert charbonnier(video, video).item() == pytest.approx(0.0, abs=1e-7)
