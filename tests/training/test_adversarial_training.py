"""Training against a discriminator, in two stages, on images and clips; and steps that are left out."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinema.errors import KinemaError
from kinema.machine import computes_bf16
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import tokenizer as tokenizer_training
from kinema.training.accelerator import make_accelerator
from kinema.training.checkpoint import read_state
from kinema.training.config import TokenizerTrainingConfig, to_dict
from kinema.training.losses.adversarial import Adversary
from kinema.training.task import StepLoss
from kinema.training.tokenizer import TokenizerTask, train

NATIVE_BF16 = pytest.mark.skipif(
    not computes_bf16(torch.device("cpu")), reason="trainings refuse bfloat16 on a processor without it"
)
VQ = TINY | dict(bottleneck=dict(name="vq", codebook_size=16, latent_channels=4))


PLAIN: dict = {
    field.name: field.default
    for field in dataclasses.fields(TokenizerTrainingConfig)
    if field.name.startswith(("adversarial_", "discriminator_", "lecam_"))
}
"""Settings of a training without a discriminator."""


@pytest.fixture
def config(tmp_path, monkeypatch, make_video):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "no weights"))
    for name in ("a", "cat_b"):
        make_video(tmp_path / f"data/{name}.mp4", num_frames=12, height=24, width=32)
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16",
        data=(str(tmp_path / "data"),),
        cache_dir=tmp_path / "cache",
        validation=("cat_",),
        validation_shape="5x16x16",
        output=tmp_path / "run",
        shapes=("5x16x16", "1x16x16"),
        validation_clips=1,
        batch_size=2,
        num_steps=6,
        warmup_steps=1,
        eval_every=100,
        sample_every=100,
        save_every=100,
        log_every=2,
        adversarial_weight=0.1,
        adversarial_start=2,
        discriminator_lead=1,
        discriminator_width=4,
        discriminator_levels=2,
        lecam_weight=0.1,
        num_workers=0,
        cpu=True,
    )


def tiny(settings: dict = TINY) -> CausalVideoTokenizer:
    torch.manual_seed(0)
    return CausalVideoTokenizer(**settings)


def checkpoint_files(run, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoints/step-{step:08d}"
    return {f"{f.stem}/{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


@pytest.mark.parametrize("settings", [TINY, VQ], ids=["kl", "vq"])
@pytest.mark.parametrize("stop", [1, 4])
def test_resume_with_a_discriminator_is_bit_exact(config, tmp_path, settings, stop):
    """Also from a step at which the discriminator had not begun."""
    constant = dict(schedule="constant")
    train(dataclasses.replace(config, output=tmp_path / "whole", **constant), tiny(settings))
    train(dataclasses.replace(config, num_steps=stop, **constant), tiny(settings))
    train(dataclasses.replace(config, resume=True, **constant), tiny(settings))
    whole, resumed = checkpoint_files(tmp_path / "whole", 6), checkpoint_files(tmp_path / "run", 6)
    assert whole.keys() == resumed.keys()
    assert {"model", "ema", "optimizer", "discriminator", "discriminator_optimizer"} == {k.split("/")[0] for k in whole}
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert whole["discriminator/num_updates"] == 5
    middle = checkpoint_files(tmp_path / "run", stop)
    moved = {k.split("/")[0] for k, v in middle.items() if not torch.equal(v, whole[k])}
    assert moved >= {"model", "ema", "optimizer", "discriminator"}


def test_a_run_without_a_discriminator_goes_on_with_one(config, tmp_path):
    """A new run from the tokenizer that the first made, and the same run with changed settings."""
    plain = dataclasses.replace(config, **PLAIN, num_steps=2)
    train(plain, tiny())
    assert not list((tmp_path / "run").rglob("discriminator*"))
    train(dataclasses.replace(config, resume=True), tiny())
    assert checkpoint_files(tmp_path / "run", 6)["discriminator/num_updates"] == 4
    start: Any = CausalVideoTokenizer.from_pretrained(tmp_path / "run/model")
    train(dataclasses.replace(config, output=tmp_path / "next", adversarial_start=0), start)
    assert checkpoint_files(tmp_path / "next", 6)["discriminator/num_updates"] == 6


def losses_of(task: TokenizerTask, batch: torch.Tensor, step: int) -> StepLoss:
    task.start_step(step)
    return task.loss(task.model, batch, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [1, 5])
def test_gradients_reach_the_decoder_and_no_frozen_encoder(config, frames):
    """The adversarial loss alone, on clips and on images."""
    alone = dict(mse_weight=0.0, kl_weight=0.0, adversarial_adaptive=False, freeze_encoder=True)
    config = dataclasses.replace(config, **alone)
    task = TokenizerTask(config, make_accelerator(config), randomised(tiny()))
    assert task.adversary is not None
    batch = torch.rand(2, 3, frames, 16, 16) * 2 - 1
    before = losses_of(task, batch, 1).total
    assert before.item() == 0  # it has not started
    losses = losses_of(task, batch, 2)
    loss, terms = losses.total, losses.terms
    assert loss.item() == pytest.approx(0.1 * terms["adversarial"].item())
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in trained(task.model.decoder, frames))
    assert all(p.grad is None for p in task.model.encoder.parameters())
    assert all(p.grad is None for p in task.adversary.parameters())
    task.discriminator_loss(task.adversary, losses.outputs)[0].backward()
    assert all(p.grad is not None for p in task.adversary.parameters())


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def trained(decoder: nn.Module, frames: int) -> list[tuple[str, nn.Parameter]]:
    """Weights that matter for a clip: for one frame, no layer looks back and no time is unfolded."""
    return [(n, p) for n, p in decoder.named_parameters() if frames > 1 or n.startswith(("head", "norm", "stem"))]


def test_discriminator_learns_to_tell_noise_from_clips(config):
    task = TokenizerTask(config, make_accelerator(config), tiny())
    adversary = Adversary(width=8, levels=2, lecam_weight=0.001)
    optimizer = torch.optim.AdamW(adversary.parameters(), lr=2e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)

    def logits(step: int) -> torch.Tensor:
        clips = task.batch(step)
        return adversary(torch.cat([clips, torch.rand(clips.shape, generator=generator) * 2 - 1]))

    for step in range(30):
        optimizer.zero_grad()
        adversary.loss(logits(step))[0].backward()
        optimizer.step()
    with torch.no_grad():
        _, terms = adversary.loss(logits(100).mean(dim=(2, 3, 4), keepdim=True))  # a logit for each clip
    assert terms["discriminator_accuracy"] == 1


@pytest.mark.parametrize("settings", [TINY, VQ], ids=["kl", "vq"])
def test_decoder_only_leaves_latents_as_they_are(config, tmp_path, settings):
    """Bit for bit, with the codebook and the statistics, after joint training on images and clips."""
    first = tmp_path / "first"
    train(dataclasses.replace(config, output=first, **PLAIN), tiny(settings))
    before: Any = CausalVideoTokenizer.from_pretrained(first / "model")
    start: Any = CausalVideoTokenizer.from_pretrained(first / "model")
    steps = {"freeze_encoder": True, "adversarial_start": 0, "learning_rate": 1e-2}
    second = train(dataclasses.replace(config, **steps), start)
    after: Any = CausalVideoTokenizer.from_pretrained(second)
    assert json.dumps(before.config.latents_mean) == json.dumps(after.config.latents_mean)
    assert json.dumps(before.config.latents_std) == json.dumps(after.config.latents_std)
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        old, new = before.encode(video), after.encode(video)
        assert torch.equal(before.normalize(old.latents), after.normalize(new.latents))
        assert not torch.equal(before.decode(old.latents).sample, after.decode(new.latents).sample)
    changed = {k.split(".")[0] for k, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[k])}
    assert changed == {"decoder"}


class Spoiled(TokenizerTask):
    """Its loss is not finite in some steps; the codebook's buffers see that too."""

    def loss(self, model, batch, generator):
        spoiled = self.step in self.bad
        return super().loss(model, batch * torch.nan if spoiled else batch, generator)

    def discriminator_loss(self, discriminator, outputs):
        loss = super().discriminator_loss(discriminator, outputs)
        return loss._replace(total=loss.total * torch.inf) if self.step in self.bad_discriminator else loss

    bad: tuple[int, ...] = ()
    bad_discriminator: tuple[int, ...] = ()


