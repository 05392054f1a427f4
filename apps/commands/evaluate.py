"""Measure a model. `kinema eval toybox` decides from the pixels of generated clips what they show."""

import argparse
from pathlib import Path

from kinema.errors import KinemaError

HELP = "measure how well a model follows prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    measures = parser.add_subparsers(title="measures", metavar="MEASURE", dest="measure", required=True)
    toybox = measures.add_parser(
        "toybox",
        help="object, motion and background of Toybox prompts",
        description="How well a model follows Toybox prompts that it was not trained on, decided from pixels alone.",
        allow_abbrev=False,
    )
    toybox.add_argument("--model", type=Path, metavar="DIR", help="a pipeline's folder; else the embedded model")
    toybox.add_argument("--sprites", type=Path, metavar="DIR", help="the sprite folder of the model's world")
    toybox.add_argument("--num-prompts", type=int, default=200, metavar="N", help="how many (%(default)s)")
    toybox.add_argument("--json", type=Path, metavar="FILE", help="where the report goes")
    toybox.add_argument("--contact-sheet", type=Path, metavar="FILE", help="a PNG of generated clips")
    toybox.add_argument("--image", action="store_true", help="give the first frame, too")
    toybox.add_argument("--num-steps", type=int, metavar="N", help="sampling steps; else the model's own number")
    toybox.add_argument("--guidance-scale", type=float, metavar="SCALE", help="else the model's own")
    toybox.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    toybox.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips at once (%(default)s)")
    toybox.add_argument("--overwrite", action="store_true", help="replace files that exist")
    toybox.set_defaults(run=run_toybox)


def run_toybox(arguments: argparse.Namespace) -> None:
    """Generate, look, report."""
    # Two prompts at least: the oracle is held against each other's clips.
    for name, least in (("num_prompts", 2), ("num_steps", 1), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise KinemaError(f"`--{name.replace('_', '-')}` (={value}) must be >= {least}")

    from kinema.eval.toybox.entry import Settings, run

    report = run(
        Settings(
            model=arguments.model,
            sprites=arguments.sprites,
            num_prompts=arguments.num_prompts,
            json=arguments.json,
            contact_sheet=arguments.contact_sheet,
            image=arguments.image,
            num_steps=arguments.num_steps,
            guidance_scale=arguments.guidance_scale,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            overwrite=arguments.overwrite,
        )
    )
    print(report.table())
