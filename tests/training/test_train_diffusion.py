"""The transformer's training: resumes bit for bit, learns, and writes a whole pipeline."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from kinema.errors import KinemaError
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.training.accelerator import make_accelerator
from kinema.training.checkpoint import read_state
from kinema.training.config import DiffusionTrainingConfig, from_dict
from kinema.training.diffusion import DiffusionTask, epoch_order, load_pipeline, train


@pytest.fixture
def config(tmp_path, tiny_tokenizer_folder):
    return DiffusionTrainingConfig(
        preset="tiny",
        data=("toybox",),
        tokenizer=tiny_tokenizer_folder,
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        shape="5x16x16",
        num_clips=8,
        batch_size=4,
        num_steps=6,
        warmup_steps=2,
        eval_every=100,
        sample_every=100,
        save_every=100,
        log_every=2,
        validation_clips=4,
        num_samples=1,
        sample_steps=2,
        cpu=True,
    )


def checkpoint_files(run, step):
    folder = run / f"checkpoints/step-{step:08d}"
    return {f"{f.stem}/{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


@pytest.mark.parametrize("num_clips", [8, 0], ids=["kept latents", "fresh clips"])
def test_resume_is_bit_exact(config, tmp_path, stop_after, num_clips):
    config = dataclasses.replace(config, num_clips=num_clips)
    train(dataclasses.replace(config, output=tmp_path / "whole"))

    with stop_after(3):
        train(config)
    train(dataclasses.replace(config, resume=True))
    whole, resumed = checkpoint_files(tmp_path / "whole", 6), checkpoint_files(tmp_path / "run", 6)
    assert whole.keys() == resumed.keys()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    three = checkpoint_files(tmp_path / "run", 3)
    assert [name for name in whole if not torch.equal(whole[name], three[name])]


def test_init_from_starts_with_the_weights_and_words_of_a_pipeline(config, tmp_path):
    folder = train(config)
    config = dataclasses.replace(config, init_from=folder, output=tmp_path / "second", seed=5)
    task = DiffusionTask(config, make_accelerator(config))
    weights = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    started = task.model.state_dict()
    assert started.keys() == weights.keys()
    assert not [name for name in weights if not torch.equal(weights[name], started[name])]
    assert task.text_tokenizer.get_vocab() == KinemaPipeline.from_pretrained(folder).tokenizer.get_vocab()
    train(config)


def test_init_from_takes_an_embedded_name():
    assert load_pipeline(Path("toybox"), "init_from").transformer.config.dim == 256
    with pytest.raises(KinemaError, match=r"`init_from` \(=kl-4x8x8-c16\) must be the folder of a pipeline"):
        load_pipeline(Path("kl-4x8x8-c16"), "init_from")


def test_init_from_must_fit(config, tmp_path, tiny_tokenizer_folder):
    with pytest.raises(KinemaError, match=r"`init_from` \(=.*\) must be the folder of a pipeline"):
        train(dataclasses.replace(config, init_from=tiny_tokenizer_folder))
    folder = train(config)
    with pytest.raises(KinemaError, match=r"`init_from` .* must have `dim` 256 of toybox-s, not"):
        train(dataclasses.replace(config, init_from=folder, preset="toybox-s", output=tmp_path / "second"))
    words = tmp_path / "words"
    build_word_tokenizer(["red"]).save_pretrained(words)
    for file in words.iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(KinemaError, match=r"`init_from` .*(`tokenizer`|lacks)"):
        train(dataclasses.replace(config, init_from=folder, output=tmp_path / "third"))


def test_loss_weighting_changes_the_training(config, tmp_path):
    plain = train(dataclasses.replace(config, num_steps=2, output=tmp_path / "plain"))
    weighted = train(dataclasses.replace(config, num_steps=2, output=tmp_path / "w", loss_weighting="min-snr"))
    name = "transformer/diffusion_pytorch_model.safetensors"
    first, second = load_file(plain / name), load_file(weighted / name)
    assert [key for key in first if not torch.equal(first[key], second[key])]


def test_result_is_a_whole_pipeline(config):
    folder = train(config)
    pipeline = KinemaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 2, "num_frames": 5, "height": 16, "width": 16}
    (clip,) = pipeline("a red circle moves left", **settings, return_dict=False)
    assert isinstance(clip, torch.Tensor)
    assert clip.shape == (1, 5, 3, 16, 16)
    assert pipeline.vae.config["latents_mean"] is not None
    saved = json.loads((folder / "training_config.json").read_text())
    assert from_dict(DiffusionTrainingConfig, saved) == dataclasses.replace(config, fps=8.0)  # of the Toybox
    assert (config.run_dir / "samples/step-00000006.png").is_file()
    log = (config.run_dir / "train.log").read_text()
    assert "loss_text" in log
    assert "loss_image" in log


def test_evaluation_is_of_the_averaged_weights(config):
    config = dataclasses.replace(config, mixed_precision="no", learning_rate=1e-2)
    transformer = KinemaPipeline.from_pretrained(train(config)).transformer
    recorded = read_state(config.run_dir / "checkpoints/step-00000006").metrics
    task = make_task(config)
    assert task.evaluate(transformer) == pytest.approx(recorded, rel=1e-5)
    assert task.evaluate(task.model) != pytest.approx(recorded, rel=1e-5)


def test_training_improves_the_loss(config):
    config = dataclasses.replace(config, num_steps=60, log_every=20, learning_rate=5e-3, validation=())
    train(config)
    lines = (config.run_dir / "train.log").read_text().splitlines()
    losses = [float(line.split(", loss ")[1].split(",")[0]) for line in lines if ", loss " in line]
    assert losses[-1] < 0.9 * losses[0]


def make_task(config):
    return DiffusionTask(config, make_accelerator(config))


def test_batches_are_a_pure_function_of_the_step(config):
    task, other = make_task(config), make_task(config)
    first, again = task.batch(5), other.batch(5)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["latents"], task.batch(6)["latents"])


def test_an_epoch_has_every_clip_once(config):
    task = make_task(config)
    rows = torch.cat([task.batch(step)["latents"] for step in (0, 1)]).flatten(1)
    assert task.cache is not None
    everything = task.cache(range(8))[0].flatten(1)
    assert sorted(rows.sum(1).tolist()) == pytest.approx(sorted(everything.sum(1).tolist()))
    assert epoch_order(0, 0, 8).tolist() != epoch_order(0, 1, 8).tolist()


def test_kept_latents_are_those_of_fresh_clips(config):
    config = dataclasses.replace(config, mixed_precision="no")
    task = make_task(config)
    video, _ = task.clips([3])
    assert task.cache is not None
    kept, _ = task.cache([3])
    torch.testing.assert_close(kept, task.vae.encode(video).latents, atol=2e-3, rtol=2e-3)


class Recorder(torch.nn.Module):
    """A model that notes what it sees and predicts zeros."""

    def forward(self, hidden_states, timestep, text, mask):
        self.seen = {"hidden_states": hidden_states, "timestep": timestep, "text": text, "mask": mask}
        return type("Output", (), {"sample": torch.zeros_like(hidden_states)})


def test_given_first_steps_are_nearly_clean_at_timestep_zero(config):
    task = make_task(dataclasses.replace(config, image_probability=1.0, image_noise=0.0, text_drop=0.0))
    batch, model = task.batch(0), Recorder()
    task.loss(model, batch, torch.Generator().manual_seed(0))
    clean = task.vae.normalize(batch["latents"])
    torch.testing.assert_close(model.seen["hidden_states"][:, :, 0], clean[:, :, 0])
    assert not torch.allclose(model.seen["hidden_states"][:, :, 1], clean[:, :, 1], atol=1e-3)
    assert (model.seen["timestep"][:, 0] == 0).all()
    assert model.seen["timestep"].shape == (len(clean), clean.shape[2])
    assert (model.seen["timestep"][:, 1:] > 0).all()


def test_prompts_are_dropped_for_guidance(config):
    for share, expected in ((0.0, False), (1.0, True)):
        task = make_task(dataclasses.replace(config, text_drop=share))
        model = Recorder()
        task.loss(model, task.batch(0), torch.Generator().manual_seed(0))
        is_null = model.seen["mask"].sum(1) == task.null_text.mask.sum()
        assert is_null.tolist() == [expected] * 4


def test_validation_loss_is_the_same_each_time(config):
    task = make_task(config)
    assert task.evaluate(task.model) == task.evaluate(task.model)


@pytest.mark.parametrize("case", ["none", "missing", "broken"])
def test_tokenizer_must_be_a_trained_one(config, tmp_path, case):
    folder = None if case == "none" else tmp_path / "folder"
    if case == "broken":
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder/config.json").write_text("{}")
    with pytest.raises(KinemaError, match="`tokenizer`"):
        train(dataclasses.replace(config, tokenizer=folder))


def test_data_without_captions_is_refused(config, tmp_path, make_video):
    make_video(tmp_path / "data/a.mp4", num_frames=6, height=16, width=16)
    with pytest.raises(KinemaError, match=r"`data` .*captions"):
        train(dataclasses.replace(config, data=(str(tmp_path / "data"),)))


def test_frozen_text_encoder(config, tmp_path):
    """Features of a transformers encoder go the same way as words, and the encoder is part of the pipeline."""
    folder = tmp_path / "encoder"
    tokenizer = build_word_tokenizer(["circle", "moves", "left"])
    tokenizer.save_pretrained(folder)
    settings = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5EncoderModel(settings).save_pretrained(folder)
    pipeline = KinemaPipeline.from_pretrained(train(dataclasses.replace(config, text_encoder=folder, num_steps=1)))
    assert pipeline.transformer.config["text_dim"] == 8
    assert pipeline.text_encoder is not None


def test_text_encoder_must_be_one(config, tmp_path):
    (tmp_path / "encoder").mkdir()
    with pytest.raises(KinemaError, match="`text_encoder`"):
        train(dataclasses.replace(config, text_encoder=tmp_path / "encoder"))


def test_unknown_preset(config):
    with pytest.raises(KinemaError, match="`preset`"):
        train(dataclasses.replace(config, preset="nope"))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
                "1.20 GiB is free. Including non-PyTorch memory, this process has 77 GiB memory in use."
            ),
            ": 2.00 GiB more were asked for, and 1.20 GiB of 79.10 GiB are free",
        ),
        (None, ": 262144.00 GiB more were asked for"),
    ],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_is_one_line_that_says_what_would_fit(config, monkeypatch, raised, said):
    def too_much(*_, **__):
        if raised is None:
            torch.empty(2**48, dtype=torch.uint8)
        assert raised is not None
        raise raised

    config = dataclasses.replace(config, mixed_precision="no")
    monkeypatch.setattr(DiffusionTask, "loss", too_much)
    with pytest.raises(KinemaError) as error:
        train(config)
    assert str(error.value) == (
        f"`batch_size` (=4) must fit in memory{said}; a smaller `batch_size`, `gradient_checkpointing`, "
        "`mixed_precision` auto or smaller clips make it fit"
    )
