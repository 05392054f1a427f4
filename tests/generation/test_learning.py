"""The parts together: a tiny model learns what three words mean, with and without a given first step."""

import itertools

import pytest
import torch

from kinema.generation.conditioning import flow_inputs, sample_first_step_conditioning
from kinema.generation.flow import flow_loss, sample_timesteps
from kinema.generation.text import WordTextEncoder, build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer

WORDS = ["up", "down", "round"]
GRID = (3, 1, 2)


@pytest.fixture(scope="module")
def learned():
    """Clips start at one of many places, and each word says how they go on."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    encode = WordTextEncoder(build_word_tokenizer(WORDS))
    model = VideoTransformer.from_preset("tiny", text_vocab_size=6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        clean, labels = make_clips(48, generator)
        noise = torch.randn(clean.shape, generator=generator)
        conditioning = sample_first_step_conditioning(clean, 0.5, generator=generator)
        inputs = flow_inputs(clean, noise, sample_timesteps(48, generator), conditioning)
        text = encode([WORDS[label] for label in labels])
        prediction = model(inputs.hidden_states, inputs.timestep, text.values, text.mask).sample
        loss = flow_loss(prediction, inputs.target, inputs.wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), encode, losses


def make_clips(num, generator):
    """Step k is the start plus k times the direction of the word."""
    labels = torch.randint(3, (num,), generator=generator)
    start = torch.randn(num, 4, 1, 1, 1, generator=generator)
    directions = torch.eye(4)[labels][:, :, None, None, None]
    steps = torch.arange(3.0)[None, None, :, None, None]
    return (start + directions * steps).expand(num, 4, *GRID).contiguous(), labels.tolist()


def test_loss_falls(learned):
    losses = learned[2]
    assert sum(losses[-20:]) < 0.35 * sum(losses[:20])


@torch.no_grad()
def test_words_and_given_steps_decide_the_clip(learned):
    model, encode, _ = learned
    clean, labels = make_clips(30, torch.Generator().manual_seed(7))
    conditioning = sample_first_step_conditioning(clean, 1.0)
    text = encode([WORDS[label] for label in labels])
    x = conditioning.impose(torch.randn(clean.shape, generator=torch.Generator().manual_seed(8)))
    times = torch.linspace(1, 0, 13)
    for now, then in itertools.pairwise(times):
        timestep = conditioning.timesteps(now.expand(30))
        x = x + (then - now) * model(x, timestep, text.values, text.mask).sample
        x = conditioning.impose(x)
    moved = (x[:, :, 2] - x[:, :, 0]).mean(dim=(2, 3))
    assert moved.argmax(dim=1).tolist() == labels
    assert (x - clean).square().mean() < 0.1
