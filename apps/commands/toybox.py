"""The Toybox, a procedural world of captioned clips: render clips to look at, or fetch its objects' pictures."""

import argparse

HELP = "captioned clips of a procedural world, and its pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    render = actions.add_parser("render", help="clips, captions and ground truth into a folder", allow_abbrev=False)
    render.add_argument("out", metavar="OUT", help="the folder to make")
    render.add_argument("--num-clips", type=int, default=8, metavar="N", help="how many (%(default)s)")
    render.add_argument("--sprites", metavar="DIR", help="a sprite folder; else drawn shapes")
    render.add_argument(
        "--split", default="train", choices=("train", "validation", "test"), help="of the combinations (%(default)s)"
    )
    render.add_argument("--num-frames", type=int, default=17, metavar="N", help="frames in a clip (%(default)s)")
    render.add_argument("--height", type=int, default=64, metavar="PIXELS", help="(%(default)s)")
    render.add_argument("--width", type=int, default=64, metavar="PIXELS", help="(%(default)s)")
    render.add_argument("--num-objects", type=int, default=1, metavar="N", help="most objects in a clip (%(default)s)")
    render.add_argument("--cameras", nargs="+", default=["static"], metavar="NAME", help="'pans left', ... (static)")
    render.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    render.add_argument("--fps", type=float, default=8.0, help="frames a second in the files (%(default)g)")
    render.add_argument("--lossless", action="store_true", help="files with exactly the pixels that were drawn")
    render.add_argument("--overwrite", action="store_true", help="replace the folder's clips")
    render.set_defaults(run=run_render)
    sprites = actions.add_parser(
        "sprites", help="fetch the pictures of 3D emoji with npm, as a sprite folder", allow_abbrev=False
    )
    sprites.add_argument("out", metavar="DIR", help="the folder to make")
    sprites.add_argument("--overwrite", action="store_true", help="replace the folder's pictures")
    sprites.set_defaults(run=run_sprites)


def run_render(arguments: argparse.Namespace) -> None:
    """Render clips into a folder."""
    from kinema.training.data.toybox.folder import render_to_folder

    folder = render_to_folder(
        arguments.out,
        arguments.num_clips,
        sprites=arguments.sprites,
        split=arguments.split,
        seed=arguments.seed,
        num_frames=arguments.num_frames,
        height=arguments.height,
        width=arguments.width,
        num_objects=(1, arguments.num_objects),
        cameras=arguments.cameras,
        fps=arguments.fps,
        lossless=arguments.lossless,
        overwrite=arguments.overwrite,
    )
    print(f"{folder}  {arguments.num_clips} clips, captions.jsonl, ground_truth.jsonl")


def run_sprites(arguments: argparse.Namespace) -> None:
    """Make the sprite folder."""
    from kinema.training.data.toybox.build import build_sprites

    folder = build_sprites(arguments.out, overwrite=arguments.overwrite)
    print(f"{folder}  {sum(1 for _ in folder.glob('*.webp'))} pictures, sprites.json")
