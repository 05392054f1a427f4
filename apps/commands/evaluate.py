"""Measure clips, a tokenizer or a generator. Results go to the terminal, to JSON and to an HTML page with plots."""

import argparse
import importlib

from kinema.command_line import parse_options

HELP = "measure clips, a tokenizer or a generator"

MEASURES = {
    "fvd": "Fréchet Video Distance of two folders of clips, with its protocol",
    "compare": "frame metrics of a folder of clips against a folder of references",
    "reconstruction": "how much a tokenizer keeps of a folder of clips",
    "generation": "how well generated clips match their prompts, and how they move",
    "suite": "all measures of a tokenizer and a generator at once",
    "toybox": "object, motion and background of Toybox prompts",
}
"""Name of a measure -> its help. The module `eval_<name>` has its `Options`, and `run(options)`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the measures; the rest of the command line belongs to the measure's own parser."""
    parser.set_defaults(run=run)
    measures = parser.add_subparsers(title="measures", metavar="MEASURE", dest="measure", required=True)
    for name, text in MEASURES.items():
        measure = measures.add_parser(name, help=text, add_help=False, allow_abbrev=False, prefix_chars="\0")
        measure.add_argument("options", nargs=argparse.REMAINDER)


def run(arguments: argparse.Namespace) -> None:
    """Parses the options of the measure, and runs it."""
    module = importlib.import_module(f"kinema.apps.commands.eval_{arguments.measure}")
    module.run(parse_options(module.Options, arguments.options, f"kinema eval {arguments.measure}"))
