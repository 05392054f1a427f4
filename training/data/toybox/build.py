"""Makes the sprite folder from a public npm package, through the npm client."""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from kinema.errors import KinemaError
from kinema.training.data.toybox.folder import new_folder
from kinema.training.data.toybox.sprites import MANIFEST

SIDE = 128
_QUALITY, _METHOD = 92, 4  # of the WebP encoder: visually lossless; slower methods take a minute for smaller files
_TIMEOUT = 600.0  # seconds for the download of 16 MB


@cache
def names_list() -> dict[str, Any]:
    """The committed list: npm package and version, licence, and of each sprite name, file in the package and group."""
    text = resources.files("kinema.training.data.toybox").joinpath("sprites_names.json").read_text(encoding="utf-8")
    return json.loads(text)


def sprite_file(name: str) -> str:
    """The file name of a sprite in the folder that `build_sprites` makes."""
    return f"{name.replace(' ', '_')}.webp"


def build_sprites(out_dir: Path | str, *, archive: Path | str | None = None, overwrite: bool = False) -> Path:
    """Downloads the package with `npm pack` and writes 128x128 RGBA WebP files and `sprites.json`.

    Args:
        out_dir: The folder to make.
        archive: The package's .tgz file, where it is at hand already; by default the npm client fetches it.
        overwrite: Whether files that are there already may be replaced.

    Returns:
        The folder.

    Raises:
        KinemaError: There is no npm client, the download failed, the archive lacks a picture, or `out_dir` holds files.
    """
    with new_folder(out_dir, name="out_dir", overwrite=overwrite) as folder, tempfile.TemporaryDirectory() as downloads:
        package = _download(Path(downloads)) if archive is None else Path(archive)
        listed = names_list()
        wanted = {f"package/assets/{entry['file']}": entry for entry in listed["sprites"]}
        try:
            with tarfile.open(package) as tar:
                for member in tar:
                    entry = wanted.pop(member.name, None)
                    stream = None if entry is None else tar.extractfile(member)
                    if entry is not None and stream is not None:
                        _convert(stream.read(), folder / sprite_file(entry["name"]))
        except (OSError, tarfile.TarError) as error:
            raise KinemaError(
                f"`archive` (={package}) must be the .tgz file of {listed['package']}: {error}"
            ) from error
        if wanted:
            raise KinemaError(
                f"`archive` (={package}) must hold {next(iter(wanted))} ({len(wanted)} pictures are missing)"
            )
        sprites = [
            {"name": entry["name"], "file": sprite_file(entry["name"]), "group": entry["group"]}
            for entry in listed["sprites"]
        ]
        manifest = {"licence": listed["licence"], "sprites": sprites}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    return Path(out_dir)


def _download(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise KinemaError("`npm` (not found) must be installed to fetch the sprites (it comes with Node.js)")
    package = f"{names_list()['package']}@{names_list()['version']}"
    command = [npm, "pack", package, "--silent", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT, cwd=folder)
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or error.stdout or "").split())[-300:]
        raise KinemaError(f"`npm pack {package}` (exit status {error.returncode}) must succeed: {reason}") from error
    except subprocess.TimeoutExpired as error:
        raise KinemaError(
            f"`npm pack {package}` must end within {_TIMEOUT:.0f} seconds: is the registry reachable?"
        ) from error
    archives = list(folder.glob("*.tgz"))
    if len(archives) != 1:
        raise KinemaError(f"`npm pack {package}` must make one .tgz file, and made {len(archives)}")
    return archives[0]


def _convert(data: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(data)) as image:
        sprite = image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    sprite.save(path, "WEBP", quality=_QUALITY, method=_METHOD)
