"""Frame metrics that go through a network: exact with stand-in networks, and with the real ones where they are."""

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from kinema.errors import KinemaError
from kinema.eval.frames import METRICS, FrameMeasure, SetMeasure
from kinema.eval.frames.features import FrameFeatures
from kinema.eval.frames.fid import FrameFID
from kinema.eval.frames.kid import FrameKID
from kinema.eval.frames.lpips import lpips
from kinema.eval.frames.warping_error import visible, warp, warping_error


class Stand(nn.Module):
    """A function in the place of a network."""

    num_features = 6  # what torchmetrics asks a network for images for

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def moving(num_frames: int, dx: int, dy: int, size: int = 24) -> Tensor:
    """A picture behind a window: what is seen moves by (dx, dy) pixels a frame."""
    reach = num_frames * max(abs(dx), abs(dy))
    picture = noise(3, size + 2 * reach, size + 2 * reach)
    rows = [reach - dy * t for t in range(num_frames)]
    columns = [reach - dx * t for t in range(num_frames)]
    frames = [picture[:, r : r + size, c : c + size] for r, c in zip(rows, columns, strict=True)]
    return torch.stack(frames, dim=1)[None]


def constant_flow(dx: float, dy: float) -> nn.Module:
    """A network for `moving`: forward in time things move by (dx, dy), backward by the opposite.

    Its two inputs say which way it is asked: the flow leads back where it explains the images better.
    """

    def flow(a: Tensor, b: Tensor) -> Tensor:
        found = []
        for x, y in zip(a, b, strict=True):
            forward = torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).expand(1, 2, *x.shape[1:])
            candidates = [forward, -forward]
            errors = []
            for candidate in candidates:
                moved, inside = warp(y[None], candidate)
                errors.append(float((moved - x)[0][:, inside[0]].square().mean()))
            found.append(candidates[errors.index(min(errors))])
        return torch.cat(found)

    return Stand(flow)


def still_flow() -> nn.Module:
    return Stand(lambda a, b: torch.zeros(len(a), 2, *a.shape[2:]))


def test_lpips_gives_each_frame_to_the_network_in_order():
    reference, clip = noise(2, 3, 5, 8, 8), noise(2, 3, 5, 8, 8, seed=1)
    found = lpips(reference, clip, network=Stand(lambda a, b: (a - 2 * b).mean(dim=(1, 2, 3))))
    assert torch.allclose(found, (reference - 2 * clip).mean(dim=(1, 3, 4)), atol=1e-6)


def test_warp_reads_at_the_place_plus_the_flow():
    image = torch.arange(12.0).view(1, 1, 3, 4)
    flow = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    moved, inside = warp(image, flow)
    assert moved[0, 0, :2, :3].tolist() == [[3, 4, 5], [7, 8, 9]]  # one to the right, half of a row of 4 further down
    assert inside[0].tolist() == [[True, True, True, False], [True, True, True, False], [False] * 4]


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, -1), (-1, 2)])
def test_what_moves_along_the_flow_has_no_warping_error(dx: int, dy: int):
    clip = moving(4, dx, dy)
    found = warping_error(clip, clip, network=constant_flow(dx, dy))
    assert math.isnan(found[0, 0])
    assert found[0, 1:].tolist() == pytest.approx([0] * 3, abs=1e-9)
    # Without the flow the same clip does badly: two independent uniform values in [0, 1] differ by 1/6 in the square.
    blind = warping_error(clip, clip, network=still_flow())[0, 1:]
    assert blind.mean().item() == pytest.approx(1 / 6, rel=0.1)


def test_warping_error_of_noise_that_comes_and_goes():
    clip = moving(4, 1, 1, size=48) * 0.5
    sigma = 0.1
    noisy = clip + sigma * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))
    found = warping_error(clip, noisy.clamp(-1, 1), network=constant_flow(1, 1))[0, 1:]
    # The variance of a difference of two independent values, halved to [0, 1].
    assert found.mean().item() == pytest.approx(2 * (sigma / 2) ** 2, rel=0.05)


def test_the_flow_is_that_of_the_reference():
    clip = moving(4, 2, 0)
    frozen = clip[:, :, :1].expand_as(clip).contiguous()
    assert warping_error(clip, frozen, network=constant_flow(2, 0))[0, 1:].min() > 0.1


def test_pairs_at_once_do_not_matter():
    clip = moving(6, 1, 0)
    other = (clip + 0.3 * noise(*clip.shape, seed=3)).clamp(-1, 1)
    values = [warping_error(clip, other, network=constant_flow(1, 0), pixels=n)[0, 1:] for n in (1, 24 * 24 * 2, 10**6)]
    assert torch.allclose(values[0], values[1])
    assert torch.allclose(values[0], values[2])


def test_warping_error_where_there_is_nothing_to_follow():
    one = noise(1, 3, 1, 8, 8)
    assert warping_error(one, one, network=still_flow()).isnan().all()
    away = Stand(lambda a, b: torch.full((len(a), 2, *a.shape[2:]), 100.0))
    two = noise(2, 3, 2, 8, 8)
    assert warping_error(two, two, network=away).isnan().all()


