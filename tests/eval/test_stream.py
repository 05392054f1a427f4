"""STREAM against its definition, written out one feature at a time, and on clips whose scores are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.eval.generation import METRICS
from kinema.eval.motion.stream import STREAM, spectrum, stream_t


def reference_spectrum(signal: np.ndarray) -> tuple[float, float]:
    """Of one feature over time: numpy's complex FFT and least squares, and sums term by term."""
    highest = len(signal) // 2
    amplitudes = 2 * np.abs(np.fft.fft(signal)[: highest + 1]) / (highest + 1)
    k = np.arange(1, highest + 1)
    slope, offset = np.polyfit(np.log(k), np.log(amplitudes[1:] + 1e-6), 1)
    fitted = [math.exp(offset) * float(x) ** slope for x in k]
    factor = math.exp(offset) / sum(fitted)
    third, second = (sum(float(x) ** (slope + power) for x in k) for power in (3, 2))
    return third / (math.sqrt(factor) * math.sqrt(second)), float(amplitudes[0])


def reference_stream_t(real: np.ndarray, fake: np.ndarray) -> float:
    values = []
    for x, y in zip(real.T, fake.T, strict=True):
        ends = (int(min(x.min(), y.min())) - 1, int(max(x.max(), y.max())) + 1)
        shares = [np.histogram(z, bins=50, range=ends)[0] / len(z) for z in (x, y)]
        values.append(np.asarray(np.corrcoef(shares))[0, 1] ** 2)
    return float(np.mean(values))


@pytest.mark.parametrize("num_frames", [4, 5, 16, 17])
def test_the_spectrum_is_as_defined(num_frames: int):
    features = torch.randn(2, num_frames, 3)
    features[0, :, 0] = 1.5  # a feature that stands still has no amplitude above 0
    skewness, mean = spectrum(features)
    for clip in range(2):
        for d in range(3):
            expected = reference_spectrum(features[clip, :, d].double().numpy())
            assert (float(skewness[clip, d]), float(mean[clip, d])) == pytest.approx(expected, rel=1e-6)


def test_the_skewness_of_white_and_still_signals_is_exact():
    # One jump has the same amplitude at all frequencies, standing still none at any: B = 0 for both.
    jump = torch.zeros(1, 8, 2)
    jump[0, 3, 0] = 1
    skewness, mean = spectrum(jump)
    expected = (1 + 8 + 27 + 64) * math.sqrt(4) / math.sqrt(1 + 4 + 9 + 16)
    assert skewness[0].tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert mean[0].tolist() == pytest.approx([2 / 5, 0])


def test_stream_t_is_as_defined():
    real, fake = torch.randn(40, 3).double() * 3 + 8, torch.randn(30, 3).double() * 2 + 7
    expected = reference_stream_t(real.numpy(), fake.numpy())
    assert 0.01 < expected < 0.9
    assert stream_t(real, fake) == pytest.approx(expected, rel=1e-6)
    # Around zero whole numbers are cut towards it.
    assert stream_t(real - 8, fake - 8) == pytest.approx(reference_stream_t(real.numpy() - 8, fake.numpy() - 8))


def make_features(count: int, num_frames: int = 16, *, speed: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Random walks, whose spectra fall; `speed` 0 leaves noise, which has a flat one."""
    steps = torch.randn(count, num_frames, 4)
    return torch.randn(count, 1, 4) * 3 + shift + (steps.cumsum(1) * speed if speed else steps)


def score(real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
    metric = STREAM(num_frames=real.shape[1])
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()


def test_equal_sets_score_one():
    features = make_features(20)
    assert score(features, features) == pytest.approx({"stream_t": 1, "stream_f": 1, "stream_d": 1})


def test_each_score_falls_for_its_own_reason():
    real = make_features(200)
    alike = score(real, make_features(200))
    assert alike["stream_t"] > 0.6
    assert min(alike["stream_f"], alike["stream_d"]) > 0.8
    restless = score(real, make_features(200, speed=0))
    assert restless["stream_t"] < 0.3 < 0.6 < restless["stream_f"]
    elsewhere = score(real, make_features(200, shift=100))
    assert elsewhere["stream_t"] > 0.6
    assert elsewhere["stream_f"] == elsewhere["stream_d"] == 0
    few_kinds = score(real, real[:1] + make_features(200) * 1e-3)
    assert few_kinds["stream_f"] > 0.9
    assert few_kinds["stream_d"] < 0.1


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), splits=st.lists(st.integers(1, 7), max_size=3, unique=True), back=st.booleans())
def test_order_batches_and_direction_do_not_matter(order: list[int], splits: list[int], back: bool):
    torch.manual_seed(0)
    real, fake = make_features(8, 8), make_features(8, 8)
    expected = score(real, fake)
    metric = STREAM(num_frames=8)
    for side in (True, False):
        clips = (real if side else fake)[torch.tensor(order)]
        # A clip played backwards has the same amplitudes.
        clips = clips.flip(1) if back else clips
        for batch in clips.tensor_split(sorted(splits)):
            metric.update(batch, real=side)
    assert metric.compute() == pytest.approx(expected, abs=1e-9)


def test_bad_input_is_refused():
    metric = STREAM(num_frames=8)
    with pytest.raises(KinemaError, match=r"`features` \(of 9 frames\) must have 8 frames"):
        metric.update(make_features(2, 9), real=True)
    with pytest.raises(KinemaError, match="NaN"):
        metric.update(torch.full((2, 8, 4), float("nan")), real=True)
    with pytest.raises(KinemaError, match=r"`num_frames` \(=3\) must be at least 4"):
        STREAM(num_frames=3)
    with pytest.raises(KinemaError, match="at least 4 frames"):
        spectrum(torch.zeros(1, 3, 2))
    metric.update(make_features(6, 8), real=True)
    metric.update(make_features(5, 8), real=False)
    with pytest.raises(KinemaError, match=r"`fake` \(=5 clips\) must be at least 6 clips"):
        metric.compute()


def test_what_is_kept_is_where_the_metric_is():
    """Features come from the CPU; NCCL gathers from GPUs alone. `meta` stands for a device that is not the CPU."""
    metric = STREAM(num_frames=8).to("meta")
    for real in (True, False):
        metric.update(make_features(2, 8), real=real)
    rows = [row for state in metric.metric_state.values() for row in state]
    assert len(rows) == 4
    assert {row.device.type for row in rows} == {"meta"}


def test_the_table_knows_how_many_clips_are_enough():
    least = METRICS["stream_t"].min_clips
    metric = STREAM(num_frames=8)
    metric.update(make_features(least, 8), real=True)
    metric.update(make_features(least - 1, 8), real=False)
    with pytest.raises(KinemaError, match=f"at least {least} clips"):
        metric.compute()
    metric.update(make_features(1, 8), real=False)
    assert metric.compute().keys() == {name for name in METRICS if METRICS[name].min_clips == least}
