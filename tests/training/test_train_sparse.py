"""Trainings with sparse attention: annealed in, from the start, and on top of a dense model."""

import dataclasses
import logging
from typing import Any

import pytest
import torch

from kinema.errors import KinemaError
from kinema.generation.attention import PatternSchedule, SlidingTile, TileTopK
from kinema.generation.pipeline import KinemaPipeline
from kinema.training.accelerator import make_accelerator
from kinema.training.config import DiffusionTrainingConfig
from kinema.training.diffusion import DiffusionTask, train


@pytest.fixture
def config(tmp_path, tiny_tokenizer_folder):
    return DiffusionTrainingConfig(
        preset="tiny",
        data=("toybox",),
        tokenizer=tiny_tokenizer_folder,
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        shape="9x16x16",
        num_clips=8,
        batch_size=4,
        num_steps=4,
        warmup_steps=2,
        eval_every=100,
        sample_every=100,
        save_every=100,
        log_every=1,
        validation_clips=4,
        num_samples=1,
        sample_steps=2,
        cpu=True,
    )


def test_vsa_is_annealed_in(config, caplog):
    config = dataclasses.replace(
        config, attention="tile-top-k:share=0.9,tile=1x1x1", coarse_tile=(1, 1, 1), anneal_every=1
    )
    with caplog.at_level(logging.INFO):
        folder = train(config)
    lines = [record.getMessage() for record in caplog.records]
    shares = [line.split("attention_share ")[1] for line in lines if "attention_share" in line]
    assert [float(text.split(",")[0]) for text in shares] == pytest.approx([1.0, 0.97, 0.94, 0.91])
    warning = (
        "`anneal_every` (=1) is too large for `num_steps` (=4): the last step sees a share of 0.91, the saved model 0.9"
    )
    assert warning in lines
    transformer = KinemaPipeline.from_pretrained(folder).transformer
    assert transformer.config["coarse_tile"] in ((1, 1, 1), [1, 1, 1])
    assert transformer.attention == PatternSchedule((TileTopK(share=0.9, tile=(1, 1, 1)),))
    gates = [block.self_attention.coarse_gate.weight for block in transformer.blocks]
    assert all(gate.abs().max() > 0 for gate in gates), "a gate that never opened was not trained"


def test_a_dense_model_goes_on_sparse(config, tmp_path):
    dense = train(config)
    config = dataclasses.replace(
        config,
        init_from=dense,
        attention="sliding-tile:1x1x1,tile=1x2x2",
        coarse_tile=(1, 2, 2),
        output=tmp_path / "more",
    )
    task = DiffusionTask(config, make_accelerator(config))
    assert task.model.attention == PatternSchedule((SlidingTile((1, 2, 2), (1, 1, 1)),))
    before = DiffusionTask(dataclasses.replace(config, attention=None, coarse_tile=None), make_accelerator(config))
    assert task.evaluate(task.model) != before.evaluate(before.model)
    task.model.set_attention(None)
    assert task.evaluate(task.model) == pytest.approx(before.evaluate(before.model), abs=1e-6), "the gate begins closed"
    folder = train(config)
    again = KinemaPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    output: Any = again(["a wall"], num_frames=9, height=16, width=16, num_inference_steps=2, output_type="pt")
    clip = output.frames
    assert clip.shape == (1, 9, 3, 16, 16)
    assert torch.isfinite(clip).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anneal_every": 2}, r"`anneal_every` \(=2\) must go with an `attention` like tile-top-k:share=0.1, not None"),
        ({"anneal_every": 2, "attention": "tile-top-k:4"}, r"not tile-top-k:4"),
        ({"attention": "tiles"}, r"`pattern` \(=tiles\)"),
        ({"attention": "sliding-tile:1x1x1/3x3x3/1x1x1"}, r"is for 3 heads, .* there are: 2"),
    ],
)
def test_mistakes_are_named(config, changes, message):
    with pytest.raises(KinemaError, match=message):
        train(dataclasses.replace(config, **changes))


def test_anneal_every_must_be_a_number_of_steps():
    with pytest.raises(KinemaError, match=r"`anneal_every` \(=0\) must be at least 1"):
        DiffusionTrainingConfig(preset="tiny", anneal_every=0)
