"""Measure clips, a tokenizer or a generator. Results go to the terminal, to JSON and to an HTML page with plots."""

import argparse
import importlib

HELP = "measure clips, a tokenizer or a generator"

MEASURES = {
    "fvd": "kinema.apps.commands.eval_fvd",
    "compare": "kinema.apps.commands.eval_compare",
    "reconstruction": "kinema.apps.commands.eval_reconstruction",
    "generation": "kinema.apps.commands.eval_generation",
    "suite": "kinema.apps.commands.eval_suite",
    "toybox": "kinema.apps.commands.eval_toybox",
}
"""Name of a measure -> its module, in the order of the help text; the modules are like those of commands."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    measures = parser.add_subparsers(title="measures", metavar="MEASURE", dest="measure", required=True)
    for name, module_name in MEASURES.items():
        module = importlib.import_module(module_name)
        measure = measures.add_parser(name, help=module.HELP, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(measure)
