"""Speed and memory of FVD: kinema's pass against the peers' way, and the Fréchet distance against scipy's `sqrtm`.

    python benchmarks/fvd_speed.py [--clips 64] [--blocks 8] [--dims 400 2048] [--repeats 3] [--json FILE]

The peers' way is what public FVD scripts do: the same network and weights with batch norms apart, one clip at a time,
contiguous float32, all features held. Both ways take turns on blocks of clips, so that other work on the machine slows
both; besides wall time there is the processor time of this process. Memory is measured in a process of its own for each
number of clips, with a small network in I3D's place: it is the bookkeeping that must not grow.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinema.eval.distributions import GaussianStatistics, frechet_distance
from kinema.eval.fvd import PROTOCOLS, FrechetVideoDistance, Resize, VideoFeatures
from kinema.eval.networks.i3d import I3D, MIXED, Mixed, load_i3d

MEMORY_CLIPS = (64, 256, 1024)


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


class Small(I3D):
    """A stand-in that costs nothing, with as many features."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("matrix", torch.randn(54, 400, generator=torch.Generator().manual_seed(0)))

    def forward(self, video: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(video, (2, 3, 3)).flatten(1) @ self.get_buffer("matrix")


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


def compare_passes(num_clips: int, blocks: int, batch_size: int) -> dict[str, Any]:
    """Both passes over the same clips, block by block in turns."""
    network = load_i3d()
    plain = PlainI3D(network)
    ours = VideoFeatures("styleganv", network=network, batch_size=batch_size)

    def peers_way(clips: list[tuple[str, Tensor]]) -> Tensor:
        return torch.cat([plain(ours.protocol.prepare(clip[None])) for _, clip in ours.windows(clips)])

    def our_way(clips: list[tuple[str, Tensor]]) -> Tensor:
        return torch.cat([features for _, features in ours.stream(ours.windows(clips))])

    first = list(make_clips(1))
    for warm_up in (peers_way, our_way):
        warm_up(first)
    size = num_clips // blocks
    rows: list[tuple[float, float, float, float]] = []
    held: list[tuple[Tensor, Tensor]] = []
    for block in range(blocks):
        clips = list(make_clips(size, block * size))
        wall_a, processor_a, features_a = timed(lambda clips=clips: peers_way(clips))
        wall_b, processor_b, features_b = timed(lambda clips=clips: our_way(clips))
        rows.append((wall_a, wall_b, processor_a, processor_b))
        held.append((features_a, features_b))
    peers, kinema = (torch.cat(part) for part in zip(*held, strict=True))
    median = [statistics.median(column) / size for column in zip(*rows, strict=True)]
    return {
        "clips": size * blocks,
        "peers_s_per_clip": median[0],
        "kinema_s_per_clip": median[1],
        "ratio_wall": statistics.median(a / b for a, b, _, _ in rows),
        "ratio_processor": statistics.median(a / b for _, _, a, b in rows),
        "difference_of_features": float((peers - kinema).abs().max() / peers.std()),
    }


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


def memory_of(num_clips: int) -> None:
    """Prints by how many MB the peak memory of this process is above that after the first 8 clips."""
    small = replace(PROTOCOLS["styleganv"], network=Resize(size=16, mode="stretch", antialias=False))
    features = VideoFeatures(small, network=Small())
    metric = FrechetVideoDistance(features=features)
    metric.update_windows(features.windows(make_clips(8)), real=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metric.update_windows(features.windows(make_clips(num_clips)), real=True)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"clips": num_clips, "peak_mb": after / 1024, "growth_mb": (after - before) / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="*", default=[64], help="numbers of clips for the feature pass")
    parser.add_argument("--blocks", type=int, default=8, help="turns that the two ways take")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--dims", type=int, nargs="*", default=[400, 2048], help="dimensions of the distance")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        memory_of(arguments.memory_of)
        return

    print(
        f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, list[dict[str, Any]]] = {"distance": [], "pass": [], "memory": []}
    for dim in arguments.dims:
        row = compare_distances(dim, arguments.repeats)
        figures["distance"].append(row)
        print(
            f"Fréchet distance, d = {dim}: sqrtm {row['sqrtm_s']:.3f} s, kinema {row['kinema_s']:.3f} s, "
            f"{row['ratio']:.1f}x, values differ by {row['relative_difference']:.0e}",
            flush=True,
        )
    for count in MEMORY_CLIPS:
        command = [sys.executable, __file__, "--memory-of", str(count)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures["memory"].append(row)
        print(
            f"memory, {count} clips: peak {row['peak_mb']:.0f} MB, {row['growth_mb']:+.0f} MB after the 8th", flush=True
        )
    for count in arguments.clips:
        row = compare_passes(count, arguments.blocks, arguments.batch_size)
        figures["pass"].append(row)
        print(
            f"feature pass, {row['clips']} clips: peers {1 / row['peers_s_per_clip']:.2f} videos/s, kinema "
            f"{1 / row['kinema_s_per_clip']:.2f} videos/s, {row['ratio_wall']:.2f}x ({row['ratio_processor']:.2f}x in "
            f"processor time), features differ by {row['difference_of_features']:.0e} of their spread",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
