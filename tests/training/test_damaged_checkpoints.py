"""A damaged checkpoint is named, and the one before is used; nothing is lost and nothing raises."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kinema.errors import KinemaError
from kinema.training.checkpoint import Adversary, Checkpoints, TrainingState, damage_of, read_state
from kinema.training.ema import EMA
from kinema.training.manifest import write_manifest
from kinema.training.record import Record, read_record, write_record


def make(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ema = EMA(model, 0.9)
    model(torch.randn(4, 2)).square().mean().backward()
    optimizer.step()
    ema.update(model)
    return model, ema, optimizer


def discriminator() -> Adversary:
    model, _, optimizer = make(9)
    return model, optimizer


def write_more(folder: Path) -> None:
    write_record(folder, {"preset": "tiny"}, {"dim": 2}, {"tokenizer": "abc"}, {"a.mp4": [3, "a car"]})
    (folder / "vocabulary").mkdir()
    (folder / "vocabulary/tokenizer.json").write_text('{"a": 1, "car": 2}')


def save(folder: Path, *steps: int, scores: dict[int, float] | None = None, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        state = TrainingState(step=step, score=(scores or {}).get(step))
        model, ema, optimizer = make(step)
        checkpoints.save(model, ema, optimizer, state, discriminator(), write_more)
    return checkpoints


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def flip(file: Path, place: float = 0.5, mask: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= mask
    file.write_bytes(data)


def flip_first(file: Path) -> None:
    """In safetensors this is the length of the header."""
    flip(file, 0.0, 0xFF)


def flip_last(file: Path) -> None:
    flip(file, 1.0, 0x80)


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: list[Callable[[Path], None]] = [empty, cut, flip, flip_first, flip_last, grow, Path.unlink, replace_by_folder]
FILES = (
    *(f"{name}.safetensors" for name in ("model", "ema", "optimizer", "discriminator", "discriminator_optimizer")),
    *("state.json", "run.json", "data.json", "vocabulary/tokenizer.json", "manifest.json"),
)


def test_every_file_is_here(tmp_path):
    (path,) = save(tmp_path, 1).all()
    assert {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} == set(FILES)
    assert damage_of(path, thorough=True) is None


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, name, damage):
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002" / name)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() == tmp_path / "step-00000001"
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "step-00000002" in line
    assert "step-00000001" in line
    assert ("manifest.json" if name == "manifest.json" else name) in line
    assert len(line.splitlines()) == 1
    state = checkpoints.load_last(*make(5), discriminator())
    assert state is not None
    assert state.step == 1
    assert checkpoints.best() is None

    checkpoints.set_aside_damaged()
    assert [path.name for path in checkpoints.all()] == ["step-00000001"]
    assert (tmp_path / "damaged-step-00000002").is_dir()
    assert not caplog.records[-1].getMessage().count("\n")


def test_flips_anywhere_are_found(tmp_path):
    """Every byte of the small files, and some hundred of the others."""
    (path,) = save(tmp_path, 1).all()
    for name in FILES:
        data = (path / name).read_bytes()
        for place in range(0, len(data), max(1, len(data) // 150)):
            damaged = bytearray(data)
            damaged[place] ^= 1 << place % 8
            (path / name).write_bytes(damaged)
            assert damage_of(path, thorough=True) is not None, (name, place)
        (path / name).write_bytes(data)
    assert damage_of(path, thorough=True) is None


def test_damage_twice_at_a_step(tmp_path):
    for name in ("damaged-step-00000002", "damaged-step-00000002-2"):
        save(tmp_path, 1, 2)
        flip(tmp_path / "step-00000002/model.safetensors")
        checkpoints = Checkpoints(tmp_path)
        checkpoints.newest()
        checkpoints.set_aside_damaged()
        assert (tmp_path / name / "model.safetensors").is_file()


def test_all_damaged_is_one_line_that_names_them(tmp_path):
    save(tmp_path, 1, 2)
    empty(tmp_path / "step-00000001/state.json")
    cut(tmp_path / "step-00000002/ema.safetensors")
    with pytest.raises(KinemaError) as error:
        Checkpoints(tmp_path).newest()
    (line,) = str(error.value).splitlines()
    assert "step-00000001: state.json is empty" in line
    assert "step-00000002: ema.safetensors has" in line
    assert len(Checkpoints(tmp_path).all()) == 2  # nothing was moved


def test_damaged_ones_do_not_count_as_kept(tmp_path, caplog):
    checkpoints = save(tmp_path, 1, 2, keep_last=2)
    empty(tmp_path / "step-00000002/model.safetensors")
    for step in (3, 4):
        checkpoints.save(*make(), TrainingState(step=step))
        assert (tmp_path / "step-00000001").exists() == (step == 3)
    assert [path.name for path in checkpoints.all()] == ["step-00000002", "step-00000003", "step-00000004"]
    assert [path.name for path in checkpoints.whole()] == ["step-00000003", "step-00000004"]
    assert len([r for r in caplog.records if "step-00000002" in r.getMessage()]) == 1  # named once


def test_the_best_for_the_result_is_whole(tmp_path, caplog):
    checkpoints = save(tmp_path, 1, 2, 3, keep_last=3, scores={1: 5.0, 2: 9.0, 3: 4.0})
    assert checkpoints.best() == tmp_path / "step-00000002"
    flip(tmp_path / "step-00000002/ema.safetensors")
    assert checkpoints.best_intact() == tmp_path / "step-00000001"
    assert "ema.safetensors" in caplog.text
    for step in (1, 3):
        flip(tmp_path / f"step-0000000{step}/ema.safetensors")
    assert Checkpoints(tmp_path).best_intact() is None


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_not_the_best(tmp_path, score):
    assert save(tmp_path, 1, 2, scores={1: 1.0, 2: score}).best() == tmp_path / "step-00000001"


STATES = {
    "empty": b"",
    "blank": b" \n",
    "cut": b'{"step": 4, "ema_up',
    "list": b"[4]",
    "number": b"4",
    "null": b"null",
    "not UTF-8": b'{"step": 4, "ema_updates": 4, "score_name": "\xff"}',
    "UTF-16": '{"step": 4, "ema_updates": 4}'.encode("utf-16")[:-1],
    "no step": b'{"ema_updates": 4}',
    "no ema_updates": b'{"step": 4}',
    "step is text": b'{"step": "4", "ema_updates": 4}',
    "step is null": b'{"step": null, "ema_updates": 4}',
    "step is negative": b'{"step": -4, "ema_updates": 4}',
    "metrics is a list": b'{"step": 4, "ema_updates": 4, "metrics": [1]}',
    "metrics of text": b'{"step": 4, "ema_updates": 4, "metrics": {"psnr": "high"}}',
    "zeros": bytes(64),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("state", STATES)
def test_a_broken_state_without_a_manifest(tmp_path, caplog, state):
    """Checkpoints of earlier versions, of which nothing is known but what can be read."""
    for step, content in ((2, b'{"step": 2, "ema_updates": 2}'), (4, STATES[state])):
        (tmp_path / f"step-0000000{step}").mkdir()
        (tmp_path / f"step-0000000{step}/state.json").write_bytes(content)
    assert Checkpoints(tmp_path).best() is None
    (line,) = caplog.text.splitlines()
    assert "step-00000004 (state.json" in line
    assert "newest whole one is step-00000002" in line
    with pytest.raises(KinemaError, match=r"`checkpoint` .*state\.json"):
        read_state(tmp_path / "step-00000004")


def make_old(path: Path) -> None:
    """As earlier versions wrote it."""
    for name in ("manifest.json", "run.json", "data.json"):
        (path / name).unlink()
    shutil.rmtree(path / "vocabulary")
    values = json.loads((path / "state.json").read_text())
    values.pop("format")
    (path / "state.json").write_text(json.dumps(values))


@pytest.mark.parametrize("damage", [empty, cut, flip_first, Path.unlink], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES[:6])
def test_earlier_checkpoints_are_used_unless_they_cannot_be_read(tmp_path, name, damage):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        make_old(tmp_path / f"step-0000000{step}")
    state = Checkpoints(tmp_path).load_last(*make(5), discriminator())
    assert state is not None
    assert state.step == 2
    damage(tmp_path / "step-00000002" / name)
    newest = Checkpoints(tmp_path).newest()
    lost = name.startswith("discriminator") and damage is Path.unlink  # of those that may be missing
    assert newest == tmp_path / ("step-00000002" if lost else "step-00000001")


def test_other_things_in_the_folder_are_left_alone(tmp_path):
    save(tmp_path, 1)
    for name in ("step-x", "step-", "notes", "step-00000007x", "damaged-step-00000009"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").write_text("a file")
    (tmp_path / "step-00000001/.DS_Store").write_text("of a file manager")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.clean_up()
    assert checkpoints.newest() == tmp_path / "step-00000001"
    assert [path.name for path in checkpoints.all()] == ["step-00000001"]
    assert (tmp_path / "step-x").is_dir()


def test_steps_are_in_the_order_of_numbers(tmp_path):
    checkpoints = save(tmp_path, 99_999_999, 100_000_000)
    assert checkpoints.newest() == tmp_path / "step-100000000"


def test_leftovers_of_a_killed_process_go(tmp_path):
    checkpoints = save(tmp_path, 1)
    for name in (".step-00000002.tmp", ".step-00000001.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    checkpoints.clean_up()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_record_comes_back(tmp_path):
    (path,) = save(tmp_path, 1).all()
    data = {"a.mp4": [3, "a car"]}
    assert read_record(path) == Record(path, {"preset": "tiny"}, {"dim": 2}, {"tokenizer": "abc"}, data)
    assert read_record(path).vocabulary == path / "vocabulary"


def test_a_manifest_lists_what_is_there(tmp_path):
    """Files that were not written are no part of it, and none is forgotten."""
    (path,) = save(tmp_path, 1).all()
    listed = json.loads((path / "manifest.json").read_text())["files"]
    assert set(listed) == set(FILES) - {"manifest.json"}
    load_file(path / "model.safetensors")
    (path / "more.json").write_text("{}")
    assert damage_of(path, thorough=True) is None
    write_manifest(path)
    (path / "more.json").unlink()
    assert damage_of(path, thorough=False) == "more.json is missing"
