"""FVD's bookkeeping with a tiny network in I3D's place: streaming, groups, saved statistics, mistakes of users."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.distributions import GaussianStatistics, frechet_distance
from kinema.eval.distributions.frechet import gaussian_distance
from kinema.eval.fvd import (
    EXTRAS,
    PROTOCOLS,
    FrechetVideoDistance,
    LenientDistance,
    Protocol,
    ReferenceStatistics,
    Resize,
    VideoFeatures,
    content_key,
    evaluate_fvd,
    hash_of_network,
    reference_statistics,
    statistics_path,
)
from kinema.eval.fvd.groups import NUM_GROUPS, GroupedSums, fvd_at_infinity, fvd_interval, group_of
from kinema.eval.networks.i3d import I3D

SMALL = Resize(size=12, mode="crop", antialias=False)
PLAIN = Protocol(name="plain", num_frames=9, network=SMALL)


class Tiny(I3D):
    """Means over blocks of a clip, mixed to 20 numbers: fast, and it sees order in time."""

    num_features = 20

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("matrix", torch.randn(54, 20, generator=torch.Generator().manual_seed(0)))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        pooled = F.adaptive_avg_pool3d(video, (2, 3, 3)).flatten(1).double()
        return (pooled @ self.get_buffer("matrix").double()).float()


def passes(protocol: Protocol = PLAIN, batch_size: int = 4) -> VideoFeatures:
    return VideoFeatures(protocol, network=Tiny(), batch_size=batch_size)


def clips(count: int, *, seed: int = 0, frames: int = 9, low: int = 0, high: int = 200, size: int = 24, prefix="clip"):
    """Coarse noise, so that means over blocks differ from clip to clip."""
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        coarse = torch.randint(low, high, (frames, 3, 3, 3), generator=generator, dtype=torch.uint8)
        yield f"{prefix}{index}", coarse.repeat_interleave(size // 3, 1).repeat_interleave(size // 3, 2)


def batch_of(named) -> torch.Tensor:
    return rearrange([frames for _, frames in named], "b t h w c -> b c t h w")


def test_metric_is_the_distance_of_the_features():
    real, fake = batch_of(clips(10)), batch_of(clips(12, seed=1, low=50))
    features = passes()
    metric = FrechetVideoDistance(features=features)
    metric.update(real[:3], real=True)
    metric.update(fake, real=False)
    metric.update(real[3:], real=True)
    expected = frechet_distance(GaussianStatistics.of(features(real)), GaussianStatistics.of(features(fake)))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)
    assert expected > 10
    metric.reset()
    metric.update(fake, real=False)
    with pytest.raises(KinemaError, match=r"`real` \(=0 clips\) must be at least 2 clips"):
        metric.compute()


def test_floats_and_bytes_are_the_same():
    video = batch_of(clips(3))
    torch.testing.assert_close(passes()(video), passes()(video.float() / 127.5 - 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -2.0])
def test_floats_out_of_range(value):
    video = torch.zeros(1, 3, 9, 8, 8)
    video[0, 0, 0, 0, 0] = value
    with pytest.raises(KinemaError, match=r"must be floats in \[-1, 1\], or uint8"):
        FrechetVideoDistance(features=passes()).update(video, real=True)


def test_equal_for_any_batch_size_and_order():
    results = [
        evaluate_fvd(list(clips(9))[::step], list(clips(8, seed=1, low=40)), features=passes(batch_size=size))
        for size, step in ((1, 1), (3, -1), (64, 1))
    ]
    for result in results[1:]:
        assert result.value == pytest.approx(results[0].value, rel=1e-9)
        assert result.interval == pytest.approx(results[0].interval, rel=1e-6)
        assert result.scores == pytest.approx(results[0].scores, rel=1e-6)


@pytest.mark.parametrize("protocol", [PLAIN, *PROTOCOLS.values()], ids=lambda protocol: protocol.name)
def test_a_set_against_itself_is_exactly_zero(protocol):
    """Under other names too, and in another order: where windows are random, the names decide them and must stay."""
    protocol = replace(protocol, network=replace(protocol.network, size=12))
    real = list(clips(3, frames=130, size=6))
    fake = [(name if protocol.position == "random" else name + "x", frames) for name, frames in reversed(real)]
    result = evaluate_fvd(real, fake, features=passes(protocol))
    assert result.value == 0
    assert result.as_dict()["fvd_interval"] == [0, 0]
    assert result.scores["kvd"] == 0


def test_result_says_everything(caplog):
    with caplog.at_level(logging.WARNING, "kinema.eval.fvd"):
        result = evaluate_fvd(clips(8), [*clips(9, seed=1), *clips(2, seed=2, size=12, prefix="x")], features=passes())
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert set(EXTRAS) < values.keys()
    assert (values["num_real"], values["num_fake"]) == (8, 11)
    assert values["protocol"]["num_frames"] == 9
    assert values["fvd_infinity"] is None
    assert values["fvd_interval"][0] <= values["fvd"] <= values["fvd_interval"][1]
    assert values["fvd_bias"] > 0
    assert "fewer than 400" in caplog.text
    assert "8 real and 11 fake clips: all are measured, and none is resampled" in caplog.text
    assert "2 sizes (12x12, 24x24)" in caplog.text
    assert "plain, 9 frames" in str(result)


def test_too_few_clips_for_neighbours():
    scores = evaluate_fvd(clips(4), clips(4, seed=1), features=passes()).scores
    assert scores["precision"] is None
    assert scores["kvd"] is not None


def test_without_extras_nothing_grows():
    metric = FrechetVideoDistance(features=passes())
    features = passes()
    sizes = []
    for seed in range(3):
        metric.update_windows(features.windows(clips(8, seed=seed)), real=True)
        states = metric.metric_state.values()
        sizes.append(sum(sum(map(torch.numel, s)) if isinstance(s, list) else s.numel() for s in states))
    assert sizes[0] == sizes[2]
    with pytest.raises(KinemaError, match=r"`extra` \(='jedi'\) must be of kvd, mmd"):
        FrechetVideoDistance(features=passes(), extra=["jedi"])


def test_mistakes():
    with pytest.raises(KinemaError, match=r"`fake` \(=1 clips\) must be at least 2 clips"):
        evaluate_fvd(clips(3), clips(1), features=passes())
    with pytest.raises(KinemaError, match=r"clip 'clip0' \(of 8 frames\) must have at least 9 frames"):
        evaluate_fvd(clips(3, frames=8), clips(3), features=passes())
    with pytest.raises(KinemaError, match=r"`protocol` \(='fid'\) must be one of styleganv, "):
        evaluate_fvd(clips(3), clips(3), "fid")
    with pytest.raises(KinemaError, match="`t h w 3` in uint8"):
        evaluate_fvd([("a", torch.zeros(9, 3, 8, 8, dtype=torch.uint8))] * 2, clips(3), features=passes())


def test_saved_statistics_take_the_place_of_clips(tmp_path):
    features = passes()
    expected = evaluate_fvd(clips(8), clips(9, seed=1), features=features)
    path = statistics_path("abc", PLAIN, hash_of_network(features.network), tmp_path)
    reference_statistics(clips(8), "abc", features).save(path)
    reference = ReferenceStatistics.load(path)
    assert reference.protocol == PLAIN
    result = evaluate_fvd(reference, clips(9, seed=1), features=features)
    assert result.as_dict() == expected.as_dict()
    assert evaluate_fvd(reference, clips(8), features=features).value == 0
    # Another covariance is made of the same sums; another window, or network, is not.
    evaluate_fvd(reference, clips(8), features=passes(replace(PLAIN, covariance="population")))
    with pytest.raises(KinemaError, match=r"`real` \(statistics under plain, 9 frames.*10 frames"):
        evaluate_fvd(reference, clips(8, frames=10), features=passes(replace(PLAIN, num_frames=10)))
    other = Tiny()
    other.get_buffer("matrix").mul_(2)
    with pytest.raises(KinemaError, match="must be of the same weights"):
        evaluate_fvd(reference, clips(8), features=VideoFeatures(PLAIN, network=other))
    bare = reference_statistics(clips(8), "abc", features, keep_features=False)
    with pytest.raises(KinemaError, match=r"`extra` .* must be left out"):
        evaluate_fvd(bare, clips(8), features=features)
    assert evaluate_fvd(bare, clips(9, seed=1), features=features, extra=()).value == expected.value


def test_sets_that_share_clips_are_not_said_to_be_independent():
    """A bias "at least" above the value itself would read as a mistake."""
    real = list(clips(12))
    shared = evaluate_fvd(real, [*real[:11], *clips(1, seed=5, prefix="other")], features=passes())
    assert 0 < shared.value < shared.bias
    said = f"two independent sets of so few would be {shared.bias:.3g} apart, but these share clips"
    assert any(said in note for note in shared.notes)
    apart = evaluate_fvd(real, list(clips(12, seed=1, low=100)), features=passes())
    assert apart.value > apart.bias
    assert any(
        f"12 clips are fewer than 400: the value is too high, by {apart.bias:.0f}" in note for note in apart.notes
    )


def test_statistics_keep_what_must_be_said_of_the_clips(tmp_path):
    real = [*clips(6), *clips(2, seed=2, size=12, prefix="x")]
    statistics = replace(reference_statistics(real, "abc", passes()), unreadable={"y": "broken"})
    statistics.save(tmp_path / "s.safetensors")
    loaded = ReferenceStatistics.load(tmp_path / "s.safetensors")
    assert (loaded.sizes, loaded.unreadable) == ({(24, 24), (12, 12)}, {"y": "broken"})
    expected = evaluate_fvd(real, clips(8, seed=1), features=passes())
    assert any("2 sizes (12x12, 24x24)" in note for note in expected.notes)
    assert evaluate_fvd(loaded, clips(8, seed=1), features=passes()).notes == expected.notes


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_printed_value_has_the_whole_protocol_beside_it(name: str):
    protocol = replace(PROTOCOLS[name], num_frames=11, stride=3, clips_per_video=2, seed=77)
    metric = FrechetVideoDistance(features=passes(replace(protocol, num_frames=9, stride=1)), extra=["kvd"])
    metric.update_clips(clips(3), real=True)
    metric.update_clips(clips(3, seed=1), real=False)
    result = replace(metric.result(), protocol=protocol)
    lines = result.describe("rFVD")
    assert lines[0].startswith(f"rFVD {result.value:.2f}")
    assert "kvd" in lines[1]
    text = "\n".join(lines)
    for wanted in (
        "11 frames",
        "stride 3",
        "2 a video",
        "seed 77",
        protocol.position,
        protocol.covariance,
        result.weights,
    ):
        assert wanted in text
    assert "changed from the published one in" in text
    for resize in filter(None, (protocol.dataset, protocol.network)):
        assert str(resize) in text
        ways = {
            (each.mode, each.antialias, each.round): str(each)
            for mode in ("stretch", "crop")
            for antialias in (True, False)
            for rounding in ("none", "nearest", "down")
            for each in [replace(resize, mode=mode, antialias=antialias, round=rounding)]
        }
        assert len(set(ways.values())) == len(ways) == 12  # every setting shows
        assert str(replace(resize, size=99)) != str(resize)


def test_a_lenient_distance_ends_alone():
    def lenient() -> LenientDistance:
        return LenientDistance(FrechetVideoDistance(features=passes()))

    good, short, single = lenient(), lenient(), lenient()
    read = []

    def reading(named):
        for name, frames in named:
            read.append(name)
            yield name, frames

    for distance, real in ((good, clips(4)), (short, [*clips(1, frames=5), *clips(3)]), (single, clips(1))):
        read.clear()
        distance.update_clips(reading(real), real=True)
        assert len(read) == {good: 4, short: 4, single: 1}[distance]  # to the end: processes agree there
        distance.update(batch_of(clips(3, seed=1)), real=False)
    assert good.result() is not None
    assert good.failure is None
    assert short.result() is single.result() is None
    assert "must have at least 9 frames" in str(short.failure)
    assert "must be at least 2 clips" in str(single.failure)
    one = lenient()
    one.update(batch_of(clips(1, frames=5)), real=True, names=["a"])
    assert "must have at least 9 frames" in str(one.failure)

    def unreadable():
        raise KinemaError("too many cannot be read")
        yield

    with pytest.raises(KinemaError, match="cannot be read"):
        lenient().update_clips(unreadable(), real=True)


class FirstFrame(I3D):
    """Features that are what a clip's first frame holds."""

    num_features = 27

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("none", torch.zeros(1))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video[:, :, 0].flatten(1)


