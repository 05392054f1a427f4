"""Train a tokenizer or a generator. `kinema train tokenizer --help` and the like tell more."""

import argparse
import importlib

from kinema.stopping import delayed_signals

HELP = "train a tokenizer or a generator"

TRAINERS = {
    "tokenizer": "kinema.training.tokenizer",
    "diffusion": "kinema.training.diffusion",
    "distill": "kinema.training.distillation",
}
"""What is trained -> the module whose `main(argv)` does it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: the rest of the line belongs to the trainer."""
    parser.set_defaults(run=run)
    kinds = parser.add_subparsers(metavar="KIND", dest="kind", required=True)
    helps = {
        "tokenizer": "a video tokenizer, on clips",
        "diffusion": "a diffusion transformer, on a tokenizer's latents",
        "distill": "a pipeline that needs few steps and no guidance, from one that needs many",
    }
    for kind in TRAINERS:
        # The trainer has its own parser, for the whole tree of its configuration, and answers --help.
        command = kinds.add_parser(kind, help=helps[kind], add_help=False, allow_abbrev=False, prefix_chars="\0")
        command.add_argument("arguments", nargs="*")


def run(arguments: argparse.Namespace) -> None:
    """Hand over to the trainer."""
    with delayed_signals():
        trainer = importlib.import_module(TRAINERS[arguments.kind])
    trainer.main(arguments.arguments, f"kinema train {arguments.kind}")
