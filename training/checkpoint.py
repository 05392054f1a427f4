"""Checkpoints: a folder each, complete or absent, with checksums; safetensors and JSON only.

    checkpoints/step-00001000/{model,ema,optimizer}.safetensors, state.json
                              {discriminator,discriminator_optimizer}.safetensors  (adversarial training)
                              run.json, data.json, vocabulary/             (what the weights depend on, see `record`)
                              manifest.json                                (sizes and checksums of the others)

A checkpoint is written to a temporary folder beside the others, which is then renamed. Random numbers need no state:
they are a function of (seed, rank, step), see `kinema.training.seeds`.
"""

import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.training.config_json import from_dict
from kinema.training.ema import EMA
from kinema.training.folders import recover_folders, remove_folder, remove_leftovers, write_folder
from kinema.training.manifest import MANIFEST, find_damage, write_manifest
from kinema.training.sharding import gather, part_like, split_like

logger = logging.getLogger(__name__)

Adversary = tuple[nn.Module, torch.optim.Optimizer]
"""A discriminator and its optimizer."""

_FORMAT = 2
"""1, which no file states, had no manifest."""


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


class Checkpoints:
    """The checkpoints of a run: the newest `keep_last` and the best one are kept.

    A damaged checkpoint is named in the log, once, and counts for nothing; it is never removed.

    Args:
        folder: where they are.
        keep_last: how many of the newest to keep.
        score_name: which scores count, those of another name are not comparable (default: the newest checkpoint's).
    """

    def __init__(self, folder: Path, keep_last: int = 2, score_name: str | None = None) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.score_name = score_name
        self._damaged: dict[Path, str] = {}

    def clean_up(self) -> None:
        """Finishes or undoes what a killed process left half done; only for the training that holds the run's lock."""
        recover_folders(self.folder)
        remove_leftovers(self.folder, "step-*")

    def all(self) -> list[Path]:
        """Every checkpoint, damaged ones too, oldest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((p for p in found if re.fullmatch(r"step-\d+", p.name) and p.is_dir()), key=step_of)

    def whole(self) -> list[Path]:
        """The checkpoints that are not damaged, as far as sizes and `state.json` tell, oldest first."""
        paths = self.all()
        damaged = {path: reason for path in paths if (reason := self._damage(path, thorough=False)) is not None}
        whole = [path for path in paths if path not in damaged]
        self._name(damaged, f"the newest whole one is {whole[-1].name}" if whole else "there is no whole one")
        return whole

    def newest(self) -> Path | None:
        """The newest checkpoint whose checksums are right; None if there are no checkpoints.

        Raises:
            KinemaError: All of them are damaged.
        """
        damaged: dict[Path, str] = {}
        for path in reversed(self.all()):
            reason = self._damage(path, thorough=True)
            if reason is None:
                self._name(damaged, f"{path.name}, the one before, is used")
                return path
            damaged[path] = reason
        if damaged:
            listed = "; ".join(f"{path.name}: {reason}" for path, reason in damaged.items())
            raise KinemaError(f"`checkpoints` (={self.folder}) must have one that is whole: {listed}")
        return None

    def best(self) -> Path | None:
        """The checkpoint with the highest score, if any was evaluated; damage that only checksums show is not seen."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def best_intact(self) -> Path | None:
        """The checkpoint with the highest score among those whose checksums are right."""
        damaged: dict[Path, str] = {}
        for path in self._ranked():
            reason = self._damage(path, thorough=True)
            if reason is None:
                self._name(damaged, f"{path.name} is the best that is whole")
                return path
            damaged[path] = reason
        self._name(damaged, "no other was evaluated")
        return None

    def set_aside_damaged(self) -> None:
        """Renames damaged checkpoints to `damaged-step-N`, so that a new one can take the place; says so."""
        for path, reason in self._damaged.items():
            if not path.is_dir():
                continue
            places = (self.folder / f"damaged-{path.name}{'' if k == 1 else f'-{k}'}" for k in itertools.count(1))
            place = next(place for place in places if not place.exists())
            path.rename(place)
            logger.warning("the damaged checkpoint %s (%s) is now %s", path.name, reason, place)
        self._damaged.clear()

    def save(
        self,
        model: nn.Module,
        ema: EMA,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        discriminator: Adversary | None = None,
        more: Callable[[Path], object] | None = None,
        *,
        writes: bool = True,
    ) -> Path:
        """Writes a checkpoint, then removes those no longer needed.

        Args:
            model: in training.
            ema: its average.
            optimizer: of the model.
            state: where the training stands.
            discriminator: of an adversarial training.
            more: writes more files into the folder that it is given.
            writes: whether this process writes; one does, and where weights are split over processes all must call.

        Raises:
            KinemaError: It cannot be written: the disk is full, say. Earlier checkpoints stay as they are.
        """

        path = self.folder / f"step-{state.step:08d}"
        tensors = _checkpoint_tensors(model, ema, optimizer, discriminator, keep=writes)
        if not writes:
            return path

        def write(folder: Path) -> None:
            for name, named in tensors.items():
                save_file(named, folder / f"{name}.safetensors")
            values = {"format": _FORMAT} | asdict(state) | {"ema_updates": ema.num_updates}
            (folder / "state.json").write_text(json.dumps(values, indent=2) + "\n")
            if more is not None:
                more(folder)
            write_manifest(folder)

        try:
            write_folder(path, write)
        except (OSError, SafetensorError) as error:
            raise KinemaError(
                f"`output` (={self.folder.parent}) must take a checkpoint of step {state.step}, and does not:"
                f" {one_line(error)}; earlier checkpoints are as they were"
            ) from error
        self._damaged.pop(path, None)
        whole = self.whole()
        kept = {*whole[-self.keep_last :], self.best()}
        for other in whole:
            if other not in kept:
                remove_folder(other)
        return path

    def load_last(
        self, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, discriminator: Adversary | None = None
    ) -> TrainingState | None:
        """Puts the newest whole checkpoint into model, average and optimizer; None if there is no checkpoint.

        Raises:
            KinemaError: See `newest` and `load_checkpoint`.
        """
        path = self.newest()
        return None if path is None else load_checkpoint(path, model, ema, optimizer, discriminator)

    def _ranked(self) -> list[Path]:
        """Evaluated checkpoints, the best first and the newer of two equal ones."""
        states = [(read_state(path), path) for path in self.whole()]
        counts = self.score_name or (states[-1][0].score_name if states else None)
        evaluated = [(s.score, s.step, p) for s, p in states if s.score is not None and s.score_name == counts]
        scored = [entry for entry in evaluated if math.isfinite(entry[0])]
        return [path for *_, path in sorted(scored, reverse=True)]

    def _damage(self, path: Path, *, thorough: bool) -> str | None:
        return self._damaged.get(path) or damage_of(path, thorough=thorough)

    def _name(self, damaged: dict[Path, str], instead: str) -> None:
        new = {path: reason for path, reason in damaged.items() if path not in self._damaged}
        self._damaged.update(new)
        if new:
            listed = ", ".join(f"{path} ({reason})" for path, reason in new.items())
            logger.warning("damaged and not used: %s; %s", listed, instead)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def damage_of(path: Path, *, thorough: bool) -> str | None:
    """What is wrong with the files of a checkpoint; None where nothing is.

    Checkpoints written before there were manifests have no checksums: of them, what cannot be read counts as damaged.

    Args:
        path: of the checkpoint.
        thorough: read all of it; else a look at `state.json` and the sizes.
    """
    if (path / MANIFEST).exists():
        reason = find_damage(path, thorough=thorough)
        return reason or _damage_of_state(path)
    reason = _damage_of_state(path)
    if reason is not None:
        return reason
    if "format" in _state_values(path):
        return f"{MANIFEST} is missing"
    return _damage_of_tensors(path) if thorough else None