@pytest.mark.parametrize(("real", "fake", "low", "high"), [(150, 120, 0.9, 1.1), (20, 24, 0.5, 0.8)])
def test_the_bias_of_a_measured_covariance(real: int, fake: int, low: float, high: float):
    """Two samples of one Gaussian, 12 times: the mean distance is the bias, as the true value is 0.

    The estimate knows the covariance of the real clips only from the sample. With 5 times as many clips as dimensions
    it is right to 10 %, with fewer than dimensions it is 20 to 50 % too low: it says "at least".
    """
    spectrum = torch.logspace(0, -1, 27) * 0.15
    protocol = Protocol(name="first", num_frames=9, network=Resize(size=3, mode="stretch", antialias=False))
    measured, estimated = [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        metric = FrechetVideoDistance(features=VideoFeatures(protocol, network=FirstFrame(), batch_size=256))
        for count, is_real in ((real, True), (fake, False)):
            values = (torch.randn(count, 27, generator=generator) * spectrum).clamp(-1, 1)
            video = values.view(count, 3, 1, 3, 3).expand(-1, -1, 9, -1, -1)
            metric.update(video, real=is_real, names=[f"{seed} {index}" for index in range(count)])
        result = metric.result(resamples=0)
        measured.append(result.value)
        estimated.append(result.bias)
    assert low < sum(estimated) / sum(measured) < high
    known = torch.diag(spectrum.double().square())
    assert gaussian_distance(torch.zeros(27), known, torch.zeros(27), known) < 1e-9


def test_statistics_files_are_told_apart(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"something else")
    with pytest.raises(KinemaError, match="must be a file of reference statistics"):
        ReferenceStatistics.load(file)
    paths = {
        statistics_path(content, protocol, weights, tmp_path)
        for content in "ab"
        for protocol in (PLAIN, PLAIN.changed(stride=2), PLAIN.changed(resolution=64))
        for weights in "cd"
    }
    assert len(paths) == 12
    assert statistics_path("a", replace(PLAIN, source="x"), "c", tmp_path) in paths
    first = content_key([file])
    (tmp_path / "b").mkdir()
    moved = file.rename(tmp_path / "b" / file.name)
    assert content_key([moved]) == first
    moved.write_bytes(b"other")
    assert content_key([moved]) != first


def grouped(count: int, seed: int, dim: int = 20, shift: float = 0.0) -> tuple[GroupedSums, torch.Tensor]:
    features = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift
    sums = GroupedSums.empty(dim)
    sums.update(features, [f"{seed} {index}" for index in range(count)])
    return sums, features


def test_groups_add_up():
    sums, features = grouped(300, 0)
    assert (sums.count > 0).all()
    whole = GaussianStatistics.of(features)
    assert sums.total.count == 300
    torch.testing.assert_close(sums.total.outer, whole.outer)
    chosen = torch.zeros(NUM_GROUPS, dtype=torch.int64)
    chosen[3] = 2
    rows = features[[group_of(f"0 {index}") == 3 for index in range(300)]]
    assert sums.combined(chosen).count == 2 * len(rows)
    torch.testing.assert_close(sums.combined(chosen).sum, 2 * rows.double().sum(0))


def test_value_at_infinity_is_nearer_the_truth():
    """Two Gaussians a known distance apart: extrapolation takes most of the bias away."""
    (real, _), (fake, _) = grouped(800, 0, dim=60), grouped(800, 1, dim=60, shift=0.3)
    truth = 60 * 0.3**2
    plain = frechet_distance(real.total, fake.total)
    found = fvd_at_infinity(real, fake, "sample")
    assert found is not None
    assert plain > 1.25 * truth
    assert abs(found - truth) < 0.35 * abs(plain - truth)
    assert fvd_at_infinity(grouped(799, 0)[0], fake, "sample") is None


def test_interval_is_as_wide_as_the_values_spread():
    values, widths = [], []
    for seed in range(24):
        (real, _), (fake, _) = grouped(500, 2 * seed), grouped(500, 2 * seed + 1, shift=1.0)
        values.append(frechet_distance(real.total, fake.total))
        if seed < 6:
            low, high = fvd_interval(real, fake, "sample") or (0.0, 0.0)
            assert low < values[-1] < high
            widths.append(high - low)
    expected = 2 * 1.96 * torch.tensor(values).std().item()
    assert 0.6 * expected < sum(widths) / len(widths) < 1.6 * expected
    assert fvd_interval(grouped(30, 0)[0], grouped(30, 1)[0], "sample", resamples=0) is None


@pytest.mark.slow
def test_real_network_does_not_depend_on_the_batch():
    """Other batches are other sums in float32 inside the convolutions: the value stays to five digits."""
    from kinema.eval.networks.i3d import load_i3d
    from kinema.eval.weights import find_weights

    if find_weights("i3d") is None:
        pytest.skip("weights `i3d` are not in the cache: kinema weights fetch i3d")
    network = load_i3d()
    values = [
        evaluate_fvd(
            clips(5, size=48, frames=16),
            clips(4, seed=1, low=40, size=36, frames=16),
            features=VideoFeatures("styleganv", network=network, batch_size=size),
            extra=(),
            resamples=0,
        ).value
        for size in (1, 3)
    ]
    assert values[0] > 1
    assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_pixels_are_hashed_only_if_asked_for(monkeypatch: pytest.MonkeyPatch):
    """With hashes a set against itself is exactly 0; the metric alone makes none, nor any copy of the pixels."""
    video = batch_of(clips(6))

    def measured(**options) -> FrechetVideoDistance:
        metric = FrechetVideoDistance(features=passes(), **options)
        for part in (video[:2], video[2:]):
            metric.update(part, real=True)
        metric.update(video.flip(0), real=False)
        return metric

    hashed = measured(hash_pixels=True)
    assert float(hashed.compute()) == 0
    assert hashed.result().interval == (0, 0)
    monkeypatch.setattr("kinema.eval.fvd.accumulator.hash_pixels", lambda _: pytest.fail("pixels are hashed"))
    plain = measured()
    assert 0 <= float(plain.compute()) < 1e-6
    assert plain.result().bias > 0


def test_clips_without_names_are_numbered():
    """So that batches do not matter; after a reset they begin anew."""
    protocol = replace(PLAIN, position="random")
    video = batch_of(clips(6, frames=20))
    sums = []
    metric = FrechetVideoDistance(features=passes(protocol))
    for parts in ([video], video.split(2), [video[:5], video[5:]]):
        metric.reset()
        for part in parts:
            metric.update(part, real=True)
        sums.append(metric.real_sum.clone())
    named = FrechetVideoDistance(features=passes(protocol))
    named.update(video, real=True, names=[str(index) for index in range(6)])
    for found in (*sums, named.real_sum):
        torch.testing.assert_close(found, sums[0])


def test_features_stay_where_they_are_made():
    features = passes()
    features.device = torch.device("meta")
    features.network.to("meta")
    assert features(batch_of(clips(3))).device.type == "meta"
