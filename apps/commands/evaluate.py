"""Measure a model. `kinema eval toybox` decides from the pixels of generated clips what they show."""

import argparse

HELP = "measure how well a model follows prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    kinds = parser.add_subparsers(title="measures", metavar="MEASURE", dest="measure", required=True)
    toybox = kinds.add_parser("toybox", help="object, motion and background of Toybox prompts", allow_abbrev=False)
    toybox.add_argument("--model", metavar="DIR", help="a pipeline's folder; else the embedded model")
    toybox.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Generate and measure."""
    raise NotImplementedError
