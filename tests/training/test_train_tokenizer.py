"""The tokenizer's training: resumes bit for bit, writes what users load, holds out the validation sources."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kinema.errors import KinemaError
from kinema.eval.frames.psnr import clip_psnr
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.checkpoint import Checkpoints, read_state
from kinema.training.config import VALIDATION_PREFIXES, TokenizerTrainingConfig, from_dict
from kinema.training.data.batches import TokenizerBatches
from kinema.training.data.clips import centre_clips
from kinema.training.manifest import write_manifest
from kinema.training.tokenizer import AFTER_TRAINING, LongClips, train


@pytest.fixture
def config(tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", num_frames=12, height=24, width=32)
    make_video(tmp_path / "data/cat_b.mp4", num_frames=12, height=24, width=32)
    return TokenizerTrainingConfig(
        preset="kl-4x8x8-c16",
        data=(str(tmp_path / "data"),),
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        shapes=("5x16x16", "1x24x24"),
        validation=VALIDATION_PREFIXES,
        validation_shape="5x16x16",
        validation_clips=1,
        batch_size=2,
        num_steps=6,
        warmup_steps=2,
        eval_every=100,
        sample_every=100,
        save_every=100,
        log_every=2,
        cpu=True,
    )


def tiny() -> CausalVideoTokenizer:
    torch.manual_seed(0)
    return CausalVideoTokenizer(**TINY)


def checkpoint_files(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoints/step-{step:08d}"
    return {f"{f.stem}/{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resume_is_bit_exact(config, tmp_path, stop_after, num_workers):
    config = dataclasses.replace(config, num_workers=num_workers)
    train(dataclasses.replace(config, output=tmp_path / "whole"), tiny())
    whole = checkpoint_files(tmp_path / "whole", 6)
    with stop_after(3):
        train(config, tiny())
    assert read_state(tmp_path / "run/checkpoints/step-00000003").step == 3
    train(dataclasses.replace(config, resume=True), tiny())
    resumed = checkpoint_files(tmp_path / "run", 6)
    assert whole.keys() == resumed.keys()
    assert {name.split("/")[0] for name in whole} == {"model", "ema", "optimizer"}
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    three = checkpoint_files(tmp_path / "run", 3)
    assert [name for name in whole if not torch.equal(whole[name], three[name])]  # and it did train
    for name in ("score", "best_score", "metrics"):
        states = [read_state(tmp_path / run / "checkpoints/step-00000006") for run in ("whole", "run")]
        assert getattr(states[0], name) == getattr(states[1], name)


def test_run_folder(config):
    model_dir = train(dataclasses.replace(config, eval_every=3, sample_every=3), tiny())
    run = config.run_dir
    assert model_dir == run / "model"
    tokenizer = CausalVideoTokenizer.from_pretrained(model_dir)
    saved = json.loads((model_dir / "training_config.json").read_text())
    assert from_dict(TokenizerTrainingConfig, saved) == dataclasses.replace(config, eval_every=3, sample_every=3)
    assert {p.name for p in (run / "samples").iterdir()} == {
        f"step-0000000{step}.{kind}" for step in (3, 6) for kind in ("gif", "png")
    }
    assert list((run / "logs").rglob("*tfevents*"))
    log = (run / "train.log").read_text()
    assert "psnr_cat_b" in log
    assert "psnr_a " not in log
    assert "clips_per_second" in log
    assert "left" in log
    best = Checkpoints(run / "checkpoints").best()
    assert best is not None
    for name, value in load_file(best / "ema.safetensors").items():
        assert torch.equal(tokenizer.state_dict()[name], value)
    # The score is that of the averaged weights, which are the ones saved.
    clips = centre_clips(Path(config.data[0]) / "cat_b.mp4", 1, (5, 16, 16))
    expected = clip_psnr(clips, tokenizer.reconstruct(clips)).item()
    assert read_state(best).metrics["psnr_cat_b"] == pytest.approx(expected, abs=1e-4)


def test_latent_statistics_are_measured(config, tmp_path):
    """The normalised latents of the clips measured have zero mean and unit variance per channel."""
    config = dataclasses.replace(config, num_steps=1, shapes=("5x16x16",), latent_balance=0.0)
    tokenizer = CausalVideoTokenizer.from_pretrained(train(config, tiny()))
    batches = TokenizerBatches(config)
    with torch.no_grad():
        parts = [tokenizer.encode(batches(AFTER_TRAINING + k)).latents for k in range(16)]
    latents = tokenizer.normalize(torch.cat(parts))
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    torch.testing.assert_close(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=2e-3, rtol=0)


def test_training_improves_the_loss(config):
    config = dataclasses.replace(config, num_steps=40, shapes=("5x16x16",), learning_rate=5e-3, log_every=10)
    train(config, tiny())
    lines = (config.run_dir / "train.log").read_text().splitlines()
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines if "loss " in line]
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_is_not_overwritten(config):
    train(dataclasses.replace(config, num_steps=1), tiny())
    with pytest.raises(KinemaError, match=r"`output` .*--resume"):
        train(config, tiny())


def test_time_limit_saves_and_resumes(config):
    train(dataclasses.replace(config, max_minutes=1e-9), tiny())
    assert [p.name for p in Checkpoints(config.run_dir / "checkpoints").all()] == ["step-00000001"]
    train(dataclasses.replace(config, resume=True), tiny())
    assert Checkpoints(config.run_dir / "checkpoints").all()[-1].name == "step-00000006"
    changes = next(x for x in (config.run_dir / "train.log").read_text().splitlines() if "settings changed" in x)
    assert "max_minutes 1e-09 -> None" in changes
    assert "resume" not in changes
    assert "num_steps" not in changes


def test_linear_start_beats_random_weights(config):
    scores = {}
    for init_linear in (False, True):
        run = config.run_dir.with_name(f"linear-{init_linear}")
        train(dataclasses.replace(config, output=run, num_steps=1, init_linear=init_linear), tiny())
        scores[init_linear] = read_state(run / "checkpoints/step-00000001").score
    assert scores[True] > scores[False] + 3


@pytest.mark.parametrize("change", [{}, {"validation_clips": 2}])
def test_scores_of_another_kind_do_not_count(config, change):
    """A score that no training reaches, from before the change."""
    train(dataclasses.replace(config, num_steps=3, save_every=3), tiny())
    path = config.run_dir / "checkpoints/step-00000003/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score": 99.0, "best_score": 99.0}))
    write_manifest(path.parent)
    train(dataclasses.replace(config, resume=True, **change), tiny())
    checkpoints = Checkpoints(config.run_dir / "checkpoints")
    best, state = checkpoints.best(), read_state(checkpoints.all()[-1])
    assert best is not None
    assert (best.name, state.best_score == 99.0) == (("step-00000006", False) if change else ("step-00000003", True))


def test_a_stop_on_request_saves_and_does_nothing_else(config, stop_after):
    """Who asks a machine to stop may not wait for evaluations and clips."""
    with stop_after(2):
        model_dir = train(config, tiny())
    state = read_state(config.run_dir / "checkpoints/step-00000002")
    assert (state.score, state.best_score, state.metrics) == (None, None, {})
    assert not (config.run_dir / "samples").exists()
    written = CausalVideoTokenizer.from_pretrained(model_dir).state_dict()
    saved = load_file(config.run_dir / "checkpoints/step-00000002/ema.safetensors")
    assert written.keys() == saved.keys()
    assert not [name for name in saved if not torch.equal(written[name], saved[name])]


def test_the_linear_start_takes_clips_of_any_size(config):
    train(dataclasses.replace(config, shapes=("6x18x20",), num_steps=1, init_linear=True), tiny())


def test_statistics_and_starts_see_the_longest_clips(config):
    clips = LongClips(TokenizerBatches(dataclasses.replace(config, shapes=("1x24x24", "5x16x16", "5x16x24"))), 3)
    assert {clip.shape[1:] for clip in clips} == {(3, 5, 16, 24)}
    assert torch.equal(clips[1], clips[1])
    assert not torch.equal(clips[1], clips[2])


def test_frozen_latents_keep_the_statistics_they_began_with(config, tmp_path):
    """The checkpoint has them, so that the run goes on without the tokenizer that it began with."""
    first = train(dataclasses.replace(config, output=tmp_path / "first", num_steps=1), tiny())
    frozen = dataclasses.replace(config, freeze_encoder=True, init_from=first, num_steps=1)
    train(frozen, CausalVideoTokenizer.from_pretrained(first))
    shutil.move(first, tmp_path / "elsewhere")
    again = train(dataclasses.replace(frozen, init_from=None, resume=True, num_steps=2), tiny())
    before, after = (CausalVideoTokenizer.from_pretrained(folder) for folder in (tmp_path / "elsewhere", again))
    assert after.config["latents_mean"] == before.config["latents_mean"] != None  # noqa: E711
    assert after.config["latents_std"] == before.config["latents_std"]
    assert json.loads((again / "training_config.json").read_text())["init_from"] == str(first)
    with pytest.raises(KinemaError, match=r"`init_from` \(=other\) must stay .*first/model"):
        train(dataclasses.replace(frozen, init_from=Path("other"), resume=True, num_steps=3), tiny())


def test_unknown_preset(config):
    with pytest.raises(KinemaError, match="`preset`"):
        train(dataclasses.replace(config, preset="nope"))
