"""What the training programs share: arguments, and an end when a signal asks for it."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, TypeVar, get_type_hints

from kinema.command_line import in_one_line
from kinema.stopping import raised_signals
from kinema.training.config import TrainingConfig
from kinema.training.presets import select_preset

Config = TypeVar("Config", bound=TrainingConfig)


def run_program(
    train: Callable[[Config], object], presets: dict[str, Config], argv: list[str] | None, program: str
) -> None:
    """Trains as a command line `PRESET [--setting value ...]` asks for.

    Raises:
        KinemaError: what the command line asks for is not allowed.
        Stopped: a signal asked the training to end; it can go on with `--resume`.
    """
    with raised_signals():
        train(parse_arguments(presets, argv, program))


def parse_arguments(presets: dict[str, Config], argv: list[str] | None, program: str) -> Config:
    """The configuration that a command line `PRESET [--setting value ...]` asks for.

    Raises:
        KinemaError: there is no such preset or a setting has a value that is not allowed.
    """
    import tyro  # here: a program that calls `train` with a configuration of its own needs none

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
    # The preset is given by position, for one, so it is no option.
    hints = get_type_hints(type(preset))
    hidden = [
        (
            name,
            Annotated[hints[name], tyro.conf.Fixed, tyro.conf.Suppress],
            dataclasses.field(default=getattr(preset, name)),
        )
        for name in preset.hidden
    ]
    unchecked = {"__post_init__": lambda self: None}  # the configuration below checks, and raises a KinemaError
    settings = dataclasses.make_dataclass(
        "Settings", hidden, bases=(type(preset),), namespace=unchecked, frozen=True, kw_only=True
    )
    values = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    parsed = in_one_line(
        lambda: tyro.cli(settings, prog=program, description=description, default=settings(**values), args=arguments)
    )
    return type(preset)(**{name: getattr(parsed, name) for name in values})
