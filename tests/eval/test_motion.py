"""Dynamic degree, motion smoothness and temporal flickering, on clips whose motion is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.eval.motion.dynamic_degree import dynamic_degree, movement
from kinema.eval.motion.flow import EnlargedFlow, load_flow
from kinema.eval.motion.motion_smoothness import midpoint, motion_smoothness
from kinema.eval.motion.temporal_flickering import temporal_flickering
from kinema.eval.weights import find_weights


class ConstantFlow(nn.Module):
    """The same flow everywhere, told by the middle of the pictures: a scene that `pan` made tells its own place."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        # `pan` paints the x of the scene in the first channel, 1/64 a pixel.
        moved = (a[:, :1] - b[:, :1]).mean(dim=(1, 2, 3), keepdim=True) * 64
        return torch.cat([moved.expand(-1, 1, *a.shape[2:]), torch.zeros_like(a[:, :1])], dim=1)


class PartlyMoving(nn.Module):
    """Flow of a length told by the second picture, on a share of the pixels."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        flow = torch.zeros(len(a), 2, *a.shape[2:])
        count = round(self.share * a.shape[2] * a.shape[3])
        length = b[:, 0, 0, 0, None] * 10
        flow.flatten(2)[:, 0, :count] = 0.6 * length
        flow.flatten(2)[:, 1, :count] = 0.8 * length
        return flow


def pan(positions: list[int], height: int = 8, width: int = 16) -> Tensor:
    """A view that moves over a wide scene, `1 3 t h w`; positions are its left edge."""
    x = torch.arange(64.0)
    scene = torch.stack([(x - 32) / 64, torch.rand(64) * 2 - 1, torch.rand(64) * 2 - 1])
    scene = scene[:, None, :].expand(3, height, 64)
    return torch.stack([scene[:, :, p : p + width] for p in positions], dim=1)[None]


def test_a_steady_pan_is_perfectly_smooth():
    clip = pan([10, 12, 14, 16, 18])
    curve = motion_smoothness(clip, ConstantFlow())
    assert curve[0, 1::2].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert curve[0, ::2].isnan().all()
    still = motion_smoothness(pan([10] * 4), ConstantFlow())
    assert float(still[0, 1]) == pytest.approx(1)
    assert still[0, [0, 2, 3]].isnan().all()  # the last frame has no successor


def test_jerks_lower_smoothness_by_what_they_change():
    steady, jerky = pan([10, 12, 14, 16, 18]), pan([10, 12, 14, 15, 18])
    jerky[:, :, [0, 1, 2, 4]] = steady[:, :, [0, 1, 2, 4]]
    curve = motion_smoothness(jerky, ConstantFlow())
    assert float(curve[0, 1]) == pytest.approx(1, abs=1e-5)
    expected = 1 - (jerky[0, :, 3] - steady[0, :, 3]).abs().mean() / 2
    assert float(curve[0, 3]) == pytest.approx(float(expected), abs=1e-5)
    assert expected < 0.95


def test_the_midpoint_averages_where_flow_leads_out_of_both():
    before, after = torch.full((1, 3, 4, 4), -0.5), torch.full((1, 3, 4, 4), 1.0)

    class Far(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.full((1, 2, 4, 4), 1000.0)

    assert torch.equal(midpoint(before, after, ConstantFlow()), torch.full((1, 3, 4, 4), 0.25))
    # Both flows are equal, and so lead nowhere: both sides count.
    assert torch.equal(midpoint(before, after, Far()), torch.full((1, 3, 4, 4), 0.25))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=9), st.integers(1, 5))
def test_how_many_frames_go_through_at_once_does_not_matter(positions: list[int], at_once: int):
    torch.manual_seed(0)
    clip = pan(positions)
    pixels = at_once * 8 * 16
    a, b = (motion_smoothness(clip, ConstantFlow(), pixels=x) for x in (pixels, 2**18))
    torch.testing.assert_close(a, b, equal_nan=True, atol=1e-6, rtol=0)
    a, b = (movement(clip, ConstantFlow(), pixels=x) for x in (pixels, 2**18))
    torch.testing.assert_close(a, b, equal_nan=True, atol=1e-6, rtol=0)


def test_movement_is_the_mean_of_the_longest_twentieth_over_the_threshold():
    # 6 pixels of 256 are 0.75 of 32; all flow is 5 long, on 5 % and on 2.5 % of 32 x 40 pixels.
    clip = torch.full((1, 3, 3, 32, 40), 0.5)
    for share, expected in ((0.05, 5 / 0.75), (0.025, 2.5 / 0.75), (1.0, 5 / 0.75)):
        curve = movement(clip, PartlyMoving(share))
        assert curve[0, 0].isnan()
        assert curve[0, 1:].tolist() == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("num_frames", "num_moving", "expected"), [(16, 4, 1), (16, 3, 0), (8, 2, 1), (8, 1, 0), (2, 1, 1), (2, 0, 0)]
)
def test_a_quarter_of_the_frames_must_move(num_frames: int, num_moving: int, expected: int):
    clip = torch.zeros(1, 3, num_frames, 32, 32)
    clip[:, :, num_frames - num_moving :] = 0.5
    assert dynamic_degree(clip, PartlyMoving(1)).tolist() == [expected]


def test_frames_are_looked_at_eight_times_a_second():
    clip = torch.zeros(1, 3, 10, 32, 32)
    clip[:, :, 3] = 0.5
    curve = movement(clip, PartlyMoving(1), fps=24)
    assert (~curve[0].isnan()).nonzero().flatten().tolist() == [3, 6, 9]
    assert (curve[0] > 1).nonzero().flatten().tolist() == [3]
    # 3 of 4 frames must not move: round(4 * 4 / 16) = 1.
    assert dynamic_degree(clip, PartlyMoving(1), fps=24).tolist() == [1]


def test_flickering_is_vbench_s_formula():
    levels = torch.randint(0, 256, (2, 3, 4, 6, 5), dtype=torch.uint8)
    curve = temporal_flickering(levels)
    assert curve[:, 0].isnan().all()
    for clip, value in zip(levels.double(), curve.nanmean(1), strict=True):
        mean = sum(float((clip[:, t] - clip[:, t - 1]).abs().mean()) for t in range(1, 4)) / 3
        assert float(value) == pytest.approx((255 - mean) / 255, abs=1e-6)
    torch.testing.assert_close(temporal_flickering(levels.float() / 127.5 - 1), curve, equal_nan=True)
    black_and_white = torch.tensor([-1.0, 1, -1])[None, None, :, None, None].expand(1, 3, 3, 2, 2)
    assert temporal_flickering(black_and_white)[0, 1:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("measure", "least"),
    [
        (lambda clip: temporal_flickering(clip), 2),
        (lambda clip: movement(clip, ConstantFlow()), 2),
        (lambda clip: motion_smoothness(clip, ConstantFlow()), 3),
    ],
)
def test_bad_clips_are_refused(measure, least: int):
    with pytest.raises(KinemaError, match=rf"`clip` \(of {least - 1} frames.*at least {least} frames"):
        measure(torch.zeros(1, 3, least - 1, 8, 8))
    for value in (float("nan"), 2.0):
        with pytest.raises(KinemaError, match=r"\[-1, 1\]"):
            measure(torch.full((1, 3, least, 8, 8), value))


def test_small_frames_are_enlarged_and_their_flow_is_in_their_own_pixels():
    class Recording(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            self.a, self.b = a, b
            return torch.stack([a[:, 0] * 30, a[:, 0] * 50], dim=1)

    network = Recording()
    a, b = torch.full((2, 3, 8, 12), 0.5), torch.full((2, 3, 8, 12), -0.5)
    a[1] = 0.1
    flow = EnlargedFlow(network, side=24)(a, b)
    assert network.a.shape == network.b.shape == (2, 3, 24, 36)
    # 15 and 25 pixels of the enlarged frame are a third of that here.
    assert flow[0, :, 3, 5].tolist() == pytest.approx([5, 25 / 3])
    assert flow[1, :, 3, 5].tolist() == pytest.approx([1, 5 / 3])
    assert flow.shape == (2, 2, 8, 12)
    EnlargedFlow(network, side=8)(a, b)
    assert network.a is a
    with pytest.raises(KinemaError, match=r"`flow_side` \(=0\)"):
        EnlargedFlow(network, side=0)


def test_frames_that_are_too_large_for_flow_are_refused(monkeypatch: pytest.MonkeyPatch):
    flow = EnlargedFlow(Halves())
    for shape in ((1, 2000), (20000, 20000), (256, 10_000)):
        frame = torch.zeros(1, 3, 1, 1).expand(1, 3, *shape)
        with pytest.raises(KinemaError, match=r"must have at most 2,359,296 pixels for optical flow"):
            flow(frame, frame)


def test_flow_does_not_depend_on_how_many_frames_go_through_at_once(monkeypatch: pytest.MonkeyPatch):
    network = Halves()
    a, b = torch.rand(7, 3, 8, 12) * 2 - 1, torch.rand(7, 3, 8, 12) * 2 - 1
    whole = EnlargedFlow(network, 16)(a, b)
    assert network.calls == 1
    monkeypatch.setattr("kinema.eval.motion.flow._AT_ONCE", 2 * 16 * 24)
    torch.testing.assert_close(EnlargedFlow(network, 16)(a, b), whole)
    assert network.calls == 1 + 4


class Halves(nn.Module):
    """In place of RAFT."""

    calls = 0

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls += 1
        return (a + b)[:, :2] / 2


def test_fps_must_be_above_zero():
    for fps in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(KinemaError, match=r"`fps` .* must be above 0"):
            movement(torch.zeros(1, 3, 2, 8, 8), ConstantFlow(), fps=fps)


def textured(positions: list[tuple[int, int]], side: int = 64) -> Tensor:
    """A square of blobs that moves over other blobs; positions of its top left corner."""

    def blobs(size: int) -> Tensor:
        noise = torch.nn.functional.avg_pool2d(torch.randn(1, 3, size + 16, size + 16), 9, 1)[..., :size, :size]
        return (noise * 3).clamp(-1, 1)[0]

    scene, thing = blobs(side), blobs(side // 2)
    frames = []
    for y, x in positions:
        frame = scene.clone()
        frame[:, y : y + side // 2, x : x + side // 2] = thing
        frames.append(frame)
    return torch.stack(frames, dim=1)[None]


@pytest.mark.slow
def test_with_raft_itself():
    if find_weights("raft") is None:
        pytest.skip("no RAFT weights in the cache: `kinema weights fetch raft`")
    network = load_flow()
    # A thing of 32 pixels in a frame of 64: without enlarging, RAFT sees nothing move.
    moving, still = textured([(16, 4 + 2 * t) for t in range(5)]), textured([(16, 10)] * 5)
    # 2 pixels where 64 are the side: 4 / 3 of the threshold.
    assert movement(moving, network)[0, 1:].tolist() == pytest.approx([4 / 3] * 4, rel=0.1)
    assert dynamic_degree(torch.cat([moving, still]), network).tolist() == [1, 0]
    jerky = moving[:, :, [0, 2, 2, 2, 4]]
    smooth, rough = (float(motion_smoothness(clip, network).nanmean()) for clip in (moving, jerky))
    assert smooth > 0.98
    assert smooth > rough + 0.01
