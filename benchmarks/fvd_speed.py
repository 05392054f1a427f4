"""Speed and memory of FVD: kinema's pass against the peers' way, and the Fréchet distance against scipy's `sqrtm`.

    python benchmarks/fvd_speed.py [--clips 64 256 1024] [--block 16] [--dims 400 2048] [--repeats 3] [--json FILE]

The peers' way is what public FVD scripts do: the same network and weights with batch norms apart, one clip at a time,
contiguous float32, all features held. Each way runs in a process of its own, so that each has its own peak memory, and
they take turns on blocks of clips, so that other work on the machine slows both; besides wall time there is processor
time. Nothing is done twice: the figures for 64 clips are those of the first 64 of 1,024.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.eval.distributions import GaussianStatistics, frechet_distance
from kinema.eval.fvd import FrechetVideoDistance, VideoFeatures
from kinema.eval.networks.i3d import I3D, MIXED, Mixed, load_i3d


class PlainI3D(nn.Module):
    """The same network as a plain port has it: a padded convolution, a batch norm and a ReLU for every unit."""

    def __init__(self, network: I3D) -> None:
        super().__init__()
        self.network = network
        self.kernels = {name: value.contiguous() for name, value in network.state_dict().items()}

    def unit(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
        x = F.pad(x, _same(x, (weight.shape[2],) * 3, (stride,) * 3))
        zeros = torch.zeros_like(bias)
        return F.relu(F.batch_norm(F.conv3d(x, weight, stride=stride), zeros, zeros + 1 - 1e-3, bias=bias, eps=1e-3))

    def pool(self, x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(F.pad(x, _same(x, kernel, stride)), kernel, stride)

    def mixed(self, x: Tensor, name: str) -> Tensor:
        block = self.network.mixed[name]
        assert isinstance(block, Mixed)
        get = self.kernels
        weights = get[f"mixed.{name}.entry.weight"].split(block.split)
        biases = get[f"mixed.{name}.entry.bias"].split(block.split)
        outputs = [self.unit(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        last = self.pool(x, (3, 3, 3), (1, 1, 1))
        inputs = {1: outputs[1], 2: outputs[2], 3: last}
        branches = [
            self.unit(value, get[f"mixed.{name}.branch_{index}.weight"], get[f"mixed.{name}.branch_{index}.bias"])
            for index, value in inputs.items()
        ]
        return torch.cat([outputs[0], *branches], 1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        get = self.kernels
        x = self.unit(x, get["conv_1a.weight"], get["conv_1a.bias"], 2)
        x = self.pool(x, (1, 3, 3), (1, 2, 2))
        x = self.unit(x, get["conv_2b.weight"], get["conv_2b.bias"])
        x = self.pool(self.unit(x, get["conv_2c.weight"], get["conv_2c.bias"]), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "4b":
                x = self.pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = self.pool(x, (2, 2, 2), (2, 2, 2))
            x = self.mixed(x, name)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return F.conv3d(x, get["logits.weight"], get["logits.bias"]).mean((2, 3, 4))


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    pads: list[int] = []
    for size, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return pads


def make_clips(count: int, start: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Clips of 16 frames of 128×128: coarse noise that moves, made when it is asked for."""
    for index in range(start, start + count):
        generator = torch.Generator().manual_seed(index)
        coarse = torch.rand(1, 3, 8, 20, generator=generator)
        picture = F.interpolate(coarse, (128, 320), mode="bilinear")[0]
        frames = torch.stack([picture[:, :, 8 * t : 8 * t + 128] for t in range(16)])
        yield f"clip{index}", (frames * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, processor seconds of this process, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


class PeersWay:
    """One clip at a time through the plain network; all features are held."""

    def __init__(self, features: VideoFeatures) -> None:
        self.windows, self.prepare = features.windows, features.protocol.prepare
        self.network = PlainI3D(load_i3d())
        self.held: list[Tensor] = []

    def update(self, clips: Iterable[tuple[str, Tensor]]) -> None:
        self.held += [self.network(self.prepare(clip[None])) for _, clip in self.windows(clips)]

    def mean(self) -> Tensor:
        return torch.cat(self.held).double().mean(0)


class KinemasWay:
    """The metric: batches, channels-last, sums instead of features."""

    def __init__(self, features: VideoFeatures) -> None:
        self.windows = features.windows
        self.metric = FrechetVideoDistance(features=features)

    def update(self, clips: Iterable[tuple[str, Tensor]]) -> None:
        self.metric.update_windows(self.windows(clips), real=True)

    def mean(self) -> Tensor:
        return self.metric.real_sum.sum(0) / self.metric.real_count.sum()


def work(way: str, batch_size: int) -> None:
    """A process that takes `start count` from its input, and answers with seconds and peak memory, until `mean`."""
    features = VideoFeatures("styleganv", network=load_i3d(), batch_size=batch_size)
    side = PeersWay(features) if way == "peers" else KinemasWay(features)
    for line in sys.stdin:
        if line.strip() == "mean":
            print(json.dumps(side.mean().tolist()), flush=True)
            return
        start, count = map(int, line.split())
        clips = list(make_clips(count, start))
        wall, processor, _ = timed(lambda clips=clips: side.update(clips))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"wall": wall, "processor": processor, "peak_mb": peak}), flush=True)


