"""How well a model follows Toybox prompts that it was not trained on, decided from pixels alone."""

import argparse
from pathlib import Path

from kinema.errors import KinemaError

HELP = "object, motion and background of Toybox prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes: the attributes of `kinema.eval.toybox.entry.Settings`."""
    parser.set_defaults(run=run)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a pipeline's folder; else the embedded model")
    parser.add_argument("--sprites", type=Path, metavar="DIR", help="the sprite folder of the model's world")
    parser.add_argument("--num-prompts", type=int, default=200, metavar="N", help="how many (%(default)s)")
    parser.add_argument(
        "--objects",
        choices=("default", "all"),
        default="default",
        help="the 48 objects of the Toybox, or all that the sprite folder has (%(default)s)",
    )
    parser.add_argument("--num-objects", type=int, choices=(1, 2), default=1, help="in each prompt (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report goes")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="a PNG of generated clips")
    parser.add_argument("--image", action="store_true", help="give the first frame, too")
    parser.add_argument("--num-steps", type=int, metavar="N", help="sampling steps; else the model's own number")
    parser.add_argument("--guidance-scale", type=float, metavar="SCALE", help="else the model's own")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="noise levels in [0, 1] between which guidance is applied; else the model's own",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run(arguments: argparse.Namespace) -> None:
    """Generate, look, report."""
    # Two prompts at least: the oracle is held against each other's clips.
    for name, least in (("num_prompts", 2), ("num_steps", 1), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={value}) must be >= {least}")

    from dataclasses import fields

    from kinema.eval.toybox import entry

    values = {field.name: getattr(arguments, field.name) for field in fields(entry.Settings)}
    if arguments.guidance_interval is not None:
        values["guidance_interval"] = tuple(arguments.guidance_interval)
    settings = entry.Settings(**values)
    print(entry.run(settings).table())
