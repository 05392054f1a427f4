"""Speed, arithmetic and memory of video tokenizers: kinema's against auto-encoders that diffusers runs.

    python benchmarks/tokenizer_speed.py [--models NAME ...] [--sizes 17x128x128 17x256x256] [--repeats 5] [--json FILE]

Each model runs in a process of its own, so that each has its own peak memory, and they take turns, one call each, so
that other work on the machine slows all alike. Seconds are medians over the turns, ratios are medians of the ratios
within a turn. GFLOP counts a multiply-add as two. Memory is the peak of the process during one call; in brackets what
it holds with the model loaded. Peers have random weights at their default configuration: the figures do not depend on
the weights, but diffusers' AutoencoderVidTok does less work than the others, since it drops frames (17 in, 13 out).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinema.apps.loading import pick_device
from kinema.errors import KinemaError
from kinema.flops import FlopCounter
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.tokenizers.registry import PRESETS, make_tokenizer
from kinema.training.config import parse_shape
from kinema.weights import EMBEDDED

diffusers: Any = import_module("diffusers")

PEERS: dict[str, Callable[[], Any]] = {
    "AutoencoderKLWan": diffusers.AutoencoderKLWan,
    "AutoencoderKLCosmos": diffusers.AutoencoderKLCosmos,
    "AutoencoderKLCosmos-4x8x8": lambda: diffusers.AutoencoderKLCosmos(temporal_compression_ratio=4),
    "AutoencoderKLLTXVideo": diffusers.AutoencoderKLLTXVideo,
    "AutoencoderVidTok": diffusers.AutoencoderVidTok,
}
KINEMA = ("kl-4x8x8-c16", "kl-8x8x8-c16")


class Kinema:
    """A tokenizer of kinema: the embedded weights where there are some, else a preset or any other by its name."""

    model: Any

    def __init__(self, name: str, device: str) -> None:
        if name in PRESETS and name not in EMBEDDED:
            model: Any = make_tokenizer(name)
            self.model = model.to(device).eval()
        else:
            self.model = load_tokenizer(name, device)

    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video).latents

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


class Peer:
    """A class of diffusers at its defaults."""

    def __init__(self, name: str, device: str) -> None:
        self.model: Any = PEERS[name]().to(device).eval()

    def encode(self, video: Tensor) -> Tensor:
        return self.model.encode(video).latent_dist.mode()

    def decode(self, latents: Tensor) -> Tensor:
        decoded = self.model.decode(latents)
        return decoded if isinstance(decoded, Tensor) else decoded.sample


def memory_mib(device: str, *, reset: bool = False) -> float:
    """Peak memory since the last reset, in MiB: of the device, or of this process."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated() / 2**20
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return peak
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is held now
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], Tensor], device: str) -> tuple[dict[str, float], Tensor]:
    """Seconds and peak memory of one call, and its result."""
    memory_mib(device, reset=True)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return {"seconds": time.perf_counter() - start, "peak_mib": memory_mib(device)}, result