@pytest.mark.parametrize("settings", [TINY, VQ], ids=["kl", "vq"])
@pytest.mark.parametrize("kind", ["bad", "bad_discriminator"])
def test_a_step_that_is_not_finite_is_left_out(config, monkeypatch, tmp_path, settings, kind):
    monkeypatch.setattr(tokenizer_training, "TokenizerTask", Spoiled)
    config = dataclasses.replace(config, save_every=1, keep_last=10, shapes=("5x16x16",), adversarial_start=0)
    monkeypatch.setattr(Spoiled, kind, (3,))
    train(config, tiny(settings))
    three, four, six = (checkpoint_files(tmp_path / "run", step) for step in (3, 4, 6))
    changed = {name.split("/")[0] for name in three if not torch.equal(three[name], four[name])}
    assert changed == (set() if kind == "bad" else {"model", "ema", "optimizer"})
    assert [name for name in four if not torch.equal(four[name], six[name])]
    assert all(torch.isfinite(value).all() for value in six.values())
    state = read_state(tmp_path / "run/checkpoints/step-00000006")
    assert (state.skipped_steps, state.skipped_in_a_row) == (1, 0)
    assert "skipped_steps 1" in (tmp_path / "run/train.log").read_text()


def test_training_stops_when_no_step_is_finite(config, monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizer_training, "TokenizerTask", Spoiled)
    monkeypatch.setattr(Spoiled, "bad", (1, 3, 4, 5, 6, 7, 8))
    config = dataclasses.replace(config, max_skipped_steps=4, num_steps=4, save_every=1)
    train(config, tiny())
    assert read_state(tmp_path / "run/checkpoints/step-00000004").skipped_steps == 2
    with pytest.raises(KinemaError, match=r"`max_skipped_steps` \(=4\).*step 7"):
        train(dataclasses.replace(config, resume=True, num_steps=20), tiny())


