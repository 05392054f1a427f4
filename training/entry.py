"""The command lines of the training programs."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from kinema.command_line import in_one_line
from kinema.stopping import raised_signals
from kinema.training.config import TrainingConfig
from kinema.training.data.registry import SOURCES, settings_classes
from kinema.training.presets import select_preset

Config = TypeVar("Config", bound=TrainingConfig)


def run_program(
    train: Callable[[Config], object], presets: dict[str, Config], argv: list[str] | None, program: str
) -> None:
    """Runs the training that a command line `PRESET [--setting value ...]` describes.

    Raises:
        KinemaError: the command line, the data or the run's folder is invalid.
        Stopped: a signal requested the stop; `--resume` continues the training.
    """
    with raised_signals():
        train(parse_arguments(presets, argv, program))


def parse_arguments(presets: dict[str, Config], argv: list[str] | None, program: str) -> Config:
    """Parses a command line `PRESET [--setting value ...]` into a configuration.

    Raises:
        KinemaError: the preset or a setting is unknown, or a value is invalid.
    """
    import tyro  # here, so that calling `train` from Python does not need it

    arguments = sys.argv[1:] if argv is None else list(argv)
    names = ", ".join(presets)
    if not arguments or arguments[0] in ("-h", "--help"):
        shown = next(iter(presets))
        description = f"The first argument is a preset: {names}. Defaults shown are those of {shown}."
        program, arguments = f"{program} {shown}", ["--help"]
        preset = presets[shown]
    else:
        description = None
        preset = select_preset(presets, arguments.pop(0))
    default = _flags(preset)
    parsed = in_one_line(
        lambda: tyro.cli(type(default), prog=program, description=description, default=default, args=arguments)
    )
    given = _field_values(preset, parsed)
    given["source_settings"] = tuple(cls(**_field_values(cls, parsed)) for cls in settings_classes())
    return type(preset)(**given)


def _flags(preset: TrainingConfig) -> Any:
    """The preset as a dataclass whose fields are the flags: its own, and those of the data sources' settings.

    Its values are not checked; the configuration made of them is, and raises a `KinemaError`.
    """
    import tyro

    def field(name: str, kind: Any, *markers: Any) -> tuple[str, Any, Any]:
        return name, Annotated[(kind, *markers)], dataclasses.field(default=getattr(preset, name))

    sources = "; ".join(f"`{name}`: {source.help}" for name, source in SOURCES.items())
    data_help = tyro.conf.arg(help=f"Folders of video files, and names of built-in data sources ({sources}).")
    changed = [
        field("data", tuple[str, ...], data_help),
        # The preset is given by position, and the sources' settings by their own flags.
        *(field(name, Any, tyro.conf.Fixed, tyro.conf.Suppress) for name in preset.hidden),
    ]
    parts = [preset.settings_for(cls) for cls in settings_classes()]
    bases, unchecked = (*map(type, parts), type(preset)), {"__post_init__": lambda self: None}
    flags = dataclasses.make_dataclass("Flags", changed, bases=bases, namespace=unchecked, frozen=True, kw_only=True)
    return flags(**{name: value for part in (preset, *parts) for name, value in _field_values(part, part).items()})


def _field_values(config: Any, values: Any) -> dict[str, Any]:
    """The fields of a dataclass, with the attributes of `values`."""
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(config)}
