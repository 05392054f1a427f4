"""Statistics of latents: moments against torch, weights and balance against cases with a known answer."""

import pytest
import torch
from torch.nn.functional import interpolate

from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.latent_statistics import balanced_scale, latent_moments, measure_latents, pixel_weights


def clips(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 2, 3, 3, 5, 5, generator=generator) * 0.2
    # Colours of unlike strength, so that the channels of a KLT are of unlike weight.
    strength = torch.tensor([1.0, 0.4, 0.1]).view(3, 1, 1, 1)
    return [interpolate(clip, size=(5, 16, 16), mode="trilinear") * strength for clip in coarse]


def trained_start() -> CausalVideoTokenizer:
    model = CausalVideoTokenizer(**TINY).eval()
    model.init_linear(clips(8))
    return model


@torch.no_grad()
def test_moments_are_those_of_all_latents_together():
    model = trained_start()
    mean, std = latent_moments(model, clips(3))
    latents = torch.cat([model.encode(clip).latents for clip in clips(3)])
    assert torch.allclose(mean, latents.mean(dim=(0, 2, 3, 4)), atol=1e-5)
    assert torch.allclose(std, latents.std(dim=(0, 2, 3, 4), correction=0), atol=1e-5)


def test_weight_of_a_linear_decoder_is_the_length_of_its_columns():
    gains = torch.tensor([4.0, 1.0, 0.25])
    latents = torch.zeros(4, 3, 5, 16, 16)
    std = torch.tensor([1.0, 2.0, 1.0])
    weights = pixel_weights(lambda z: z * gains.view(1, 3, 1, 1, 1), latents, std, torch.Generator().manual_seed(0))
    # Each channel of the output is one of three, so that its change is spread over three.
    assert torch.allclose(weights * 3**0.5, gains * std, rtol=0.05)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_balance_sets_the_variance(balance: float):
    std, weights = torch.tensor([0.5, 2.0, 1.0]), torch.tensor([9.0, 1.0, 4.0])
    variance = (std / balanced_scale(std, weights, balance)).square()
    assert variance.mean() == pytest.approx(1.0)
    expected = weights ** (2 * balance)
    assert torch.allclose(variance / variance[1], expected)


def test_measuring_stores_the_statistics():
    model = trained_start()
    measure_latents(model, clips(4), 0.5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        normalised = model.normalize(torch.cat([model.encode(clip).latents for clip in clips(4)]))
    assert normalised.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4
    variance = normalised.var(dim=(0, 2, 3, 4))
    assert variance.mean() == pytest.approx(1.0, rel=0.05)
    # Channels of a KLT come with falling weight.
    assert variance.argmax() == 0
