"""Speed of training a transformer: kinema's loop against a bare PyTorch loop of the same model on data that lies there.

    python benchmarks/training_throughput.py [--preset toybox-s] [--shape 17x64x64] [--batch-size 16] [--steps 12]
                                             [--turns 3] [--optimizer adamw] [--peak-tflops 989] [--json FILE]

Both loops run forward, backward, clipping and the same optimizer, compiled alike. The bare one has a batch of latents
and texts on the device and takes it again and again: no loader, no average of the weights, no log, no check of numbers.
kinema's loop is the one of `kinema train diffusion`, with latents computed before. They take turns, so that other work
on the machine slows both. Seconds are medians over the steps of all turns (means on an accelerator), the share is the
bare loop's over kinema's. MFU counts the multiply-adds of forward and backward, without what checkpointing repeats,
against `--peak-tflops`: by default what the device's makers state for dense bfloat16, where it is known.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from kinema.flops import FlopCounter
from kinema.training import diffusion, loop
from kinema.training.accelerator import make_accelerator
from kinema.training.compilation import compile_blocks, set_checkpointing
from kinema.training.config import DiffusionTrainingConfig
from kinema.training.diffusion import DiffusionTask
from kinema.training.meter import Meter
from kinema.training.optimization import make_optimizer
from kinema.training.presets import DIFFUSION_PRESETS
from kinema.weights import embedded_dir

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0, "B200": 2250.0}
"""Dense bfloat16 TFLOP/s by a part of the device's name (NVIDIA's data sheets)."""
_WARM_UP = 3


class Timed(Meter):
    """Notes when each step ends; what it says leaves out the steps that warm up."""

    made: ClassVar["Timed"]

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        Timed.made = self

    def end(self, num_clips: int) -> None:
        super().end(num_clips)
        self.ends.append(time.perf_counter())
        if len(self.ends) == _WARM_UP:
            self.reset()

    def means(self) -> dict[str, float]:
        self.said = super().means()
        self.read_at = time.perf_counter()
        return self.said


def bare_loop(task: DiffusionTask, config: DiffusionTrainingConfig, device: torch.device) -> Callable[[], object]:
    """A step of the bare loop."""
    model = task.model.to(device).train()
    set_checkpointing(model, config)
    compile_blocks(model, config.compile, device)
    optimizer = make_optimizer(model, config)
    batch = {name: value.to(device) for name, value in task.batch(0).items()}
    generator = torch.Generator(device).manual_seed(0)

    def step() -> Tensor:
        with task.autocast():
            loss = task.loss(model, batch, generator).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(config: DiffusionTrainingConfig, steps: int, turns: int) -> dict[str, float]:
    """Speed of both loops.

    Args:
        config: of the training; `output` is a folder for runs.
        steps: of each turn, beside three to warm up.
        turns: of both loops.
    """
    runs = config.run_dir
    config = dataclasses.replace(
        config, num_steps=steps + _WARM_UP, warmup_steps=1, eval_every=10**6, sample_every=10**6, save_every=10**6,
        log_every=steps + _WARM_UP, validation_clips=0, num_samples=0, cache_dir=runs / "cache",
    )  # fmt: skip
    accelerator = make_accelerator(config)
    device = accelerator.device
    bare: list[float] = []
    loop: list[float] = []
    waits: list[float] = []
    task = DiffusionTask(config, accelerator)
    tflop = _flops(task, device) / 1e12
    step = bare_loop(task, config, device)
    for turn in range(turns):
        bare += _times(step, steps, device)
        seconds, wait = _run_loop(dataclasses.replace(config, output=runs / f"turn-{turn}"))
        loop += seconds
        waits.append(wait)
    # On an accelerator the host runs ahead, and single steps say little.
    middle = statistics.median if device.type == "cpu" else statistics.mean
    seconds_bare, seconds_loop = middle(bare), middle(loop)
    numbers = {
        "seconds_bare": seconds_bare,
        "seconds_loop": seconds_loop,
        "share": seconds_bare / seconds_loop,
        "data_wait": statistics.median(waits),
        "clips_per_second": config.batch_size / seconds_loop,
        "tokens_per_step": _tokens(task) * config.batch_size,
        "tflop_per_step": tflop,
        "tflops": tflop / seconds_loop,
    }
    return numbers


def _times(step: Callable[[], Any], steps: int, device: torch.device) -> list[float]:
    """Seconds of each step, timed at its launch like the loop's steps; the wait at the end is spread over them."""
    for _ in range(_WARM_UP):
        step()
    ends = [_now(device)]
    for _ in range(steps):
        step()
        ends.append(time.perf_counter())
    return _durations(ends, _now(device))


