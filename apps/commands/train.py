"""Train a tokenizer or a generator. `kinema train tokenizer --help` and `kinema train diffusion --help` tell more."""

import argparse
import importlib
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr

from kinema.errors import KinemaError

HELP = "train a tokenizer or a generator"

TRAINERS = {"tokenizer": "kinema.training.tokenizer", "diffusion": "kinema.training.diffusion"}
"""What is trained -> the module whose `main(argv)` does it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: the rest of the line belongs to the trainer."""
    parser.set_defaults(run=run)
    kinds = parser.add_subparsers(metavar="KIND", dest="kind", required=True)
    helps = {
        "tokenizer": "a video tokenizer, on clips",
        "diffusion": "a diffusion transformer, on a tokenizer's latents",
    }
    for kind in TRAINERS:
        # The trainer has its own parser, for the whole tree of its configuration, and answers --help.
        command = kinds.add_parser(kind, help=helps[kind], add_help=False, allow_abbrev=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")


def run(arguments: argparse.Namespace) -> None:
    """Hand over to the trainer, once the line has been found to be right."""
    from kinema.training.config import DIFFUSION_PRESETS, TOKENIZER_PRESETS
    from kinema.training.entry import parse_arguments

    name = f"kinema train {arguments.kind}"
    if arguments.kind == "tokenizer":
        in_one_line(lambda: parse_arguments(TOKENIZER_PRESETS, arguments.arguments, name))
    else:
        in_one_line(lambda: parse_arguments(DIFFUSION_PRESETS, arguments.arguments, name))
    importlib.import_module(TRAINERS[arguments.kind]).main(arguments.arguments)


def in_one_line(parse: Callable[[], object]) -> None:
    """Run a parser of tyro's, whose complaint, a box of several lines, becomes a `KinemaError`."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            parse()
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
