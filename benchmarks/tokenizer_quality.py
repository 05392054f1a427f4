"""Quality of architectures at equal latent shape, trained from scratch on the same clips with the mean absolute error.

    python benchmarks/tokenizer_quality.py CLIPS [--peers wan-16 cosmos-half] [--minutes 27] [--output runs/quality]

Each peer trains for `--minutes` of processor time (this machine may do other things) on 17×64×64 crops; then kinema's
`kl-4x8x8-c16` trains twice: on as many samples as the better peer saw, and for as long. The batches are the same for
all, and so are the averaging of weights and the schedule (warm-up, then a linear fall over the last part). Peers train
with AdamW, kinema with its own recipe (Muon, and a linear start from the first batches of the same training). Nothing
is sampled: the posterior's mode is decoded. PSNR and SSIM are of held-out sources; the KLT is the best linear code of
this size. What `--output` holds is not repeated, and must be of the same settings.

The peers' learning rate: over 150 steps on 5×32×32 crops AutoencoderKLWan at 1e-4 gets to a mean absolute error of
0.28, at 3e-4 and 1e-3 it stays near that of grey (0.40).
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from kinema.errors import KinemaError
from kinema.eval.frames.psnr import clip_psnr
from kinema.eval.frames.ssim import ssim
from kinema.files import atomic_path
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.registry import make_tokenizer
from kinema.training.config import VALIDATION_PREFIXES, TokenizerTrainingConfig
from kinema.training.data.batches import TokenizerBatches
from kinema.training.ema import EMA
from kinema.training.muon import Muon
from kinema.training.optimization import make_optimizer
from kinema.training.schedule import learning_rate_factor

KINEMA = "kl-4x8x8-c16"
KLT_BATCHES = 64


def make_peer(name: str) -> nn.Module:
    """A peer's architecture with 16 channels at 4×8×8; the number or word in its name says its width."""
    from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    kind, width = name.split("-")
    channels: dict[str, Any] = {}
    if width == "half":
        channels["encoder_block_out_channels"] = (64, 128, 256, 256)
        channels["decode_block_out_channels"] = (128, 256, 256, 256)
    model: Any = (
        AutoencoderKLWan(base_dim=int(width))
        if kind == "wan"
        else AutoencoderKLCosmos(temporal_compression_ratio=4, **channels)
    )
    with torch.no_grad():  # starts near grey: a decoder's own start makes pixels far outside [-1, 1]
        [m for m in model.decoder.conv_out.modules() if isinstance(m, nn.Conv3d)][-1].weight.mul_(0.1)
    return model


