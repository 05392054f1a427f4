"""The recipe of the embedded model: three stages, one command, done once."""

import json
import signal
from pathlib import Path

import pytest

from kinema.generation.pipeline import KinemaPipeline
from kinema.stopping import Stopped
from kinema.training.config import to_dict
from kinema.training.recipes import toybox_128
from kinema.training.recipes.toybox_128 import GPU, SAMPLER, SHARES, Sizes, configs, run

SHIPPED = Path(__file__).parents[2] / "src/kinema/weights/toybox"

TINY = Sizes(
    frames=5, side=32, tokenizer_frames=5, batch_sizes=(2, 4, 2), num_clips=(8, 8), preset="tiny", validation_clips=4
)


def test_stages_are_trained_once_and_end_in_a_folder_to_embed(tmp_path, monkeypatch):
    folder = run(tmp_path, 0.05, TINY, num_prompts=2, cpu=True)
    pipeline = KinemaPipeline.from_pretrained(folder)
    assert pipeline.config["sample_size"] in ([5, 32, 32], (5, 32, 32))
    assert pipeline.config["sample_steps"] == 12
    card = (folder / "README.md").read_text()
    for said in ("# toybox: text- and image-to-video", "| tokenizer (kl-4x16x16-c32", "| images (tiny", "| clips (tiny",
                 "guidance 3", "Two objects:", "generated (2 prompts)"):  # fmt: skip
        assert said in card
    assert str(tmp_path) not in card
    assert str(tmp_path) not in (folder / "training_config.json").read_text()
    for path in folder.rglob("*.safetensors"):
        assert b'"F32"' not in path.read_bytes()[:4096]

    def again(*_):
        raise AssertionError("a stage that is done trains again")

    for module in (toybox_128.tokenizer, toybox_128.diffusion):
        monkeypatch.setattr(module, "train", again)
    assert run(tmp_path, 0.05, TINY, num_prompts=0, cpu=True) == folder


def test_a_stage_that_was_stopped_is_not_done(tmp_path, monkeypatch):
    """A stopped training leaves a model, of the steps so far."""
    trained: list[str] = []

    def stopped(config):
        trained.append(config.run_dir.name)
        (config.run_dir / "model").mkdir(parents=True, exist_ok=True)
        (config.run_dir / "model" / "training_config.json").write_text("{}")
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(toybox_128.tokenizer, "train", stopped)
    for _ in range(2):
        with pytest.raises(Stopped):
            run(tmp_path, 1.0, TINY, num_prompts=0, cpu=True)
    assert trained == ["tokenizer", "tokenizer"]


def test_time_is_shared(tmp_path):
    stages = configs(tmp_path, 10.0, GPU, None, cpu=False)
    assert sum(stage.max_minutes or 0 for stage in stages) == pytest.approx(10)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert [stage.batch_size for stage in stages] == [32, 1024, 96]
    assert stages[2].init_from == tmp_path / "images" / "model"
    assert all(stage.resume and stage.schedule_on == "minutes" for stage in stages)


def test_settings_are_those_of_the_shipped_model(tmp_path):
    shipped = json.loads((SHIPPED / "training_config.json").read_text())
    ours = to_dict(configs(tmp_path, 6.5, GPU, Path("sprites"), cpu=False)[2])
    same = (
        *("preset", "toybox_objects", "batch_size", "optimizer", "learning_rate", "decay_fraction", "shape", "fps"),
        *("num_clips", "shift", "image_probability", "text_drop", "ema_decay", "betas", "schedule", "warmup_steps"),
        *("image_noise", "uniform_fraction"),
    )
    assert {name: shipped[name] for name in same} == {name: ours[name] for name in same}
    index = json.loads((SHIPPED / "model_index.json").read_text())
    assert {name: index[name] for name in SAMPLER} == SAMPLER
