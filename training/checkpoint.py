"""Checkpoints: a folder each, complete or absent; safetensors and JSON only.

    checkpoints/step-00001000/{model,ema,optimizer}.safetensors, state.json
                              {companion,companion_optimizer}.safetensors  (of a network that trains beside the model)

A checkpoint is written to a temporary folder beside the others, which is then renamed. Random numbers need no state:
they are a function of (seed, rank, step), see `kinema.training.seeds`.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.training.ema import EMA

Companion = tuple[nn.Module, torch.optim.Optimizer]
"""A network that trains beside the model, and its optimizer."""


@dataclass
class TrainingState:
    """Where a training stands."""

    step: int = 0
    """Steps done; also the position in the data."""
    elapsed: float = 0.0
    """Seconds of training so far, all parts of the run together."""
    score: float | None = None
    """Score of this step's averaged weights (higher is better), if they were evaluated."""
    best_score: float | None = None
    """Best score so far."""
    score_name: str = "score"
    """What the scores are scores of, see `Task.score_name`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last evaluation."""
    skipped_steps: int = 0
    """Steps left out so far, all parts of the run together, because a loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last of them, without one in between that was taken."""


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes `folder` by calling `write` on a temporary folder beside it, then renaming: all of it or nothing.

    A folder that exists is replaced once the new one is complete; see `recover_folders` for the moment between.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def recover_folders(parent: Path) -> None:
    """Puts back what `write_folder` had moved aside when it was cut off between its two renames."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name[1 : -len(".old")]
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


class Checkpoints:
    """The checkpoints of a run: the newest `keep_last` and the best one are kept.

    Args:
        folder: where they are.
        keep_last: how many of the newest to keep.
        score_name: which scores count, those of another name are not comparable (default: the newest checkpoint's).
    """

    def __init__(self, folder: Path, keep_last: int = 2, score_name: str | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.score_name = score_name
        recover_folders(folder)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if (p / "state.json").is_file())

    def best(self) -> Path | None:
        """The checkpoint with the highest score, if any was evaluated."""
        states = [(read_state(path), path) for path in self.all()]
        counts = self.score_name or (states[-1][0].score_name if states else None)
        scored = [(s.score, p) for s, p in states if s.score is not None and s.score_name == counts]
        return max(scored)[1] if scored else None

    def save(
        self,
        model: nn.Module,
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        companion: Companion | None = None,
    ) -> Path:
        """Writes a checkpoint, then removes those no longer needed."""

        def write(folder: Path) -> None:
            save_file(contiguous(model.state_dict()), folder / "model.safetensors")
            save_file(contiguous(ema.model.state_dict()), folder / "ema.safetensors")
            save_file(optimizer_tensors(optimizer), folder / "optimizer.safetensors")
            if companion is not None:
                save_file(contiguous(companion[0].state_dict()), folder / "companion.safetensors")
                save_file(optimizer_tensors(companion[1]), folder / "companion_optimizer.safetensors")
            values = asdict(state) | {"ema_updates": ema.num_updates}
            (folder / "state.json").write_text(json.dumps(values, indent=2) + "\n")

        path = self.folder / f"step-{state.step:08d}"
        write_folder(path, write)
        kept = {*self.all()[-self.keep_last :], self.best()}
        for other in self.all():
            if other not in kept:
                shutil.rmtree(other)
        return path

    def load_last(
        self, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, companion: Companion | None = None
    ) -> TrainingState | None:
        """Puts the newest checkpoint into model, average and optimizer; None if there is none.

        A companion that the checkpoint does not have starts anew.
        """
        if not self.all():
            return None
        path = self.all()[-1]
        try:
            model.load_state_dict(load_file(path / "model.safetensors"))
            ema.model.load_state_dict(load_file(path / "ema.safetensors"))
            load_optimizer_tensors(optimizer, load_file(path / "optimizer.safetensors"))
            if companion is not None and (path / "companion.safetensors").is_file():
                companion[0].load_state_dict(load_file(path / "companion.safetensors"))
                load_optimizer_tensors(companion[1], load_file(path / "companion_optimizer.safetensors"))
        except (RuntimeError, KeyError, ValueError, OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise KinemaError(f"`checkpoint` (={path}) must fit the model of this training: {reason}") from error
        ema.num_updates = json.loads((path / "state.json").read_text())["ema_updates"]
        return read_state(path)


def read_state(path: Path) -> TrainingState:
    """The state stored in a checkpoint folder."""
    values: dict[str, Any] = json.loads((path / "state.json").read_text())
    values.pop("ema_updates")
    return TrainingState(**values)


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them."""
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter number>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().contiguous()
        for number, state in states.items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; learning rates and the like stay as they are.

    Without tensors the optimizer stays as it is: it had not taken a step.
    """
    if not tensors:
        return
    whole = optimizer.state_dict()
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        states.setdefault(int(number), {})[name] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kinds = [bool(group.get("muon")) for group in optimizer.param_groups for _ in group["params"]]
    if sorted(states) != list(range(len(parameters))):
        raise ValueError(f"the optimizer has {len(parameters)} parameters, the checkpoint {len(states)}")
    for number, (parameter, is_muon) in enumerate(zip(parameters, kinds, strict=True)):
        for name, tensor in states[number].items():
            if (name == "momentum") != is_muon or tensor.shape not in ((), parameter.shape):
                raise ValueError(f"`{name}` of parameter {number} is not what the optimizer keeps")
    whole["state"] = states
    optimizer.load_state_dict(whole)
