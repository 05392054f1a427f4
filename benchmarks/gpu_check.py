"""Is kinema right on this GPU, and how fast? Four minutes, for a card that is borrowed.

    python benchmarks/gpu_check.py [--output runs/gpu-check] [--stages attention training ...] [--device cuda]

Stages run one after the other, each with a time limit of its own in a process of its own, and go on when one fails.
What a stage found stands in OUTPUT/results.json at once: a second call runs only what is missing or failed. It needs no
network and no files but the repository, and neither PyAV, gradio nor xformers. It ends with a table and exits 1 where
something is wrong. On a CPU the sizes are tiny: that tests the script.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from gpu_stages import SIZES, STAGES

from kinema.files import atomic_path

_SLOWER_CPU = 6.0
"""How much more time than a GPU a CPU has for a stage."""


def run_stage(name: str, device: str, size: str, pipe: Any) -> None:
    """Runs one stage in this process and sends what it found."""
    try:
        pipe.send(STAGES[name][0](torch.device(device), SIZES[size]))
    except Exception as error:  # whatever it is: the next stage goes on
        traceback.print_exc()
        pipe.send({"ok": False, "error": f"{type(error).__name__}: {error}"[:500]})


def run_limited(name: str, device: str, size: str, limit: float) -> dict[str, Any]:
    """Runs a stage in another process, for at most so many seconds."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=run_stage, args=(name, device, size, theirs))
    began = time.monotonic()
    process.start()
    theirs.close()
    found: dict[str, Any] = {"ok": False, "error": f"no result within {limit:.0f} s"}
    try:
        if ours.poll(limit):
            found = ours.recv()
    except EOFError:
        process.join(5)
        found = {"ok": False, "error": f"its process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return found | {"seconds": time.monotonic() - began}


def describe(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    if "error" in found:
        return str(found["error"]).splitlines()[0]
    rows = found["wrong"] if "wrong" in found else found.get("rows")
    numbers = [f"{key} {_short(value)}" for key, value in found.items() if isinstance(value, int | float | bool)]
    numbers = [number for number in numbers if not number.startswith(("ok ", "seconds "))]
    listed = "; ".join(", ".join(f"{k} {_short(v)}" for k, v in row.items()) for row in rows or [])
    return ", ".join(numbers) + (f" [{listed[:900]}]" if listed else "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "/".join(_short(part) for part in value) if isinstance(value, list) else str(value)


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


def main() -> None:
    """Runs what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu-check"))
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(SIZES))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"`--device` (={device}) must be one of the {torch.cuda.device_count()} GPUs here, or cpu")
    size = arguments.size or ("small" if device.type == "cpu" else "full")
    file: Path = arguments.output / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    here = machine(device) | {"size": size}
    if results.get("machine") != here:
        results = {"machine": here, "stages": {}}
    for name in arguments.stages:
        if results["stages"].get(name, {}).get("ok"):
            continue
        limit = STAGES[name][1] * (_SLOWER_CPU if device.type == "cpu" else 1)
        print(f"{name} ...", file=sys.stderr, flush=True)
        results["stages"][name] = run_limited(name, arguments.device, size, limit)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(f"{here['device']}, torch {here['torch']}, sizes {size}\n\n| stage | right | s | found |\n|---|---|---|---|")
    for name, found in results["stages"].items():
        print(f"| {name} | {'yes' if found['ok'] else 'NO'} | {found['seconds']:.0f} | {describe(name, found)} |")
    sys.exit(0 if all(found["ok"] for found in results["stages"].values()) else 1)


if __name__ == "__main__":
    main()
