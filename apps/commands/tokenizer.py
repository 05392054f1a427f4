"""Work on a trained tokenizer: measure the statistics by which its latents are normalised."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kinema.command_line import check_at_least
from kinema.errors import KinemaError
from kinema.files import atomic_path, check_output_file

if TYPE_CHECKING:
    from kinema.training.latent_statistics import LatentStatistics

HELP = "measure the latents of a tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    action = actions.add_parser(
        "statistics",
        help="mean and scale of each latent channel over clips, stored in the tokenizer's config",
        allow_abbrev=False,
    )
    action.add_argument("--tokenizer", required=True, metavar="DIR", help="the tokenizer's folder")
    action.add_argument(
        "--data", required=True, nargs="+", metavar="DIR", help="folders of clips, and/or the word toybox"
    )
    action.add_argument("--shape", metavar="TxHxW", help="size of the clips; else 17x64x64, or the tokenizer's window")
    action.add_argument("--num-clips", type=int, default=64, metavar="N", help="clips to measure (%(default)s)")
    action.add_argument("--batch-size", type=int, default=4, metavar="N", help="clips at once (%(default)s)")
    action.add_argument(
        "--balance",
        type=float,
        default=0.5,
        metavar="B",
        help="how much of its weight in pixels a normalised channel keeps, 0 (unit variance) to 1 (%(default)g)",
    )
    action.add_argument("--sprites", metavar="DIR", help="sprite folder of the Toybox world; else drawn shapes")
    action.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of clips (%(default)s)")
    action.add_argument("--device", metavar="NAME", help="cpu, cuda, ...; else CUDA where there is one")
    action.add_argument("--dry-run", action="store_true", help="print only, store nothing")
    action.add_argument("--json", metavar="FILE", help="write all figures to a file")
    action.add_argument("--overwrite", action="store_true", help="replace the file of --json")
    action.set_defaults(run=run_statistics)


def run_statistics(arguments: argparse.Namespace) -> None:
    """Measure, print, store."""
    check(arguments)
    from kinema.training.latent_statistics import store_statistics

    statistics = measure(arguments)
    print(table(statistics))
    if arguments.json is not None:
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(statistics.as_dict(), indent=2) + "\n")
    if not arguments.dry_run:
        store_statistics(Path(arguments.tokenizer), statistics)
        print(f"stored in {Path(arguments.tokenizer) / 'config.json'}")


def check(arguments: argparse.Namespace) -> None:
    """Raise `KinemaError` over a mistake that shows before the work."""
    check_at_least(arguments, {"num_clips": 1, "batch_size": 1, "seed": 0})
    if not 0 <= arguments.balance <= 1:
        raise KinemaError(f"`--balance` (={arguments.balance:g}) must be in [0, 1]")
    if arguments.shape is not None:
        from kinema.training.config import parse_shape

        parse_shape(arguments.shape, "--shape")
    if arguments.json is not None:
        check_output_file(arguments.json, overwrite=arguments.overwrite, name="--json")
    if not (Path(arguments.tokenizer) / "config.json").is_file():
        raise KinemaError(f"`--tokenizer` (={arguments.tokenizer!r}) must be a folder made by `save_pretrained`")


def measure(arguments: argparse.Namespace) -> "LatentStatistics":
    """The statistics over random clips, chosen as in training."""
    from kinema.apps.loading import load_tokenizer
    from kinema.tokenizers.base import LatentTokenizer
    from kinema.training.config import TokenizerTrainingConfig
    from kinema.training.data.batches import TokenizerBatches
    from kinema.training.data.toybox.source import ToyboxSettings
    from kinema.training.latent_statistics import measure_latents
    from kinema.training.seeds import step_generator

    sizes = [arguments.batch_size] * (arguments.num_clips // arguments.batch_size)
    rest = arguments.num_clips % arguments.batch_size
    tokenizer = load_tokenizer(arguments.tokenizer, device=arguments.device)
    if not isinstance(tokenizer, LatentTokenizer):
        kind = type(tokenizer).__name__
        raise KinemaError(f"`--tokenizer` (={arguments.tokenizer!r}, a {kind}) must be one of kinema's own")
    frames, side = tokenizer.temporal_compression_ratio, tokenizer.spatial_compression_ratio
    shape = arguments.shape or ("17x64x64" if tokenizer.has_grid else f"{frames}x{side}x{side}")
    sprites = None if arguments.sprites is None else Path(arguments.sprites)
    with tempfile.TemporaryDirectory() as cache:
        config = TokenizerTrainingConfig(
            preset="statistics",
            data=tuple(arguments.data),
            shapes=(shape,),
            batch_size=arguments.batch_size,
            source_settings=(ToyboxSettings(sprites=sprites),),
            seed=arguments.seed,
            cache_dir=Path(cache),
        )
        batches = TokenizerBatches(config)
        clips = [batches(step) for step in range(len(sizes))]
        if rest:  # clips of a batch are in the order of their sources: some of each
            clips.append(batches(len(sizes))[:: max(1, arguments.batch_size // rest)][:rest])
        generator = step_generator(arguments.seed, 0, 0, "latents")
        return measure_latents(tokenizer, clips, arguments.balance, generator)


def table(statistics: "LatentStatistics") -> str:
    """The figures as text, a line for each channel."""
    lines = ["channel      mean       std     scale  pixel weight"]
    columns = zip(statistics.mean, statistics.std, statistics.scale, statistics.weight, strict=True)
    for channel, (mean, std, scale, weight) in enumerate(columns):
        lines.append(f"{channel:7d} {mean:9.4f} {std:9.4f} {scale:9.4f} {weight:13.5f}")
    return "\n".join(lines)
