"""What is given stays clean, at timestep 0, and out of the loss."""

import pytest
import torch

from kinema.errors import KinemaError
from kinema.generation.conditioning import Conditioning, flow_inputs, sample_first_step_conditioning
from kinema.generation.flow import interpolate


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_nothing_given_changes_nothing():
    x, t = normal(2, 3, 4, 2, 2), torch.tensor([0.25, 1.0])
    conditioning = Conditioning.nothing(x)
    assert torch.equal(conditioning.impose(x), x)
    assert torch.equal(conditioning.timesteps(t), torch.tensor([250.0, 1000.0])[:, None].expand(2, 16))


def test_first_steps_are_imposed_at_timestep_zero():
    given, x = normal(2, 3, 1, 2, 2, seed=1), normal(2, 3, 4, 2, 2)
    conditioning = Conditioning.first_steps(given, num_steps=4)
    imposed = conditioning.impose(x)
    assert torch.equal(imposed[:, :, :1], given)
    assert torch.equal(imposed[:, :, 1:], x[:, :, 1:])
    timesteps = conditioning.timesteps(torch.tensor([0.5, 0.75])).reshape(2, 4, 4)
    assert timesteps[:, 0].eq(0).all()
    assert timesteps[0, 1:].eq(500).all()
    assert timesteps[1, 1:].eq(750).all()


def test_more_given_than_there_is():
    with pytest.raises(KinemaError, match="`num_steps` \\(=2\\)"):
        Conditioning.first_steps(normal(1, 3, 3, 2, 2), num_steps=2)


def test_token_is_given_when_its_whole_patch_is():
    x = normal(1, 3, 2, 2, 4)
    mask = torch.zeros(1, 2, 2, 4, dtype=torch.bool)
    mask[0, 0, :, :2] = True  # one whole patch
    mask[0, 1, 0, 2:] = True  # half a patch
    conditioning = Conditioning(latents=x, mask=mask)
    tokens = conditioning.token_mask((1, 2, 2))
    assert tokens.tolist() == [[True, False, False, False]]
    assert conditioning.timesteps(torch.tensor([0.1]), (1, 2, 2)).tolist() == [[0, 100, 100, 100]]


def test_training_example():
    clean, noise, t = normal(2, 3, 4, 2, 2), normal(2, 3, 4, 2, 2, seed=1), torch.tensor([0.3, 0.9])
    given = normal(2, 3, 1, 2, 2, seed=2)
    inputs = flow_inputs(clean, noise, t, Conditioning.first_steps(given, num_steps=4))
    assert torch.equal(inputs.hidden_states[:, :, :1], given)
    assert torch.equal(inputs.hidden_states[:, :, 1:], interpolate(clean, noise, t)[:, :, 1:])
    torch.testing.assert_close(inputs.target, noise - clean)
    assert not inputs.wanted[:, 0].any()
    assert inputs.wanted[:, 1:].all()
    assert inputs.timestep.tolist() == [pytest.approx([0, 300, 300, 300]), pytest.approx([0, 900, 900, 900])]


@pytest.mark.parametrize(
    ("given", "patch", "shape"), [(0, (1, 2, 2), (2,)), (2, (1, 2, 2), (2, 4)), (3, (2, 1, 1), (2, 2))]
)
def test_grouped_timesteps_are_those_of_the_tokens(given, patch, shape):
    x, t = normal(2, 3, 4, 2, 2), torch.tensor([0.5, 0.75])
    conditioning = Conditioning.first_steps(x[:, :, :given], 4) if given else Conditioning.nothing(x)
    grouped = conditioning.grouped_timesteps(t, patch)
    assert grouped.shape == shape
    per_token = conditioning.timesteps(t, patch)
    assert torch.equal(grouped.view(2, -1).repeat_interleave(per_token.numel() // grouped.numel(), 1), per_token)
    unknown = Conditioning(latents=conditioning.latents, mask=conditioning.mask)
    assert torch.equal(unknown.grouped_timesteps(t, patch), per_token)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 70, 130), (1.0, 200, 200)])
def test_share_of_given_clips(probability, least, most):
    clean = normal(200, 2, 3, 1, 1)
    conditioning = sample_first_step_conditioning(clean, probability, generator=torch.Generator().manual_seed(0))
    assert least <= int(conditioning.mask[:, 0, 0, 0].sum()) <= most
    assert not conditioning.mask[:, 1:].any()
    torch.testing.assert_close(conditioning.latents[:, :, 0], clean[:, :, 0])


def test_given_latents_carry_a_little_noise():
    clean = torch.zeros(500, 2, 3, 2, 2)
    conditioning = sample_first_step_conditioning(clean, 1.0, max_noise=0.2, generator=torch.Generator().manual_seed(0))
    # The mean square of u * noise for u uniform in [0, a] is a^2 / 3.
    assert conditioning.latents[:, :, 0].square().mean() == pytest.approx(0.2**2 / 3, rel=0.1)


def test_images_are_never_given():
    conditioning = sample_first_step_conditioning(normal(8, 2, 1, 2, 2), 1.0)
    assert not conditioning.mask.any()