def _damage_of_state(path: Path) -> str | None:
    try:
        read_state(path)
    except KinemaError as error:
        return str(error.__cause__ or error)
    return None


def _damage_of_tensors(path: Path) -> str | None:
    names = {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    for name in sorted(names | {file.name for file in path.glob("*.safetensors")}):
        try:
            load_file(path / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, SafetensorError) as error:
            return f"{name} cannot be read: {one_line(error, 120)}"
    return None


def load_checkpoint(
    path: Path, model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, discriminator: Adversary | None = None
) -> TrainingState:
    """Puts a checkpoint into model, average and optimizer. A discriminator that it does not have starts anew.

    Raises:
        KinemaError: It is of another model or optimizer, or its files cannot be read.
    """
    try:
        for module, name in ((model, "model"), (ema.model, "ema")):
            module.load_state_dict(split_like(load_file(path / f"{name}.safetensors"), module.state_dict()))
        load_optimizer_tensors(optimizer, load_file(path / "optimizer.safetensors"))
        if discriminator is not None and (path / "discriminator.safetensors").is_file():
            discriminator[0].load_state_dict(load_file(path / "discriminator.safetensors"))
            load_optimizer_tensors(discriminator[1], load_file(path / "discriminator_optimizer.safetensors"))
    except (RuntimeError, KeyError, ValueError, OSError, SafetensorError) as error:
        reason = one_line(error)
        raise KinemaError(f"`checkpoint` (={path}) must fit the model of this training: {reason}") from error
    ema.num_updates = _state_values(path)["ema_updates"]
    return read_state(path)


def read_state(path: Path) -> TrainingState:
    """The state stored in a checkpoint folder.

    Raises:
        KinemaError: `state.json` is missing, cut or not what a checkpoint has.
    """
    try:
        values = _state_values(path)
        known = {f.name for f in fields(TrainingState)}
        try:
            state = from_dict(TrainingState, {name: value for name, value in values.items() if name in known})
        except KinemaError as error:
            raise ValueError(f"state.json: {error}") from error
        for name in ("step", "ema_updates"):
            if type(values.get(name)) is not int or values[name] < 0:
                raise ValueError(f"state.json has no `{name}` that is a number of steps")
    except ValueError as error:
        raise KinemaError(f"`checkpoint` (={path}) must have a whole state.json: {error}") from error
    return state


def _state_values(path: Path) -> dict[str, Any]:
    """What `state.json` holds.

    Raises:
        ValueError: It is no JSON object; the message is for `damage_of`.
    """
    try:
        data = (path / "state.json").read_bytes()
    except FileNotFoundError:
        raise ValueError("state.json is missing") from None
    except OSError as error:
        raise ValueError(f"state.json cannot be read: {error.strerror}") from error
    if not data.strip():
        raise ValueError("state.json is empty")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"state.json is no JSON: {one_line(error, 120)}") from error
    if not isinstance(values, dict):
        raise ValueError("state.json is no JSON object")
    return values


def _checkpoint_tensors(
    model: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, discriminator: Adversary | None, *, keep: bool
) -> dict[str, dict[str, Tensor]]:
    """The tensors of a checkpoint by file; empty where this process does not keep those that it helps to gather."""
    files: dict[str, Mapping[str, Tensor]] = {
        "model": model.state_dict(),
        "ema": ema.model.state_dict(),
        "optimizer": optimizer_tensors(optimizer),
    }
    if discriminator is not None:
        module, its_optimizer = discriminator
        files |= {"discriminator": module.state_dict(), "discriminator_optimizer": optimizer_tensors(its_optimizer)}
    return {name: gather(tensors, keep) for name, tensors in files.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: `<parameter number>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, state in states.items() for name, value in state.items()
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
            if tensor.ndim:
                states[number][name] = part_like(tensor, parameter)
    whole["state"] = states
    optimizer.load_state_dict(whole)
