"""The model card of a recipe: what was trained, how long, on what, and how it scores."""

import json
import re
from pathlib import Path
from typing import Any

from kinema.files import atomic_path

_STARTED = re.compile(r"([\d.]+) M weights on (\S+) in")
_STEP = re.compile(r"step (\d+)")


def write_card(folder: Path, settings: dict[str, dict[str, Any]], logs: dict[str, str], scores: dict[str, str]) -> None:
    """Writes README.md of a model folder.

    Args:
        folder: the pipeline's folder.
        settings: of each stage, by its name, as `to_dict` gives them.
        logs: what each stage's `train.log` says.
        scores: tables of `kinema eval toybox` by title.
    """
    lines = [f"# {folder.name}: text- and image-to-video of a small world", "", *_facts(folder), ""]
    lines += ["## Training", "", "| stage | clips | a step | steps | time limit, min | learning rate | device |"]
    lines += ["|---|---|---|---|---|---|---|", *(_stage(name, settings[name], logs[name]) for name in settings), ""]
    last = next(reversed(settings.values()))
    objects, number = last["toybox_objects"], " to ".join(map(str, last["toybox_num_objects"]))
    lines += [
        f"Objects: {objects}, {number} in a clip; still camera. Never trained on: 20 % of the combinations of object,",
        f"motion and background, the validation and test splits. Optimizer {last['optimizer']}, seed {last['seed']}.",
        "All settings of the last stage: `training_config.json`.",
        "",
    ]
    if scores:
        lines += ["## Scores", "", "Prompts of the test split, as `kinema eval toybox` decides from the pixels.", ""]
    for title, table in scores.items():
        lines += [f"{title[0].upper()}{title[1:]}:", "", "```", table, "```", ""]
    lines += [
        "## Sources",
        "",
        "Clips are drawn by kinema's code; with `--sprites`, pictures of the objects are Microsoft Fluent Emoji 3D",
        "(MIT), from the npm package `@lobehub/fluent-emoji-3d`. The weights are under kinema's licence, Apache-2.0.",
    ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def _facts(folder: Path) -> list[str]:
    index = json.loads((folder / "model_index.json").read_text())
    frames, height, width = index["sample_size"]
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return [
        f"Clips of {frames} frames of {height}x{width} pixels at {index['sample_fps']:g} a second; {size / 1e6:.1f} MB",
        f"in float16. Sampler: {index['sample_steps']} steps, guidance {index['sample_guidance_scale']:g}.",
    ]


def _stage(name: str, settings: dict[str, Any], log: str) -> str:
    """A line of the table; steps and device are those that the log names last."""
    shape = settings["shape"] if "shape" in settings else ", ".join(settings["shapes"])
    started, steps = _STARTED.findall(log), _STEP.findall(log)
    kept = f"{settings['num_clips']:,} of " if settings.get("num_clips") else "fresh "
    return (
        f"| {name} ({settings['preset']}{f', {started[-1][0]} M weights' if started else ''}) | {kept}{shape} "
        f"| {settings['batch_size']} | {steps[-1] if steps else '?'} | {settings['max_minutes']:.2g} "
        f"| {settings['learning_rate']:g} | {started[-1][1] if started else '?'} |"
    )
