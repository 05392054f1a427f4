"""Checkpoints are whole or absent, and bring everything back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kinema.errors import KinemaError
from kinema.training import checkpoint
from kinema.training.checkpoint import Checkpoints, TrainingState
from kinema.training.ema import EMA
from kinema.training.folders import write_folder
from kinema.training.muon import Muon


def make(seed: int = 0, width: int = 3):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = EMA(model, 0.9)
    for _ in range(3):
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
    return model, ema, optimizer


def tensors_of(model, ema, optimizer):
    moments = sorted(checkpoint.optimizer_tensors(optimizer).items())
    return [*model.state_dict().values(), *ema.model.state_dict().values(), *(value for _, value in moments)]


def test_load_brings_back_what_was_saved(tmp_path):
    saved, loaded = make(0), make(1)
    assert not torch.equal(tensors_of(*saved)[0], tensors_of(*loaded)[0])
    state = TrainingState(step=7, elapsed=1.5, score=2.0, best_score=2.0, metrics={"score": 2.0})
    Checkpoints(tmp_path).save(*saved, state)
    assert Checkpoints(tmp_path).load_last(*loaded) == state
    for mine, theirs in zip(tensors_of(*saved), tensors_of(*loaded), strict=True):
        assert torch.equal(mine, theirs)
    assert loaded[1].num_updates == 3


def test_only_safetensors_and_json(tmp_path):
    path = Checkpoints(tmp_path).save(*make(), TrainingState(step=1))
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}


def test_newest_and_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    scores = {1: 1.0, 2: 5.0, 3: None, 4: 3.0, 5: None}
    for step, score in scores.items():
        checkpoints.save(*make(), TrainingState(step=step, score=score))
    assert [p.name for p in checkpoints.all()] == ["step-00000002", "step-00000004", "step-00000005"]
    best = checkpoints.best()
    assert best is not None
    assert best.name == "step-00000002"


@pytest.mark.parametrize("crash_at", ["model.safetensors", "optimizer.safetensors", "rename"])
def test_crash_while_saving_leaves_the_previous_checkpoint(tmp_path, monkeypatch, crash_at):
    checkpoints, parts = Checkpoints(tmp_path), make()
    checkpoints.save(*parts, TrainingState(step=1))

    def crashing_save(tensors, path: Path):
        save_file(tensors, path)
        if path.name == crash_at:
            raise OSError("no space left")

    def crashing_rename(self, target):
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", crashing_save)
        if crash_at == "rename":
            patch.setattr(Path, "rename", crashing_rename)
        with pytest.raises(KinemaError, match=r"`output` .* step 2, .*(no space left|power cut); earlier checkpoints"):
            checkpoints.save(*parts, TrainingState(step=2))

    again = Checkpoints(tmp_path)
    again.clean_up()
    assert [p.name for p in again.all()] == ["step-00000001"]
    state = again.load_last(*make(1))
    assert state is not None
    assert state.step == 1
    again.save(*parts, TrainingState(step=2))
    assert len(again.all()) == 2
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_write_folder_replaces_a_whole_folder(tmp_path):
    target = tmp_path / "model"
    write_folder(target, lambda folder: (folder / "old").write_text("1"))
    write_folder(target, lambda folder: (folder / "new").write_text("2"))
    assert [p.name for p in target.iterdir()] == ["new"]

    def fail(folder: Path):
        (folder / "half").write_text("3")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_folder(target, fail)
    assert [p.name for p in target.iterdir()] == ["new"]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    Checkpoints(tmp_path).save(*make(width=3), TrainingState(step=1))
    with pytest.raises(KinemaError, match="`checkpoint`"):
        Checkpoints(tmp_path).load_last(*make(width=4))


def test_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path).load_last(*make()) is None
    assert Checkpoints(tmp_path).best() is None


def test_state_is_readable_json(tmp_path):
    path = Checkpoints(tmp_path).save(*make(), TrainingState(step=3, elapsed=2.0))
    values = json.loads((path / "state.json").read_text())
    assert values["step"] == 3
    assert values["ema_updates"] == 3


def test_a_folder_moved_aside_comes_back(tmp_path):
    """As if the machine had stopped between the two renames of `write_folder`, and after both."""
    for name, content in ((".step-00000001.old", "kept"), ("step-00000002", "new"), (".step-00000002.old", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(content)
    checkpoints = Checkpoints(tmp_path)
    assert [path.name for path in checkpoints.all()] == ["step-00000002"]  # who only looks changes nothing
    checkpoints.clean_up()
    assert [path.name for path in checkpoints.all()] == ["step-00000001", "step-00000002"]
    assert (tmp_path / "step-00000001/state.json").read_text() == "kept"
    assert (tmp_path / "step-00000002/state.json").read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_state_of_another_optimizer_is_refused(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    ema, state = EMA(model, 0.9), TrainingState(step=1)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    adam.step()
    Checkpoints(tmp_path).save(model, ema, adam, state)
    muon = Muon([{"params": [model.weight], "muon": True}, {"params": [model.bias]}], lr=0.1, betas=(0.9, 0.99))
    with pytest.raises(KinemaError, match="must fit the model of this training"):
        Checkpoints(tmp_path).load_last(model, ema, muon)