class Unclamped(TorchFunctionMode):
    """Wan's decoder ends in a clamp, which gives no gradient to a pixel outside [-1, 1]: training goes without it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.clamp, Tensor.clamp) else func(*args, **(kwargs or {}))


def reconstruct(model: Any, video: Tensor) -> Tensor:
    """Through any of the models, without sampling."""
    if isinstance(model, CausalVideoTokenizer):
        return model(video, sample_posterior=False)[0]
    return model.decode(model.encode(video).latent_dist.mode()).sample


@torch.no_grad()
def evaluate(model: Any, clips: dict[str, Tensor]) -> dict[str, float]:
    """PSNR and SSIM, means over the held-out sources."""
    psnr, similarity = [], []
    for source in clips.values():
        got = torch.cat([reconstruct(model, clip[None]).clamp(-1, 1) for clip in source])
        psnr.append(clip_psnr(source, got).mean())
        similarity.append(ssim(source, got).mean())
    return {"psnr": float(torch.stack(psnr).mean()), "ssim": float(torch.stack(similarity).mean())}


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    learning_rate: float,
    batches: Callable[[int], Tensor],
    part_done: Callable[[int, float], float],
    label: str,
) -> tuple[Any, dict[str, float]]:
    """Trains until `part_done(step, processor seconds)` is 1; gives the averaged model and what was spent."""
    ema, step, spent, num_clips = EMA(model, 0.99), 0, 0.0, 0
    model.train()
    with tqdm(total=100, desc=label, mininterval=10) as bar:
        while (done := part_done(step, spent)) < 1:
            batch = batches(step)
            started = time.process_time()
            factor = learning_rate_factor(step, done, warmup_steps=30, schedule="trapezoid", decay_fraction=0.4)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * factor
            with Unclamped():
                reconstruction = reconstruct(model, batch)
            loss = (reconstruction - batch).abs().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update(model)
            step, spent = step + 1, spent + time.process_time() - started
            num_clips += len(batch)
            bar.n = int(100 * done)
            bar.set_postfix_str(f"step {step}, L1 {loss.item():.4f}")
    return ema.model.eval(), {"steps": step, "samples": num_clips, "processor_s": spent}


class Benchmark:
    """Runs that are kept in a folder, so that the table can be made in several goes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output: Path = arguments.output
        self.output.mkdir(parents=True, exist_ok=True)
        config = TokenizerTrainingConfig(
            preset=KINEMA,
            data=(str(arguments.clips),),
            validation=tuple(arguments.hold_out),
            cache_dir=arguments.output / "cache",
            cache_short_side=144,
            batch_size=arguments.batch_size,
            validation_shape="17x64x64",
            learning_rate=2e-3,
            betas=(0.9, 0.98),
        )
        self.config, self.batches = config, TokenizerBatches(config)
        self.held_out = self.batches.validation_clips()
        names = ("minutes", "batch_size", "peer_learning_rate", "hold_out", "threads")
        self.settings = {"clips": arguments.clips.name} | {name: getattr(arguments, name) for name in names}

    def kept(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The figures of a run: from the folder, or made now."""
        path = self.output / f"{name}.json"
        if not path.is_file():
            torch.manual_seed(0)
            figures = {"settings": self.settings} | run()
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(figures, indent=2) + "\n")
        figures = json.loads(path.read_text())
        if figures.pop("settings", None) != self.settings:
            raise KinemaError(f"`--output` (={self.output}) must be new: {path.name} is of other settings")
        return figures

    def klt(self) -> dict[str, Any]:
        model = make_tokenizer(KINEMA).eval()
        model.init_linear(self.batches(step) for step in range(KLT_BATCHES))
        return evaluate(model, self.held_out)

    def peer(self, name: str) -> dict[str, Any]:
        model, rate, seconds = make_peer(name), self.arguments.peer_learning_rate, 60 * self.arguments.minutes
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        parameters = sum(p.numel() for p in model.parameters())
        model, spent = train(model, optimizer, rate, self.batches, lambda _, used: used / seconds, name)
        return {"parameters": parameters, **spent, **evaluate(model, self.held_out)}

    def kinema(self, label: str, part_done: Callable[[int, float], float]) -> dict[str, Any]:
        model = make_tokenizer(KINEMA)
        started = time.process_time()
        model.init_linear(self.batches(step) for step in range(KLT_BATCHES))
        model.freeze_linear()
        start = time.process_time() - started  # the linear start counts
        optimizer = make_optimizer(model, self.config)
        assert isinstance(optimizer, Muon)
        parameters = sum(p.numel() for p in model.parameters())
        rate = self.config.learning_rate
        averaged, spent = train(
            model, optimizer, rate, self.batches, lambda step, used: part_done(step, used + start), label
        )
        spent["processor_s"] += start
        return {"parameters": parameters, **spent, **evaluate(averaged, self.held_out)}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| model | parameters | steps | samples | processor minutes | PSNR | SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "steps" in row:
            spent = (
                f"{row['parameters'] / 1e6:.1f} M | {row['steps']} | {row['samples']} | {row['processor_s'] / 60:.1f}"
            )
        else:
            spent = " | | | "
        lines.append(f"| {name} | {spent} | {row['psnr']:.2f} | {row['ssim']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of videos")
    parser.add_argument(
        "--peers", nargs="*", default=["wan-16", "cosmos-half"], help="wan-DIM, cosmos-half, cosmos-full"
    )
    parser.add_argument("--minutes", type=float, default=27, help="processor time of each peer's training")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--peer-learning-rate", type=float, default=1e-4)
    parser.add_argument("--hold-out", nargs="*", default=list(VALIDATION_PREFIXES), help="beginnings of file names")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    benchmark = Benchmark(arguments)
    rows = {"KLT": benchmark.kept("klt", benchmark.klt)}
    for name in arguments.peers:
        rows[name] = benchmark.kept(name, lambda name=name: benchmark.peer(name))
    best = max(arguments.peers, key=lambda name: rows[name]["psnr"])
    samples, seconds = rows[best]["samples"], rows[best]["processor_s"]
    steps = samples // arguments.batch_size
    rows["kinema, equal samples"] = benchmark.kept(
        "kinema-samples", lambda: benchmark.kinema("kinema, samples", lambda step, _: step / steps)
    )
    rows["kinema, equal time"] = benchmark.kept(
        "kinema-time", lambda: benchmark.kinema("kinema, time", lambda _, used: used / seconds)
    )
    print(f"{platform.machine()}, {arguments.threads} of {os.cpu_count()} threads, torch {torch.__version__}\n")
    print(table(rows))
    for name in ("kinema, equal samples", "kinema, equal time"):
        print(f"\n{name}: {rows[name]['psnr'] - rows[best]['psnr']:+.2f} dB over {best}")


if __name__ == "__main__":
    main()
