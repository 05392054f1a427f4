"""A training step neither waits for the device nor loses what it left out."""

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from tests.helpers.waits import no_waits
from torch import nn

from kinema.errors import KinemaError
from kinema.generation.attention import Grid, parse_pattern
from kinema.generation.attention.patterns import DynamicPattern
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import diffusion as diffusion_training
from kinema.training.accelerator import make_accelerator
from kinema.training.checkpoint import TrainingState, read_state
from kinema.training.config import DiffusionTrainingConfig, TokenizerTrainingConfig, TrainingConfig
from kinema.training.diffusion import DiffusionTask
from kinema.training.ema import EMA
from kinema.training.loop import start_discriminator
from kinema.training.meter import Meter
from kinema.training.optimization import Learner, make_optimizer
from kinema.training.skipped import SkippedSteps
from kinema.training.tokenizer import TokenizerTask


@pytest.fixture
def unreadable(monkeypatch):
    """The host does not read flags, as on an accelerator."""
    monkeypatch.setattr("kinema.machine._READABLE", ())


@pytest.fixture
def diffusion(tmp_path, tiny_tokenizer_folder):
    return DiffusionTrainingConfig(
        preset="tiny", data=("toybox",), tokenizer=tiny_tokenizer_folder, output=tmp_path / "run", shape="5x16x16",
        num_clips=8, batch_size=4, num_steps=20, warmup_steps=2, validation_clips=2, log_every=20, save_every=5,
        num_samples=1, sample_steps=2, cpu=True,
    )  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16", data=("toybox",), output=tmp_path / "run", shapes=("5x16x16",), batch_size=2,
        num_steps=20, validation_shape="5x16x16", validation_clips=1, cpu=True,
    )  # fmt: skip


def one_step(task: Any, config: TrainingConfig) -> None:
    accelerator = make_accelerator(config)
    ema = EMA(task.model, config.ema_decay)
    optimizer = make_optimizer(task.model, config)
    learner = Learner(task.model, optimizer, config.learning_rate, config.max_grad_norm, accelerator)
    discriminator = start_discriminator(task.discriminator, config, accelerator)
    skipped, meter = SkippedSteps(TrainingState(), config), Meter()
    for step in range(2):  # the first may wait, for what is kept: the optimizers' state, plans of static patterns
        batch, generator = task.batch(step), torch.Generator().manual_seed(0)
        task.start_step(step)
        with no_waits() if step else nullcontext():
            terms, taken, outputs = learner.step(partial(task.loss, batch=batch, generator=generator), 1.0)
            ema.update(learner.unwrapped_model, taken)
            discriminator_taken = None
            if discriminator is not None:
                loss = partial(task.discriminator_loss, outputs=outputs)
                more, discriminator_taken, _ = discriminator.step(loss, 1.0, taken)
                meter.add(more, discriminator_taken)
            skipped.add(step + 1, taken, discriminator_taken)
            meter.add(terms, taken)
    assert ema.num_updates == 2


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_clips": 0},
        {"optimizer": "adamw"},
        {"attention": "spatial"},
        {"attention": "radial"},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())) or "default",
)
def test_a_step_of_a_transformer(diffusion, settings):
    config = dataclasses.replace(diffusion, **settings)
    one_step(DiffusionTask(config, make_accelerator(config)), config)


@pytest.mark.usefixtures("unreadable")
@pytest.mark.parametrize("bottleneck", ["kl", "vq", "fsq", "lfq", "bsq"])
@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_step_of_a_tokenizer(tokenizer, bottleneck, adversarial):
    options: dict[str, Any] = {
        "kl": {"latent_channels": 4},
        "vq": {"codebook_size": 16, "latent_channels": 4},
        "fsq": {"levels": (4, 4, 4)},
    }
    settings: dict[str, Any] = TINY | {"bottleneck": {"name": bottleneck, **options.get(bottleneck, {"num_bits": 4})}}
    if adversarial:
        small: Any = {"discriminator_width": 4, "discriminator_levels": 2}
        tokenizer = dataclasses.replace(tokenizer, adversarial_weight=adversarial, **small)
    one_step(TokenizerTask(tokenizer, make_accelerator(tokenizer), CausalVideoTokenizer(**settings)), tokenizer)


def test_a_dynamic_pattern_is_planned_without_waiting():
    grid, x = Grid(4, 8, 8), torch.randn(3, 2, 4, 256, 8)
    for text in ("tile-top-k:tile=2x4x4,share=0.5", "sliding-tile-top-k:tile=2x4x4,k=1,window=1x1x1"):
        pattern = parse_pattern(text)
        assert isinstance(pattern, DynamicPattern)
        order = pattern.order(grid)
        pattern.plan_slots(order, 0, x[0], x[1], value=x[2])
        with no_waits():
            layout = pattern.plan_slots(order, 0, x[0], x[1], value=x[2])
            assert not layout.is_full
            assert not layout.is_block_diagonal


class Spoiled(DiffusionTask):
    bad: tuple[int, ...] = ()

    def start_step(self, step):
        self.step = step

    def loss(self, model, batch, generator):
        loss = super().loss(model, batch, generator)
        return loss._replace(total=loss.total * torch.nan) if self.step in self.bad else loss


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_reading_late_gives_the_same_weights(diffusion, monkeypatch, tmp_path, optimizer, request):
    monkeypatch.setattr(diffusion_training, "DiffusionTask", Spoiled)
    monkeypatch.setattr(Spoiled, "bad", (3, 4, 11))
    config = dataclasses.replace(diffusion, optimizer=optimizer)
    diffusion_training.train(dataclasses.replace(config, output=tmp_path / "at once"))
    request.getfixturevalue("unreadable")
    diffusion_training.train(config)
    for name in ("at once", "run"):
        state = read_state(tmp_path / name / "checkpoints/step-00000020")
        assert (state.skipped_steps, state.skipped_in_a_row) == (3, 0)
    one, other = (diffusion_training.load_pipeline(tmp_path / n / "model", "x").transformer for n in ("at once", "run"))
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.usefixtures("unreadable")
def test_too_many_steps_in_a_row_are_noticed_late(diffusion, monkeypatch, tmp_path):
    monkeypatch.setattr(diffusion_training, "DiffusionTask", Spoiled)
    monkeypatch.setattr(Spoiled, "bad", tuple(range(1, 20)))
    config = dataclasses.replace(diffusion, max_skipped_steps=3, save_every=100)
    with pytest.raises(KinemaError, match=r"`max_skipped_steps` \(=3\).*step 4 reached it"):
        diffusion_training.train(config)


@pytest.mark.usefixtures("unreadable")
def test_flags_are_read_eight_steps_late_or_at_the_end():
    state = TrainingState()
    skipped = SkippedSteps(state, TrainingConfig(preset="x"))
    for step in range(1, 9):
        skipped.add(step, torch.zeros(()), None)
    assert state.skipped_steps == 0
    skipped.add(9, torch.ones(()), None)
    assert state.skipped_steps == 1
    skipped.finish()
    assert (state.skipped_steps, state.skipped_in_a_row) == (8, 0)


@pytest.mark.usefixtures("unreadable")
def test_average_on_a_device_is_that_on_the_host():
    model = nn.Linear(3, 2)
    here, there = EMA(model, 0.9), EMA(model, 0.9)
    for step in range(30):
        with torch.no_grad():
            model.weight.normal_()
        taken = torch.tensor(float(step % 3 > 0))
        there.update(model, taken)
        if taken:
            here.update(model)
    assert there.num_updates == here.num_updates == 20
    for one, other in zip(here.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
