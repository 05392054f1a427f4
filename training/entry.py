"""The command lines of the training programs."""

import dataclasses
import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Annotated, Any, TypeVar

from kinema.errors import KinemaError
from kinema.stopping import raised_signals
from kinema.training.config import TrainingConfig
from kinema.training.data.registry import SOURCES, settings_classes
from kinema.training.presets import select_preset

Config = TypeVar("Config", bound=TrainingConfig)
Parsed = TypeVar("Parsed")


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
    # The preset is given by position, and the sources' settings by their fields: neither is an option.
    hidden = [
        (name, Annotated[Any, tyro.conf.Fixed, tyro.conf.Suppress], dataclasses.field(default=getattr(preset, name)))
        for name in ("preset", "source_settings")
    ]
    kinds = "; ".join(f"`{name}`: {source.help}" for name, source in SOURCES.items())
    data_help = tyro.conf.arg(help=f"Folders of video files, and names of built-in data sources ({kinds}).")
    data = ("data", Annotated[tuple[str, ...], data_help], dataclasses.field(default=preset.data))
    parts = [preset.settings_for(cls) for cls in settings_classes()]
    unchecked = {"__post_init__": lambda self: None}  # the configuration below checks, and raises a KinemaError
    settings = dataclasses.make_dataclass(
        "Settings",
        [*hidden, data],
        bases=(*map(type, parts), type(preset)),
        namespace=unchecked,
        frozen=True,
        kw_only=True,
    )
    values = _field_values(preset, preset)
    for part in parts:
        values |= _field_values(part, part)
    parsed = in_one_line(
        lambda: tyro.cli(settings, prog=program, description=description, default=settings(**values), args=arguments)
    )
    given = _field_values(preset, parsed)
    given["source_settings"] = tuple(type(part)(**_field_values(part, parsed)) for part in parts)
    return type(preset)(**given)


def _field_values(config: Any, values: Any) -> dict[str, Any]:
    """The fields of a dataclass, with the attributes of `values`."""
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(config)}


def in_one_line(parse: Callable[[], Parsed]) -> Parsed:
    """Runs a parser of tyro's, whose complaint, a box of several lines, becomes a `KinemaError`."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise KinemaError(unboxed(said.getvalue())) from stop


def unboxed(text: str) -> str:
    """The first part of a box drawn with lines, without its title and lines.

    >>> unboxed("╭─ Error ─╮\\n│ no such │\\n│ thing   │\\n│ ─────── │\\n│ Help    │\\n╰─────────╯")
    'no such thing'
    """
    lines = [match[1].strip() for match in re.finditer(r"^│(.*)│\s*$", text, flags=re.MULTILINE)]
    rule = next((i for i, line in enumerate(lines) if line and set(line) == {"─"}), len(lines))
    return " ".join(lines[:rule]) or " ".join(text.split())
