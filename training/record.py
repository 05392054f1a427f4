"""What a run's weights depend on: kept in each checkpoint, and compared when the run goes on.

    run.json     version of kinema, settings, configuration of the model, what else the weights depend on
    data.json    files of the data with their sizes and captions
    vocabulary/  the tokenizer of prompts, where it is a vocabulary of words

Settings that say what weights mean, or what they are trained on, must stay. Others may change: learning rates, weights
of losses, the number of steps, intervals. docs/training.md has the list for users.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import kinema
from kinema.errors import KinemaError
from kinema.loading import one_line
from kinema.tokenizers.quantizers import nested_bottleneck
from kinema.training.config import TrainingConfig
from kinema.training.config_json import default_values, from_dict, to_dict
from kinema.training.data.registry import setting_names

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=TrainingConfig)
Contents = dict[str, list[Any]]
"""Files of the data -> size in bytes and, where captions matter, the caption."""

VOCABULARY = "vocabulary"
STATISTICS = ("latents_mean", "latents_std")

_FIXED = (
    *("preset", "seed", "init_from", "optimizer", "data_weights", "validation"),
    *("cache_short_side", "max_stride", "max_zoom_out"),
    # tokenizers
    *("shapes", "shape_weights", "frame_rates", "init_linear", "freeze_encoder"),
    # diffusion
    *("shape", "fps", "text_max_length", "attention", "coarse_tile"),
    # distillation
    *("objective", "student_steps", "teacher_steps", "teacher_guidance_scale", "teacher_guidance_interval"),
)
"""Settings that must not change, where a configuration has them; so must not those of data sources, except paths."""

_FROM_RUN = (
    *("data", "init_from", "tokenizer", "text_encoder", "image_vae", "fps", "shape"),
    *("teacher", "teacher_steps", "teacher_guidance_scale", "teacher_guidance_interval"),
)
"""Settings that are taken from the run if they are not given, as are the paths of data sources. The contents of their
files must not change; their location may."""


@dataclass(frozen=True)
class Record:
    """What a checkpoint says about the weights in it.

    Attributes:
        path: the checkpoint.
        config: settings of the training, as `to_dict` gives them.
        model: configuration of the model, statistics of latents included; empty where the checkpoint does not say.
        depends: what else the weights depend on, see `Task.depends_on`; empty where the checkpoint does not say.
        data: what the data consisted of; empty where the checkpoint does not say.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    depends: dict[str, Any] = field(default_factory=dict)
    data: Contents = field(default_factory=dict)

    @property
    def vocabulary(self) -> Path | None:
        """Folder of the vocabulary of prompts, if the checkpoint has one."""
        folder = self.path / VOCABULARY
        return folder if folder.is_dir() else None

    @property
    def statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and scale of the latents that the run normalises with: of its model, or of the tokenizer it uses."""
        values = self.model | self.depends
        mean, std = (values.get(name) for name in STATISTICS)
        return None if mean is None or std is None else (mean, std)


def write_record(
    folder: Path, config: Mapping[str, Any], model: Mapping[str, Any], depends: Mapping[str, Any], data: Contents
) -> None:
    """Writes `run.json` and `data.json`."""
    values = {"kinema": kinema.__version__, "config": config, "model": model, "depends": depends}
    (folder / "run.json").write_text(json.dumps(values, indent=2) + "\n")
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(data.items())]
    (folder / "data.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read_record(path: Path) -> Record:
    """What a checkpoint says; of one from before there were records, what `config.json` of the run says.

    Raises:
        KinemaError: a file of the record cannot be read.
    """
    if not (path / "run.json").exists():
        logger.info("%s is of an earlier version: only its settings can be compared", path)
        return Record(path, read_settings(path.parent.parent / "config.json"))
    try:
        values = json.loads((path / "run.json").read_bytes())
        data = json.loads((path / "data.json").read_bytes())
        return Record(path, values["config"], nested_bottleneck(values["model"]), values["depends"], data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KinemaError(f"`checkpoint` (={path}) must have a whole run.json and data.json: {error}") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a run's `config.json`; none, which the log says, where it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be read, and settings are not compared with it: %s", path, one_line(error))
        return {}
    return values


def continue_settings(config: Config, record: Record) -> Config:
    """The settings with which a run goes on: those given, and the run's own where they are left out.

    Raises:
        KinemaError: a setting that must stay differs; all that do are named.
    """
    before, now = default_values(config) | record.config, to_dict(config)
    from_run = (*_FROM_RUN, *setting_names(paths=True))
    taken = {name: before[name] for name in from_run if before.get(name) and name in now and not now[name]}
    if "data" in taken and not now["data_weights"]:
        taken["data_weights"] = before["data_weights"]
    now |= taken
    fixed = [name for name in (*_FIXED, *setting_names(paths=False)) if name in now and name in before]
    if before.get("adversarial_weight") and now["adversarial_weight"]:  # the checkpoint has a discriminator
        fixed += ["discriminator_width", "discriminator_levels"]
    changed = [name for name in fixed if record.config and now[name] != before[name]]
    if changed:
        told = ", ".join(f"`{name}` (={_shown(now[name])}) must stay {_shown(before[name])}" for name in changed)
        raise KinemaError(f"{told}, since the run in `output` (={config.run_dir}) goes on")
    return from_dict(type(config), now)


def log_changes(config: TrainingConfig, record: Record) -> None:
    """Says which settings differ from those that the run had so far."""
    before, now = default_values(config) | record.config, to_dict(config)
    changes = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
    changes = [change for change in changes if not change.startswith("resume ")]
    if record.config:
        logger.info("settings changed: %s", "; ".join(changes) or "none")


def model_config(model: Any) -> dict[str, Any]:
    """The configuration of a model as what JSON can hold; none for a module without one."""
    settings = dict(getattr(model, "config", {}))
    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    return json.loads(json.dumps(own, default=str))


def check_model(model: Any, record: Record) -> None:
    """Raises `KinemaError`, naming the differences, where the model is not of the kind that the checkpoint has."""
    now = model_config(model)
    names = [name for name in record.model if name in now and name not in STATISTICS]
    changed = [f"`{name}` (={now[name]}) must stay {record.model[name]}" for name in names
               if now[name] != record.model[name]]  # fmt: skip
    if changed:
        raise KinemaError(f"{', '.join(changed)}: the model in {record.path} has it so")


def check_depends(config: TrainingConfig, setting: str, now: str | None, record: Record | None) -> None:
    """Raises `KinemaError` where what a setting names is not what the run began with.

    Args:
        config: settings.
        setting: one whose hash is in `depends`.
        now: the hash of what it names now; None where it names nothing.
        record: of the checkpoint; None in a new run.
    """
    if record is None or setting not in record.depends or record.depends[setting] == now:
        return
    run = f"since the run in `output` (={config.run_dir}) goes on"
    if record.depends[setting] is None:
        raise KinemaError(f"`{setting}` (={getattr(config, setting)}) must stay None, {run}")
    first = record.config.get(setting)
    raise KinemaError(
        f"`{setting}` (={getattr(config, setting)}) must have the weights and settings that {first} had at first, {run}"
    )


def check_data(config: TrainingConfig, contents: Contents, record: Record | None) -> None:
    """Warns where the data has changed since the checkpoint, if there is one.

    Raises:
        KinemaError: `data`, or a path in the settings of a data source, has changed, and so has what is there.
    """
    told = "" if record is None or not record.data else data_changes(record.data, contents)
    if record is None or not told:
        return
    before, now = default_values(config) | record.config, to_dict(config)
    moved = [name for name in ("data", *setting_names(paths=True)) if before[name] != now[name]]
    if moved:
        places = ", ".join(
            f"`{name}` (={_shown(now[name])}) must hold what {_shown(before[name])} held" for name in moved
        )
        raise KinemaError(f"{places}, since the run in `output` (={config.run_dir}) goes on: {told}")
    logger.warning("the data has changed since %s, and the training goes on with it: %s", record.path, told)


def data_changes(before: Contents, now: Contents) -> str:
    """What differs between two states of the data, in words; empty where nothing does."""
    both = [name for name in before if name in now]
    captions = [f"{n}: {before[n][1]!r} is now {now[n][1]!r}" for n in both if before[n][1:] != now[n][1:]]
    kinds = {
        "captions changed": captions,
        "files changed": [name for name in both if before[name][0] != now[name][0]],
        "new files": [name for name in now if name not in before],
        "files gone": [name for name in before if name not in now],
    }
    return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "()" if isinstance(value, list) else str(value)
