"""Command lines from dataclasses: parsed by tyro, with errors in one line."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from typing import TypeVar

from kinema.errors import KinemaError

Options = TypeVar("Options")
Parsed = TypeVar("Parsed")


def parse_options(options: type[Options], argv: Sequence[str], program: str) -> Options:
    """Parses a command line; the flags and their help are the fields of a dataclass and its docstring.

    Args:
        options: The dataclass. Fields of nested dataclasses are flags without a prefix.
        argv: The command line, without the program.
        program: What `--help` calls the program.

    Raises:
        KinemaError: An unknown flag, a value of another type, or a missing value.
        SystemExit: After `--help`.
    """
    import tyro  # here: `kinema --help` needs none

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    return in_one_line(lambda: tyro.cli(options, prog=program, args=argv, config=config))


def in_one_line(parse: Callable[[], Parsed]) -> Parsed:
    """Runs a parser of tyro's; its error, a box of several lines, becomes a `KinemaError`."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise KinemaError(unboxed(printed.getvalue())) from stop


def unboxed(text: str) -> str:
    """The first part of a box drawn with lines, without its title and lines.

    >>> unboxed("╭─ Error ─╮\\n│ no such │\\n│ thing   │\\n│ ─────── │\\n│ Help    │\\n╰─────────╯")
    'no such thing'
    """
    lines = [match[1].strip() for match in re.finditer(r"^│(.*)│\s*$", text, flags=re.MULTILINE)]
    rule = next((i for i, line in enumerate(lines) if line and set(line) == {"─"}), len(lines))
    return " ".join(lines[:rule]) or " ".join(text.split())


def check_at_least(options: object, minima: Mapping[str, int]) -> None:
    """Raises `KinemaError` where an attribute of `options` is a number below its minimum; None is none given."""
    for name, minimum in minima.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={value}) must be >= {minimum}")