def test_visible_leaves_out_what_does_not_lead_back_and_edges():
    flow = torch.zeros(1, 2, 4, 6)
    flow[:, 0, :, 3:] = 2.0  # the right half moves by two
    assert visible(flow, torch.zeros_like(flow))[0, 0].tolist() == [True, True, False, False, False, False]
    # Everything leads back; the edge between the halves stays out.
    back = torch.zeros_like(flow)
    back[:, 0, :, 5:] = -2.0
    assert visible(flow, back)[0, 0].tolist() == [True, True, False, True, True, True]


def image_network(dim: int = 6) -> nn.Module:
    """uint8 images to a few numbers."""
    weight = torch.randn(3 * 8 * 8, dim, generator=torch.Generator().manual_seed(0))
    return Stand(lambda images: images.float().flatten(1) / 255 @ weight)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_features_are_of_every_frame_in_order(batch_size: int):
    clip = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    network = image_network()
    found = FrameFeatures(network, batch_size=batch_size)(clip)
    wanted = torch.cat([network(clip[b, :, t][None]) for b in range(2) for t in range(4)])
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(FrameFeatures(network)(clip.float() / 127.5 - 1), wanted, atol=1e-5)


def test_fid_as_torchmetrics_streamed_or_at_once():
    a, b = (torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8) // k for k in (1, 2))
    network = image_network()
    wanted = FrechetInceptionDistance(feature=network, input_img_size=(3, 8, 8))
    wanted.update(a, real=True)
    wanted.update(b, real=False)
    for pieces in (1, 7):
        found = FrameFID(dim=6)
        for x, y in zip(a.split(40 // pieces), b.split(40 // pieces), strict=True):
            found.update(network(x), network(y))
        assert float(found.compute()) == pytest.approx(float(wanted.compute()), rel=1e-4)


def test_fid_oracle_and_equal_frames():
    # Four points with mean 0 and sample covariance 4/3 against the same ones moved by (1, 2).
    square = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    found = FrameFID(dim=2)
    found.update(square, square + torch.tensor([1.0, 2]))
    assert float(found.compute()) == pytest.approx(5.0, abs=1e-9)
    same = FrameFID(dim=2)
    same.update(square, square)
    assert float(same.compute()) == 0.0
    one = FrameFID(dim=2)
    one.update(square[:1], square[:1])
    with pytest.raises(KinemaError, match="at least 2"):
        one.compute()


def test_kid_oracle_streamed():
    a = torch.arange(1.0, 10).view(3, 3)
    b = torch.tensor([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    found = FrameKID()
    found.update(a[:1], b[:3])
    found.update(a[1:], b[3:])
    assert float(found.compute()) == pytest.approx(-5062.0432, abs=1e-3)


def measure_of(name: str) -> FrameMeasure | SetMeasure:
    """A metric with its real network, or a skip that says what is missing."""
    network = METRICS[name].network
    assert network is not None
    find = importlib.import_module("kinema.eval.weights").find_weights
    if find(network) is None:
        pytest.skip(f"weights `{network}` are not in the cache: kinema weights fetch {network}")
    return METRICS[name].make(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wanted"), [("lpips_alex", 0.813954), ("lpips_vgg", 0.453837)])
def test_lpips_of_black_and_white(name: str, wanted: float):
    measure = measure_of(name)
    assert isinstance(measure, FrameMeasure)
    black = torch.zeros(1, 3, 2, 64, 64, dtype=torch.uint8)
    white = torch.full_like(black, 255)
    assert measure(black, white)[0].tolist() == pytest.approx([wanted] * 2, abs=1e-4)
    assert measure(white, white).abs().max() < 1e-6


@pytest.mark.slow
def test_warping_error_with_raft_follows_a_moving_picture():
    measure = measure_of("warping_error")
    assert isinstance(measure, FrameMeasure)
    coarse = noise(1, 3, 40, 40)
    picture = nn.functional.interpolate(coarse, size=(240, 240), mode="bicubic").clamp(-1, 1)[0]
    clip = torch.stack([picture[:, 20 : 20 + 160, 40 - 4 * t : 200 - 4 * t] for t in range(3)], dim=1)[None]
    followed = measure(clip, clip)[0, 1:].mean().item()
    change = (clip.diff(dim=2) / 2).square().mean().item()
    assert followed < 0.02 * change


@pytest.mark.slow
def test_fid_with_inception_tells_frames_apart():
    from kinema.eval.frames.features import load_features

    measure_of("fid")  # skips where the weights are missing
    features = load_features("inception")
    clips = torch.randint(0, 256, (3, 3, 2, 64, 64), dtype=torch.uint8)
    same, other = FrameFID(), FrameFID()
    real = features(clips)
    assert real.shape == (6, 2048)
    same.update(real, real)
    other.update(real, features(clips // 2))
    assert float(same.compute()) == 0.0
    assert float(other.compute()) > 1.0
