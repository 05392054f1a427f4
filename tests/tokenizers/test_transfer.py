"""Starts of a tokenizer: from one with another bottleneck, and the linear one in front of a quantiser."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.causal_vae.regression import LeastSquares
from kinema.tokenizers.causal_vae.transfer import transfer
from kinema.tokenizers.presets import kl
from kinema.training.config import TokenizerTrainingConfig
from kinema.training.tokenizer import start_model
from kinema.weights import embedded_dir

FSQ = {"name": "fsq", "levels": (8, 8, 8)}
LFQ = {"name": "lfq", "num_bits": 3}
BSQ = {"name": "bsq", "num_bits": 3}
QUANTISERS = pytest.mark.parametrize("quantiser", [FSQ, LFQ, BSQ], ids=["fsq", "lfq", "bsq"])


def make(bottleneck: dict[str, object]) -> CausalVideoTokenizer:
    return CausalVideoTokenizer(**{**TINY, "bottleneck": bottleneck}).eval()


@pytest.fixture(scope="module")
def clips() -> Tensor:
    """Smooth noise, and so the same at every start."""
    noise = torch.randn(8, 3, 9, 24, 24, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.avg_pool3d(noise, (3, 5, 5), stride=1, padding=(1, 2, 2))


def with_networks(clips: Tensor, latent_channels: int) -> CausalVideoTokenizer:
    """A tokenizer in which the linear path and the networks both do something."""
    model = make(kl(latent_channels))
    model.init_linear([clips])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for head in (model.encoder.head, model.decoder.head):
            head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
    return model


def error(model: CausalVideoTokenizer, clips: Tensor) -> float:
    return float((model.reconstruct(clips) - clips).square().mean())


def test_least_squares_finds_the_map_from_batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=generator)
    weight, bias = torch.randn(2, 3, generator=generator).double(), torch.randn(2, generator=generator).double()
    fit = LeastSquares()
    for part in x.split(20):
        fit.add(part, part.double() @ weight.T + bias)
    torch.testing.assert_close(fit.solve(), (weight, bias))


def test_least_squares_with_a_channel_that_never_changes():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 3.0
    fit = LeastSquares()
    fit.add(x, x)
    weight, bias = fit.solve()
    torch.testing.assert_close(x.double() @ weight.T + bias, x.double())


@torch.no_grad()
def test_as_many_channels_lose_nothing(clips: Tensor):
    source, target = with_networks(clips, 4), make(kl(4))
    transfer(source, target, [clips[:4], clips[4:]])
    torch.testing.assert_close(target.reconstruct(clips), source.reconstruct(clips), atol=1e-4, rtol=0)
    latents = target.encode(clips).latents
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-2, rtol=0)


@torch.no_grad()
def test_fewer_channels_keep_the_principal_components(clips: Tensor):
    """Of a linear source, the transfer is the linear code of the smaller size."""
    source, target, linear = make(kl(8)), make(kl(3)), make(kl(3))
    source.init_linear([clips])
    linear.init_linear([clips])
    transfer(source, target, [clips])
    torch.testing.assert_close(target.reconstruct(clips), linear.reconstruct(clips), atol=1e-3, rtol=0)


@torch.no_grad()
@QUANTISERS
@pytest.mark.parametrize("start", ["linear", "transfer"])
def test_the_decoder_expects_quantised_latents(start: str, quantiser: dict[str, object], clips: Tensor):
    """No affine change of the quantised latents makes the start better: its error has nothing of them left."""
    model = make(quantiser)
    if start == "linear":
        model.init_linear([clips])
    else:
        source = make(kl(8))
        source.init_linear([clips])
        transfer(source, model, [clips])
    # Whole latent steps only: a first frame is a block of its own that fills the fold with copies.
    codes = model.encode(clips).latents
    if quantiser is FSQ:
        assert 0.2 < codes.std() < 0.7
    fit = LeastSquares()
    flat = codes[:, :, 1:].movedim(1, -1).flatten(0, 3)
    left = (model.decode(codes).sample - clips)[:, :, 1:]
    left = left.unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8).permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(0, 3)
    fit.add(flat, left)
    weight, bias = fit.solve()
    explained = (flat.double() @ weight.T + bias).square().mean() / left.square().mean()
    assert explained < 0.02


@torch.no_grad()
@QUANTISERS
def test_the_linear_start_of_a_quantiser_is_near_that_of_its_channels(quantiser: dict[str, object], clips: Tensor):
    quantised, continuous, silent = make(quantiser), make(kl(3)), float(clips.square().mean())
    quantised.init_linear([clips])
    continuous.init_linear([clips])
    lost = error(quantised, clips) - error(continuous, clips)
    # The sign of a Gaussian number predicts 2/π of its square, which leaves 0.363.
    assert 0 < lost < (0.25 if quantiser is FSQ else 0.4) * (silent - error(continuous, clips))


@torch.no_grad()
def test_starts_take_clips_of_any_size(clips: Tensor):
    """Padded, as training itself does it."""
    part = clips[:, :, :7, :20, :18]
    source = make(kl(8))
    source.init_linear([part])
    for model in (make(FSQ), make(kl(3))):
        transfer(source, model, [part])
        assert error(model, part) < float(part.square().mean())


@torch.no_grad()
def test_a_transfer_must_fit(clips: Tensor):
    with pytest.raises(KinemaError, match=r"`source` \(=3 continuous latent channels\) .* at least 4"):
        transfer(make(kl(3)), make(kl(4)), [clips])
    with pytest.raises(KinemaError, match=r"`source` \(=3 discrete latent channels\)"):
        transfer(make(FSQ), make(kl(3)), [clips])
    with pytest.raises(KinemaError, match=r"`videos` \(=no clip\)"):
        transfer(make(kl(4)), make(kl(4)), [])


def test_training_starts_from_another_bottleneck():
    folder = embedded_dir("kl-4x8x8-c16")
    config = TokenizerTrainingConfig(
        preset="fsq-4x8x8-32768", data=("toybox",), init_from=folder, init_linear=False, batch_size=1
    )
    model, source = start_model(config)
    assert (model.config.bottleneck["name"], source.config.bottleneck["name"]) == ("fsq", "kl")
    same = dataclasses.replace(config, preset="kl-4x8x8-c16")
    model, source = start_model(same)
    assert (model.config.bottleneck["name"], source) == ("kl", None)
    with pytest.raises(KinemaError, match=r"`init_from` .*must have `decoder_blocks`"):
        start_model(dataclasses.replace(config, preset="fsq-4x16x16-32768"))