def test_use_of_the_codebook_is_logged(config, tmp_path):
    train(dataclasses.replace(config, **PLAIN), tiny(VQ))
    log = (tmp_path / "run/train.log").read_text()
    lines = [line for line in log.splitlines() if "/6, " in line]
    assert lines
    assert all("perplexity" in line and "codebook_usage" in line for line in lines)
    metrics = read_state(tmp_path / "run/checkpoints/step-00000006").metrics
    codes = metrics["codebook_usage"] * 16  # a whole number of codes, and no more perplexity than codes in use
    assert codes == pytest.approx(round(codes))
    assert 1 <= metrics["perplexity"] <= codes * (1 + 1e-6)


def test_score_trades_psnr_for_lpips(config, monkeypatch):
    task = TokenizerTask(config, make_accelerator(config), tiny())
    psnr = task.evaluate(task.model)["score"]
    task.score_lpips = lambda *_: torch.tensor(0.25)
    numbers = task.evaluate(task.model)
    assert numbers["psnr"] == psnr
    assert numbers["score"] == pytest.approx(psnr - 50 * 0.25)
    assert dataclasses.replace(config, **PLAIN).lpips_in_score == 0


PROGRAM = """
import json
import sys
from pathlib import Path
import torch
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training import tokenizer
from kinema.training.config import from_dict, TokenizerTrainingConfig

class Spoiled(tokenizer.TokenizerTask):
    def loss(self, model, batch, generator):
        spoiled = self.step == 2 and self.batches.rank == 1
        return super().loss(model, batch * torch.nan if spoiled else batch, generator)

    def discriminator_loss(self, discriminator, outputs):
        loss = super().discriminator_loss(discriminator, outputs)
        return loss._replace(total=loss.total * torch.nan) if self.step == 4 and self.batches.rank == 0 else loss

    def num_clips(self, batch):
        rows = [p.detach().flatten().double() for m in (self.model, self.adversary) for p in m.state_dict().values()]
        with Path(sys.argv[2], f"rank{self.batches.rank}").open("a") as file:
            file.write(repr(torch.cat(rows).sum().item()) + "\\n")
        return super().num_clips(batch)

tokenizer.TokenizerTask = Spoiled
torch.manual_seed(0)
model = CausalVideoTokenizer(**(TINY | dict(bottleneck=dict(name="vq", codebook_size=16, latent_channels=4))))
tokenizer.train(from_dict(TokenizerTrainingConfig, json.loads(sys.argv[1])), model)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=NATIVE_BF16)])
def test_two_processes_stay_alike(config, tmp_path, precision):
    """Also over steps that are not finite in one of them alone."""
    config = dataclasses.replace(config, adversarial_start=0, mixed_precision=precision, log_every=1)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "program.py")]
    result = subprocess.run(
        [sys.executable, *command, json.dumps(to_dict(config)), str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    one, other = ((tmp_path / f"rank{rank}").read_text().split() for rank in range(2))
    assert len(one) == 6
    assert one == other
    assert one[1] == one[2]  # step 2 was left out
    assert len(set(one)) == 5
    assert "skipped_steps 2" in (tmp_path / "run/train.log").read_text()
