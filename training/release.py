"""Turns the model folder of a run into what the repository ships: half precision, one folder, a model card beside it.

    python training/release.py runs/general-tokenizer/model src/kinema/weights/kl-4x8x8-c16
    python training/release.py runs/toybox/model src/kinema/weights/toybox

A model card (README.md) and the settings of an earlier stage (first_stage.json) that are already in the target stay.
Paths of the machine do not go into the released configuration: only names do.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from kinema import KinemaPipeline
from kinema.errors import KinemaError
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.training.data.registry import setting_names
from kinema.training.folders import recover_folders, write_folder

_KEPT = ("README.md", "first_stage.json")
_PATHS = ("data", "output", "cache_dir", "tokenizer", "text_encoder", "init_from", "image_vae")


def release(source: Path, target: Path) -> int:
    """Writes the half-precision copy; returns its size in bytes.

    Raises:
        KinemaError: `source` is no model folder of a training.
    """
    training = source / "training_config.json"
    if not training.is_file():
        raise KinemaError(f"`source` (={source}) must be the model folder of a run, with a training_config.json")
    ours = any((target / name).is_file() for name in ("config.json", "model_index.json"))
    if target.exists() and not ours and any(file.name != "README.md" for file in target.iterdir()):
        raise KinemaError(f"`target` (={target}) must be a folder of a model, which is replaced, or a new one")
    recover_folders(target.parent)
    is_pipeline = (source / "model_index.json").is_file()

    def write(folder: Path) -> None:
        model: Any = KinemaPipeline.from_pretrained(source) if is_pipeline else load_tokenizer(source)
        model.to(dtype=torch.float16).save_pretrained(folder)
        config = without_paths(json.loads(training.read_text()))
        (folder / "training_config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in folder.rglob("*.json"):
            values = json.loads(file.read_text())
            if values.pop("_name_or_path", None) is not None:  # where the run was
                file.write_text(json.dumps(values, indent=2) + "\n")
        for name in _KEPT:
            if (target / name).is_file():
                shutil.copy(target / name, folder / name)
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)

    write_folder(target, write)
    return sum(file.stat().st_size for file in target.rglob("*") if file.is_file())


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the last part of each path alone."""

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(v) for v in value]
        return Path(value).name if isinstance(value, str) else value

    paths = {*_PATHS, *setting_names(paths=True)}
    return {key: name(value) if key in paths else value for key, value in config.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder model/ of a run")
    parser.add_argument("target", type=Path, help="the folder to ship")
    arguments = parser.parse_args()
    size = release(arguments.source, arguments.target)
    print(f"{arguments.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
