"""Distillation: what the student learns is what the guided teacher does, its sampler's steps and a whole pipeline."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel

from kinema.apps.cli import main as command_line
from kinema.errors import KinemaError
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import TextFeatures, build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.training.accelerator import make_accelerator
from kinema.training.checkpoint import read_state
from kinema.training.config import from_dict
from kinema.training.data.toybox import DEFAULT_SHAPES, vocabulary
from kinema.training.distillation import DistillationTask, train
from kinema.training.distillation_config import DistillationConfig
from kinema.training.presets import DISTILLATION_PRESETS

STEPS, GUIDANCE, INTERVAL = 6, 3.0, (0.4, 1.0)


def save_teacher(tokenizer_folder: Path, folder: Path, *, spread: float = 0.1, **changes: Any) -> Path:
    """A pipeline with random weights; a spread of 0 leaves those with which the velocity is the same everywhere."""
    torch.manual_seed(0)
    vae = CausalVideoTokenizer.from_pretrained(tokenizer_folder)
    words = build_word_tokenizer(vocabulary(DEFAULT_SHAPES))
    text = {"text_vocab_size": len(words), "text_max_length": 24}
    model = VideoTransformer.from_preset("tiny", in_channels=vae.latent_channels, **(text | changes.pop("model", {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
        model.out.bias.copy_(torch.linspace(-1, 1, len(model.out.bias)))
    parts: dict[str, Any] = dict(
        transformer=model, vae=vae, tokenizer=words, scheduler=FlowMatchEulerDiscreteScheduler(shift=2.5)
    )
    settings: dict[str, Any] = dict(
        sample_size=(9, 16, 16),
        sample_fps=12.0,
        sample_steps=STEPS,
        sample_guidance_scale=GUIDANCE,
        sample_guidance_interval=INTERVAL,
    )
    KinemaPipeline(**(parts | settings | changes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_tokenizer_folder):
    return save_teacher(tiny_tokenizer_folder, tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def config(tmp_path, teacher):
    return DistillationConfig(
        preset="4-steps",
        data=("toybox",),
        teacher=teacher,
        student_steps=3,
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        batch_size=4,
        image_probability=0.0,
        num_steps=4,
        warmup_steps=1,
        eval_every=100,
        sample_every=100,
        save_every=100,
        log_every=1,
        validation_clips=4,
        num_samples=1,
        cpu=True,
    )


def make_task(config: DistillationConfig) -> DistillationTask:
    return DistillationTask(config, make_accelerator(config))


def loss_of(task: DistillationTask, batch: dict[str, torch.Tensor]) -> float:
    with torch.no_grad():
        return float(task.loss(task.model, batch, torch.Generator().manual_seed(0))[0])


def pipeline_states(config: DistillationConfig, batch: dict[str, torch.Tensor], **options: Any) -> list[torch.Tensor]:
    """The latents at all noise levels of the teacher, from its pipeline's own call."""
    assert config.teacher is not None
    pipeline = KinemaPipeline.from_pretrained(config.teacher)
    pipeline.set_progress_bar_config(disable=True)
    states: list[torch.Tensor] = []

    def keep(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"])
        return {}

    text = TextFeatures(batch["text"], batch["mask"])
    pipeline(text, latents=batch["noise"], output_type="latent", callback_on_step_end=keep, **options)
    return states


# --- what is learnt ---


@pytest.mark.parametrize("student_steps", [1, 2, 3, 6])
def test_bounds_of_segments_are_the_noise_levels_of_the_pipeline(config, student_steps):
    task = make_task(dataclasses.replace(config, student_steps=student_steps))
    pipeline = task.pipeline(task.model)
    pipeline.set_progress_bar_config(disable=True)
    levels: list[float] = []

    def keep(_pipeline: Any, _step: int, timestep: Any, _tensors: Any) -> dict[str, Any]:
        levels.append(float(timestep) / 1000)
        return {}

    pipeline("a circle", callback_on_step_end=keep, output_type="latent")
    assert task.levels == pytest.approx([*levels, 0.0], abs=1e-6)
    even = np.linspace(1, 0, student_steps + 1)
    assert task.levels == pytest.approx((2.5 * even / (1 + 1.5 * even)).tolist(), abs=1e-6)


@pytest.mark.parametrize("image_probability", [0.0, 1.0])
def test_trajectory_loss_is_that_of_the_pipelines_own_states(config, image_probability):
    task = make_task(dataclasses.replace(config, image_probability=image_probability))
    batch = task.batch(0)
    options = {"image": (batch["first"][:, :, 0] + 1) / 2} if image_probability else {}
    states = pipeline_states(config, batch, **options)
    first = batch["noise"].clone()
    if image_probability:
        first[:, :, 0] = states[0][:, :, 0]
    bounds = [first, states[1], states[3], states[5]]
    squares: list[torch.Tensor] = []
    for (state, following), (level, after) in zip(
        itertools.pairwise(bounds), itertools.pairwise(task.levels), strict=True
    ):
        times = torch.full((4, state.shape[2] * state.shape[3] * state.shape[4]), 1000 * level)
        if image_probability:
            times[:, : state.shape[3] * state.shape[4]] = 0
        with torch.no_grad():
            velocity = task.model(state, times, batch["text"], batch["mask"]).sample
        error = (velocity - (state - following) / (level - after)).square()
        squares.append(error[:, :, 1:] if image_probability else error)
    expected = float(torch.stack(squares).mean())
    assert loss_of(task, batch) == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


@pytest.mark.parametrize("objective", ["trajectory", "consistency"])
def test_one_velocity_everywhere_leaves_nothing_to_learn(config, tmp_path, tiny_tokenizer_folder, objective):
    teacher = save_teacher(tiny_tokenizer_folder, tmp_path / "teacher", spread=0.0)
    task = make_task(dataclasses.replace(config, teacher=teacher, objective=objective))
    batch = task.batch(0)
    assert loss_of(task, batch) < 1e-9
    assert task.evaluate(task.model)["error_text"] < 1e-9
    with torch.no_grad():
        task.model.out.bias.add_(0.1)  # of the student alone
    assert loss_of(task, batch) > 1e-3
    assert task.evaluate(task.model)["error_text"] > 1e-4


def test_consistency_target_is_where_the_student_goes_after_a_step_of_the_teacher(config):
    task = make_task(dataclasses.replace(config, objective="consistency", batch_size=8))
    with torch.no_grad():
        task.model.out.bias.add_(0.1)
    lesson = task._lesson(task.batch(0), torch.Generator().manual_seed(1))
    examples = task.objective.examples(lesson, torch.Generator().manual_seed(2))
    levels = task.teacher.levels
    guided = KinemaPipeline.from_pretrained(task.config.teacher or "").transformer
    seen = set()
    for row in range(8):
        step = min(range(STEPS), key=lambda i: abs(levels[i] - float(examples.t[row])))
        seen.add(step)
        t, after, end = levels[step], levels[step + 1], levels[2 * (step // 2) + 2]
        text, state = lesson.text.select([row]), examples.states[row : row + 1]
        with torch.no_grad():
            time = torch.full((1,), 1000 * t)
            towards = guided(state, time, text.values, text.mask).sample
            away = guided(state, time, task.null_text.values, task.null_text.mask).sample
            velocity = away + (GUIDANCE if INTERVAL[0] < t else 1.0) * (towards - away)
            between = state - (t - after) * velocity
            velocity = task.model(between, torch.full((1,), 1000 * after), text.values, text.mask).sample
            ended = between - (after - end) * velocity
        expected = (state - ended) / (t - end)
        torch.testing.assert_close(examples.target[row : row + 1], expected, atol=1e-4, rtol=1e-4)
    assert len(seen) > 2


def test_kept_paths_are_fresh_ones(config):
    config = dataclasses.replace(config, image_probability=0.5, mixed_precision="no")
    fresh, kept = make_task(config), make_task(dataclasses.replace(config, num_clips=8))
    assert kept.cache is not None
    numbers = kept._clip_numbers(0)
    batch, starts = kept.batch(0), fresh._starts(numbers, *fresh.clips(numbers), "train")
    assert torch.equal(batch["given"], starts["given"])
    assert 0 < int(batch["given"].sum()) < 4
    torch.testing.assert_close(batch["paths"], fresh.paths(starts), atol=5e-3, rtol=2e-3)
    assert loss_of(kept, batch) == pytest.approx(loss_of(fresh, starts), rel=1e-2)


def test_some_segments_of_each_clip(config):
    task = make_task(dataclasses.replace(config, segments_per_step=2))
    lesson = task._lesson(task.batch(0), torch.Generator())
    examples = task.objective.examples(lesson, torch.Generator().manual_seed(0))
    times = examples.t.unflatten(0, (4, 2))
    assert (times[:, 0] != times[:, 1]).all(), "of a clip, no segment twice"
    assert len(set(examples.t.tolist())) == 3


def test_error_is_between_clips_of_the_two_pipelines(config, teacher):
    task = make_task(dataclasses.replace(config, image_probability=0.5, validation_clips=12))
    score = task.evaluate(task.model)
    starts: Any = task.validation
    given = starts["given"]
    assert 0 < int(given.sum()) < 12
    pipelines = [KinemaPipeline.from_pretrained(teacher), task.pipeline(task.model)]
    squares: dict[str, torch.Tensor] = {}
    wanted: list[torch.Tensor] = []
    for name, rows in (("error_text", ~given), ("error_image", given)):
        options = {"image": (starts["first"][rows, :, 0] + 1) / 2} if name == "error_image" else {}
        text = TextFeatures(starts["text"][rows], starts["mask"][rows])
        ends: list[Any] = []
        for pipeline in pipelines:
            pipeline.set_progress_bar_config(disable=True)
            (end,) = pipeline(text, latents=starts["noise"][rows], output_type="latent", return_dict=False, **options)
            ends.append(end[:, :, 1:] if options else end)
        squares[name] = (ends[0] - ends[1]).square().mean()
        wanted.append(ends[0].flatten())
    for name, square in squares.items():
        assert score[name] == pytest.approx(float(square / torch.cat(wanted).var()), rel=1e-4)


def test_training_lets_the_student_end_where_the_teacher_does(config):
    config = dataclasses.replace(config, num_steps=20, num_clips=32, batch_size=16, learning_rate=3e-3)
    before = make_task(config)
    first = before.evaluate(before.model)["error_text"]
    train(config)
    last = read_state(config.run_dir / "checkpoints/step-00000020").metrics["error_text"]
    assert last < 0.5 * first


# --- runs ---


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / f"checkpoints/step-{step:08d}"
    return {f"{f.stem}/{k}": v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


@pytest.mark.parametrize("objective", ["trajectory", "consistency"])
@pytest.mark.parametrize("num_clips", [8, 0], ids=["kept", "fresh"])
def test_resume_is_bit_exact(config, tmp_path, stop_after, objective, num_clips):
    config = dataclasses.replace(
        config, objective=objective, num_clips=num_clips, image_probability=0.5, segments_per_step=2
    )
    train(dataclasses.replace(config, output=tmp_path / "whole"))
    with stop_after(2):
        train(config)
    train(dataclasses.replace(config, resume=True, teacher=None))
    whole, resumed = weights(tmp_path / "whole", 4), weights(tmp_path / "run", 4)
    assert whole.keys() == resumed.keys()
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]
    two = weights(tmp_path / "run", 2)
    assert [name for name in whole if not torch.equal(whole[name], two[name])]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_result_needs_few_steps_and_no_guidance(config, teacher, optimizer):
    folder = train(dataclasses.replace(config, optimizer=optimizer, num_steps=1))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["sample_steps"] == 3
    assert index["sample_guidance_scale"] == 1.0
    assert index["sample_size"] == [9, 16, 16]
    assert index["sample_fps"] == 12.0
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert scheduler == json.loads((teacher / "scheduler/scheduler_config.json").read_text())
    saved = from_dict(DistillationConfig, json.loads((folder / "training_config.json").read_text()))
    assert (saved.teacher_steps, saved.teacher_guidance_scale, saved.shape) == (STEPS, GUIDANCE, "9x16x16")
    pipeline = KinemaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    (clip,) = pipeline("a red circle", return_dict=False)
    assert isinstance(clip, torch.Tensor)
    assert clip.shape == (1, 9, 3, 16, 16)
    own, taught = (load_file(f / "vae/diffusion_pytorch_model.safetensors") for f in (folder, teacher))
    assert all(torch.equal(own[name], taught[name]) for name in own)


def test_student_of_a_frozen_text_encoder(config, tmp_path, tiny_tokenizer_folder):
    words = build_word_tokenizer(vocabulary(DEFAULT_SHAPES))
    settings = T5Config(vocab_size=len(words), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    features = {"text_vocab_size": None, "text_dim": 8}
    folder = save_teacher(
        tiny_tokenizer_folder, tmp_path / "teacher", model=features, text_encoder=T5EncoderModel(settings)
    )
    pipeline = KinemaPipeline.from_pretrained(train(dataclasses.replace(config, teacher=folder, num_steps=1)))
    assert pipeline.text_encoder is not None


def test_a_run_goes_on_with_its_own_teacher_and_steps(config, tmp_path, tiny_tokenizer_folder):
    train(config)
    other = save_teacher(tiny_tokenizer_folder, tmp_path / "other", spread=0.01)
    going_on = dataclasses.replace(config, resume=True, num_steps=5)
    with pytest.raises(KinemaError, match=r"`teacher` \(=.*other\) must have the weights and settings that"):
        train(dataclasses.replace(going_on, teacher=other))
    for changes in ({"student_steps": 2}, {"objective": "consistency"}, {"teacher_guidance_scale": 2.0}):
        with pytest.raises(KinemaError, match=rf"`{next(iter(changes))}` \(=.*\) must stay"):
            train(dataclasses.replace(going_on, **changes))


def test_presets_sample_in_as_many_steps_as_they_say():
    assert {name: preset.student_steps for name, preset in DISTILLATION_PRESETS.items()} == {
        name: int(name.split("-")[0]) for name in DISTILLATION_PRESETS
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "`preset` (=nope) must be one of 4-steps"),
        (["4-steps", "--data", "toybox"], "`teacher` (=None) must be the folder of a pipeline"),
        (["4-steps", "--data", "toybox", "--teacher", "missing"], "`teacher` (=missing) must be the folder of a"),
        (["4-steps", "--data", "toybox", "--teacher", "TOKENIZER"], "must be the folder of a pipeline: model folder"),
        (["4-steps", "--teacher", "TEACHER"], "`data` (=) must name at least one folder"),
        (["4-steps", "--student-steps", "0"], "`student_steps` (=0) must be at least 1"),
        (["4-steps", "--teacher-steps", "6"], "`teacher_steps` (=6) must be a multiple of `student_steps` (=4)"),
        (["4-steps", "--teacher-steps", "2"], "`teacher_steps` (=2) must be a multiple of `student_steps` (=4)"),
        (["8-steps", "--data", "toybox", "--teacher", "TEACHER"], "`student_steps` (=8) must be at most the 6 steps"),
        (["4-steps", "--teacher-guidance-scale", "0.5"], "`teacher_guidance_scale` (=0.5) must be at least 1"),
        (["4-steps", "--segments-per-step", "5"], "`segments_per_step` (=5) must be at least 1 and at most"),
        (["4-steps", "--objective", "magic", "--teacher", "TEACHER"], "`objective` (=magic) must be one of trajectory"),
        (["4-steps", "--shape", "9x16"], "`shape` (=9x16) must be FRAMESxHEIGHTxWIDTH"),
        (["4-steps", "--init-from", "toybox"], "--init-from"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], said, teacher, tiny_tokenizer_folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    places = {"TEACHER": str(teacher), "TOKENIZER": str(tiny_tokenizer_folder)}
    status = command_line(["train", "distill", *(places.get(a, a) for a in arguments)])
    assert status == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