def counted(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """GFLOP of one call, and its result."""
    with FlopCounter() as counter:
        result = work()
    return counter.get_total_flops() / 1e9, result


@torch.no_grad()
def work(name: str, device: str) -> None:
    """A process that answers `facts FxHxW` and `time FxHxW` on its input with a line of JSON, until it ends."""
    torch.manual_seed(0)
    side = Peer(name, device) if name in PEERS else Kinema(name, device)
    memory_mib(device, reset=True)
    base = memory_mib(device)
    print(json.dumps({"parameters": sum(p.numel() for p in side.model.parameters()), "base_mib": base}), flush=True)
    for line in sys.stdin:
        question, size = line.split()
        frames, height, width = map(int, size.split("x"))
        video = torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
        if question == "facts":
            encoding, latents = counted(lambda video=video: side.encode(video))
            decoding, decoded = counted(lambda latents=latents: side.decode(latents))
            answer: dict[str, Any] = {"encode_gflop": encoding, "decode_gflop": decoding}
            answer |= {"latents": list(latents.shape[1:]), "frames": decoded.shape[2]}
        else:
            encode, latents = timed(lambda video=video: side.encode(video), device)
            decode, _ = timed(lambda latents=latents: side.decode(latents), device)
            answer = {"encode": encode, "decode": decode}
        print(json.dumps(answer), flush=True)


class Worker:
    """The other end of `work`; its `error` is why it is not running."""

    def __init__(self, name: str, threads: int, device: str) -> None:
        command = [sys.executable, __file__, "--work", name, "--threads", str(threads), "--device", device]
        pipe = subprocess.PIPE
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close`); a pipe that nobody reads would stop a talkative peer
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.said, text=True)
        self.error: str | None = None
        self.about = self._answer()

    def ask(self, question: str) -> Any:
        if self.error is not None:
            return None
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.said.seek(0)
            said = self.said.read().strip().splitlines()
            self.error = said[-1] if said else f"ended with status {status}"
            return None
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.said.close()


def measure(workers: dict[str, Worker], size: str, repeats: int) -> dict[str, dict[str, Any]]:
    """Figures of every model at one size; the models take turns."""
    figures: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        facts = worker.ask(f"facts {size}")  # also the first call, whose time does not count
        figures[name] = {"not_run": worker.error} if facts is None else {**worker.about, **facts}
    turns: list[dict[str, Any]] = []
    for _ in range(repeats):
        turns.append({name: worker.ask(f"time {size}") for name, worker in workers.items()})
    for name, worker in workers.items():
        if worker.error is not None:
            figures[name] = {"not_run": worker.error}
            continue
        for direction in ("encode", "decode"):
            each = [turn[name][direction] for turn in turns]
            figures[name][f"{direction}_seconds"] = statistics.median(x["seconds"] for x in each)
            figures[name][f"{direction}_peak_mib"] = max(x["peak_mib"] for x in each)
        figures[name]["ratios"] = {
            other: statistics.median(_total(turn[name]) / _total(turn[other]) for turn in turns)
            for other in workers
            if other not in PEERS and workers[other].error is None
        }
    return figures


def _total(turn: dict[str, dict[str, float]]) -> float:
    return turn["encode"]["seconds"] + turn["decode"]["seconds"]


def print_table(size: str, figures: dict[str, dict[str, Any]]) -> None:
    """One Markdown table: a row for each model, a column of ratios for each of kinema's."""
    ours = [name for name in figures if name not in PEERS]
    print(f"\n{size}\n")
    heads = ["model", "parameters", "latents", "frames back", "GFLOP enc / dec", "seconds enc / dec"]
    heads += ["peak MiB enc / dec (loaded)", *(f"time against {name}" for name in ours)]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, row in figures.items():
        if "not_run" in row:
            print(f"| {name} | not run: {row['not_run']} |" + " |" * (len(heads) - 2))
            continue
        ratios = [f"{row['ratios'][other]:.2f}" if other in row["ratios"] else "" for other in ours]
        cells = [name, f"{row['parameters'] / 1e6:.1f} M", "x".join(map(str, row["latents"]))]
        cells += [f"{row['frames']} of {size.split('x')[0]}", f"{row['encode_gflop']:.0f} / {row['decode_gflop']:.0f}"]
        cells += [f"{row['encode_seconds']:.3f} / {row['decode_seconds']:.3f}"]
        cells += [f"{row['encode_peak_mib']:.0f} / {row['decode_peak_mib']:.0f} ({row['base_mib']:.0f})"]
        print("| " + " | ".join([*cells, *ratios]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*KINEMA, *PEERS]
    parser.add_argument("--models", nargs="+", default=names, help=f"of {', '.join(names)}; or any tokenizer's name")
    parser.add_argument("--sizes", nargs="+", default=["17x128x128", "17x256x256"], help="FRAMESxHEIGHTxWIDTH")
    parser.add_argument("--repeats", type=int, default=5, help="turns (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", help="cpu, cuda, ...; else CUDA where there is one")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for size in arguments.sizes:
        parse_shape(size)  # a mistake is named before the work
    torch.set_num_threads(arguments.threads)
    try:
        device = pick_device(arguments.device)
        if arguments.work:
            work(arguments.work, device)
            return
    except KinemaError as error:
        sys.exit(f"error: {error}")
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    load = os.getloadavg()[0]
    print(f"{where}, {arguments.threads} threads, torch {torch.__version__}, diffusers {diffusers.__version__}, "
          f"float32, load {load:.1f}, {arguments.repeats} turns")  # fmt: skip
    workers = {name: Worker(name, arguments.threads, device) for name in arguments.models}
    figures: dict[str, Any] = {}
    for size in arguments.sizes:
        figures[size] = measure(workers, size, arguments.repeats)
        print_table(size, figures[size])
    for worker in workers.values():
        worker.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
