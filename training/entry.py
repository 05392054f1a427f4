"""What the two training scripts share: arguments and log file."""

import dataclasses
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from kinema.errors import KinemaError
from kinema.training.config import TrainingConfig
from kinema.training.presets import select_preset

Config = TypeVar("Config", bound=TrainingConfig)
Parsed = TypeVar("Parsed")


def parse_arguments(presets: dict[str, Config], argv: list[str] | None, program: str) -> Config:
    """The configuration that a command line `PRESET [--setting value ...]` asks for.

    Raises:
        KinemaError: there is no such preset or a setting has a value that is not allowed.
    """
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
    # The preset is given by position, so it is no option.
    hidden = ("preset", Annotated[str, tyro.conf.Suppress], dataclasses.field(default=preset.preset))
    unchecked = {"__post_init__": lambda self: None}  # the configuration below checks, and raises a KinemaError
    settings = dataclasses.make_dataclass(
        "Settings", [hidden], bases=(type(preset),), namespace=unchecked, frozen=True, kw_only=True
    )
    values = {f.name: getattr(preset, f.name) for f in dataclasses.fields(preset)}
    parsed = in_one_line(
        lambda: tyro.cli(settings, prog=program, description=description, default=settings(**values), args=arguments)
    )
    return type(preset)(**{name: getattr(parsed, name) for name in values})


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


@contextmanager
def run_log(run_dir: Path, is_main_process: bool) -> Iterator[None]:
    """Within, kinema's log goes to the terminal and to `train.log` in the run's folder."""
    if not is_main_process:
        yield
        return
    is_new = not run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger("kinema")
    level = root.level
    handlers: list[logging.Handler] = [logging.StreamHandler(), logging.FileHandler(run_dir / "train.log", delay=True)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        if is_new and not any(run_dir.iterdir()):  # a mistake was found before anything was done
            run_dir.rmdir()