def _durations(ends: Sequence[float], last: float) -> list[float]:
    """On an accelerator the host runs ahead: what it waits at the end is spread over all steps."""
    late = (last - ends[-1]) / (len(ends) - 1)
    return [after - before + late for before, after in itertools.pairwise(ends)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _run_loop(config: DiffusionTrainingConfig) -> tuple[list[float], float]:
    """Seconds of each step of kinema's loop, and the share of them in which it waited for data."""
    with patch.object(loop, "Meter", Timed):
        diffusion.train(config)
    meter = Timed.made
    return _durations(meter.ends[_WARM_UP - 1 :], meter.read_at), meter.said["data_wait"]


def _tokens(task: DiffusionTask) -> int:
    latents = task.batch(0)["latents"]
    t, h, w = task.model.token_grid(latents.shape[2:])
    return t * h * w


def _flops(task: DiffusionTask, device: torch.device) -> int:
    """Of forward and backward of one step."""
    task.model.to(device)
    batch = {name: value.to(device) for name, value in task.batch(0).items()}
    with FlopCounter() as counter, task.autocast():
        loss = task.loss(task.model, batch, torch.Generator(device).manual_seed(0)).total
        loss.backward()
    task.model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def peak_of(device: torch.device) -> float | None:
    """Stated TFLOP/s of a device; None: unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def machine_of(device: torch.device) -> str:
    """The machine, for the table."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def mfu_of(numbers: dict[str, float], peak: float | None) -> float | None:
    """Share of the peak that the loop reaches; None where the peak is unknown."""
    return None if peak is None else numbers["tflops"] / peak


def table(numbers: dict[str, float], peak: float | None) -> str:
    """The figures as lines of a table."""
    mfu = mfu_of(numbers, peak)
    stated = "-" if mfu is None else f"{mfu:.1%}"
    return (
        "| bare, s a step | kinema, s a step | share | data wait | clips/s | tokens a step | TFLOP/s | MFU |\n"
        "|---|---|---|---|---|---|---|---|\n"
        f"| {numbers['seconds_bare']:.4f} | {numbers['seconds_loop']:.4f} | {numbers['share']:.3f} "
        f"| {numbers['data_wait']:.1%} | {numbers['clips_per_second']:.1f} | {numbers['tokens_per_step']} "
        f"| {numbers['tflops']:.3g} | {stated} |"
    )


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="toybox-s", choices=list(DIFFUSION_PRESETS))
    parser.add_argument("--tokenizer", type=Path, default=embedded_dir("toybox") / "vae")
    parser.add_argument("--shape", default="17x64x64")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-clips", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            DIFFUSION_PRESETS[arguments.preset], data=("toybox",), tokenizer=arguments.tokenizer,
            output=Path(folder), shape=arguments.shape, batch_size=arguments.batch_size,
            num_clips=arguments.num_clips, optimizer=arguments.optimizer, compile=arguments.compile,
        )  # fmt: skip
        numbers = measure(config, arguments.steps, arguments.turns)
        device = make_accelerator(config).device
    peak = arguments.peak_tflops or peak_of(device)
    print(f"{arguments.preset}, {arguments.batch_size} clips of {arguments.shape}; {machine_of(device)}")
    print(table(numbers, peak))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps(numbers | {"machine": machine_of(device), "mfu": mfu_of(numbers, peak)}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