class Worker:
    """The other end of `work`."""

    def __init__(self, way: str, batch_size: int, threads: int) -> None:
        command = [sys.executable, __file__, "--work", way, "--batch-size", str(batch_size), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare_passes(counts: list[int], block: int, batch_size: int, threads: int) -> Iterator[dict[str, Any]]:
    """Figures of both passes over the first 64, 256, ... clips, which they take in turns, block by block."""
    peers, kinema = (Worker(way, batch_size, threads) for way in ("peers", "kinema"))
    for worker in (peers, kinema):
        worker.ask(f"{max(counts)} {batch_size}")  # the first call sets things up; its time does not count
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    for count in sorted(counts):
        for start in range(len(rows) * block, count, block):
            rows.append((peers.ask(f"{start} {block}"), kinema.ask(f"{start} {block}")))
        yield {
            "clips": count,
            "peers_s_per_clip": statistics.median(a["wall"] for a, _ in rows) / block,
            "kinema_s_per_clip": statistics.median(b["wall"] for _, b in rows) / block,
            "ratio_wall": statistics.median(a["wall"] / b["wall"] for a, b in rows),
            "ratio_processor": statistics.median(a["processor"] / b["processor"] for a, b in rows),
            "peers_peak_mb": rows[-1][0]["peak_mb"],
            "kinema_peak_mb": rows[-1][1]["peak_mb"],
        }
    means = [torch.tensor(worker.ask("mean")) for worker in (peers, kinema)]
    difference = float((means[0] - means[1]).abs().max())
    # Both saw the same clips: if they saw the same features, they agree on the mean.
    if difference > 1e-4:
        raise SystemExit(f"the two ways disagree: the means of their features differ by {difference:.1e}")


def compare_distances(dim: int, repeats: int) -> dict[str, float]:
    """The Fréchet distance of 3·d features against the same through `scipy.linalg.sqrtm`."""
    import scipy.linalg

    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(3 * dim, dim, generator=generator, dtype=torch.float64) * scale for scale in (1.0, 1.5)]
    first, second = (GaussianStatistics.of(features) for features in sets)

    def reference() -> float:
        a, b = (side.covariance().numpy() for side in (first, second))
        root = scipy.linalg.sqrtm(a @ b)
        mean = (first.mean - second.mean).square().sum()
        return float(mean + np.trace(a) + np.trace(b) - 2 * np.trace(root).real)

    times: list[tuple[float, float]] = []
    values = (0.0, 0.0)
    for _ in range(repeats):
        theirs, _, expected = timed(reference)
        mine, _, value = timed(lambda: frechet_distance(first, second))
        times.append((theirs, mine))
        values = (expected, value)
    return {
        "dim": dim,
        "sqrtm_s": statistics.median(a for a, _ in times),
        "kinema_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "relative_difference": abs(values[1] - values[0]) / values[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--clips", type=int, nargs="*", default=[64, 256, 1024], help="numbers of clips for the feature pass"
    )
    parser.add_argument("--block", type=int, default=16, help="clips of a turn")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dims", type=int, nargs="*", default=[400, 2048], help="dimensions of the distance")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--work", choices=("peers", "kinema"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        work(arguments.work, arguments.batch_size)
        return
    if any(count % arguments.block for count in arguments.clips):
        parser.error(f"--clips (={arguments.clips}) must be multiples of --block (={arguments.block})")

    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, list[dict[str, Any]]] = {"distance": [], "pass": []}
    for dim in arguments.dims:
        row = compare_distances(dim, arguments.repeats)
        figures["distance"].append(row)
        print(
            f"Fréchet distance, d = {dim}: sqrtm {row['sqrtm_s']:.3f} s, kinema {row['kinema_s']:.3f} s, "
            f"{row['ratio']:.1f}x, values differ by {row['relative_difference']:.0e}",
            flush=True,
        )
    if arguments.clips:
        for row in compare_passes(arguments.clips, arguments.block, arguments.batch_size, arguments.threads):
            figures["pass"].append(row)
            print(
                f"feature pass, {row['clips']} clips: peers {1 / row['peers_s_per_clip']:.2f} videos/s, "
                f"{row['peers_peak_mb']:.0f} MB; kinema {1 / row['kinema_s_per_clip']:.2f} videos/s, "
                f"{row['kinema_peak_mb']:.0f} MB; {row['ratio_wall']:.2f}x ({row['ratio_processor']:.2f}x in processor "
                "time)",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
