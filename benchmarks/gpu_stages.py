"""What `gpu_check.py` checks and measures, a function a stage."""

import dataclasses
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kinema.errors import KinemaError
from kinema.generation.attention import Grid, parse_pattern, sparse_attention
from kinema.generation.attention.backends import BACKENDS, BackendFailed

Numbers = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the checks are.

    Attributes:
        grid: of the correctness checks.
        clip: frames, height and width of clips that a tokenizer codes.
        training: preset, batch size, clip, clips and steps of the training's speed.
        preset: transformer of the utilisation check, with its latents (t, h, w) and clips a step.
        sparse: grid, tile, heads and width of heads of the efficiency.
        generated: clips at once.
    """

    grid: Grid
    clip: tuple[int, int, int]
    training: tuple[str, int, str, int, int]
    preset: tuple[str, tuple[int, int, int], int]
    sparse: tuple[Grid, tuple[int, int, int], int, int]
    generated: int


SIZES = {
    "small": Sizes(
        grid=Grid(2, 8, 8),
        clip=(5, 32, 32),
        training=("tiny", 2, "5x32x32", 8, 2),
        preset=("tiny", (2, 4, 4), 1),
        sparse=(Grid(4, 8, 8), (2, 4, 4), 2, 16),
        generated=1,
    ),
    "full": Sizes(
        grid=Grid(4, 24, 24),
        clip=(17, 128, 128),
        training=("toybox-s", 96, "33x128x128", 2048, 30),
        preset=("large", (16, 64, 64), 1),
        sparse=(Grid(30, 48, 80), (6, 8, 8), 24, 128),
        generated=8,
    ),
}
"""By the name of `--size`."""

_DEFAULT = "torch's choice"
_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
"""Largest difference from float64 over the largest number, of results and gradients."""


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it, float32 products are float32's own and not TF32."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def attention(device: torch.device, sizes: Sizes) -> Numbers:
    """Every backend, forward and backward, against float64 on the same device."""
    patterns = ("full", "spatial", "temporal", "radial", "sliding-tile:3x3x3,tile=2x8x8", "tile-top-k:k=2,tile=2x8x8")
    rows: list[Numbers] = []
    with exact_float32():
        for text in patterns:
            for extra in (0, 77):
                for dtype in (torch.float32, torch.bfloat16):
                    rows += list(_backends(text, extra, dtype, device, sizes.grid))
    wrong = [row for row in rows if not row["right"]]
    checked = Counter(row["backend"] for row in rows)
    idle = [name for name in BACKENDS if not checked[name] and not (name == "flex" and device.type == "cpu")]
    return {"ok": not wrong and not idle, "checked": len(rows), "wrong": wrong, "never_ran": idle}


def _backends(text: str, extra: int, dtype: torch.dtype, device: torch.device, grid: Grid) -> Iterator[Numbers]:
    pattern = parse_pattern(text)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, grid.num_tokens + extra, 64)
    inputs = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3)]
    weight = torch.randn(shape, generator=generator).to(device)

    def run(backend: str, given: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in given]
        out = sparse_attention(*leaves, pattern=pattern, grid=grid, num_extra_tokens=extra, backend=backend)
        return [out.detach(), *torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves)]

    wanted = run("masked", [x.double() for x in inputs])
    for name in BACKENDS:
        what = f"{text}, {extra} extra tokens, {str(dtype).removeprefix('torch.')}"
        row: Numbers = {"backend": name, "what": what}
        try:
            found = run(name, inputs)
        except BackendFailed as error:
            yield row | {"right": False, "why": str(error)[:200]}
            continue
        except KinemaError:
            continue  # the backend says itself that it cannot
        differences = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
        yield row | {"right": max(differences) <= _LIMITS[dtype], "differences": differences}


def kernels(device: torch.device, sizes: Sizes) -> Numbers:
    """Each kernel of scaled_dot_product_attention at odd lengths and with strided keys, against float64.

    With 77 extra tokens, the gradients of part-by-part attention in bfloat16 once were wrong on CUDA.
    """
    generator = torch.Generator().manual_seed(0)
    rows: list[Numbers] = []
    own, extra = sizes.grid.h * sizes.grid.w, 77
    query, key, text, weight = (
        torch.randn(8, 4, n, 64, generator=generator).to(device, torch.bfloat16) for n in (own, own, extra, own)
    )
    for name in (_DEFAULT, "FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
        for expanded in (False, True):

            def run(dtype: torch.dtype, backend: SDPBackend | None, expanded: bool = expanded) -> list[Tensor]:
                leaves = [x.to(dtype).clone().requires_grad_() for x in (query, key, text)]
                behind = leaves[2][:1].expand(8, -1, -1, -1) if expanded else leaves[2]
                keys = torch.cat((leaves[1], behind), dim=2)
                with nullcontext() if backend is None else sdpa_kernel(backend):
                    out = scaled_dot_product_attention(leaves[0], keys, keys)
                return [out.detach(), *torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)]

            what = f"{name}, {'one text for all parts' if expanded else 'a text for each part'}"
            try:
                found = run(torch.bfloat16, None if name == _DEFAULT else getattr(SDPBackend, name))
            except RuntimeError as error:
                rows.append({"what": what, "right": True, "why": f"does not run: {str(error)[:120]}"})
                continue
            wanted = run(torch.float64, SDPBackend.MATH)
            differences = [difference(a, b) for a, b in zip(found, wanted, strict=True)]
            rows.append({"what": what, "right": max(differences) <= 5e-2, "differences": differences})
    # A kernel that torch does not choose by itself is told where it is wrong, and is no error.
    chosen = [row for row in rows if row["what"].startswith(_DEFAULT)]
    wrong = [row for row in rows if not row["right"]]
    return {"ok": all(row["right"] and "why" not in row for row in chosen), "wrong": wrong, "rows": rows}


def tokenizers(device: torch.device, sizes: Sizes) -> Numbers:
    """The embedded tokenizer on the device and on the CPU, in float32, and in bfloat16 on the device."""
    from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
    from kinema.weights import embedded_dir

    cpu: Any = CausalVideoTokenizer.from_pretrained(embedded_dir("kl-4x8x8-c16")).eval()
    there: Any = CausalVideoTokenizer.from_pretrained(embedded_dir("kl-4x8x8-c16")).to(device).eval()
    video = _moving(sizes.clip)
    with torch.no_grad(), exact_float32():
        wanted = cpu.encode(video).latents
        latents = there.encode(video.to(device)).latents
        again = there.decode(latents, *sizes.clip).sample.cpu()
        differences = {
            "latents": difference(latents.cpu(), wanted),
            "pixels": float((again - cpu.decode(wanted, *sizes.clip).sample).abs().max()),
        }
        with torch.autocast(device.type, dtype=torch.bfloat16):
            rounded = there.reconstruct(video.to(device)).float().cpu()
        seconds = timed(lambda: there.reconstruct(video.to(device)), device)
    error = float((rounded - again).square().mean())
    ok = differences["latents"] <= 1e-3 and differences["pixels"] <= 1e-2 and error <= 2.5e-3
    return {"ok": ok, **differences, "bf16_mse": error, "frames_per_second": sizes.clip[0] / seconds}


def _moving(size: tuple[int, int, int]) -> Tensor:
    """Waves that move, (1, 3, t, h, w) in [-1, 1]."""
    t, h, w = (torch.arange(n, dtype=torch.float32) for n in size)
    phase = t[:, None, None] * 0.4 + h[None, :, None] * 0.2 + w[None, None, :] * 0.1
    return torch.stack([torch.sin(phase + shift) for shift in (0.0, 2.0, 4.0)])[None]


def training(device: torch.device, sizes: Sizes) -> Numbers:
    """The training loop against a bare one, and the utilisation of a large model."""
    throughput: Any = import_module("training_throughput")
    from kinema.training.presets import DIFFUSION_PRESETS
    from kinema.weights import embedded_dir

    preset, batch_size, shape, num_clips, steps = sizes.training
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            DIFFUSION_PRESETS[preset], data=("toybox",), tokenizer=embedded_dir("toybox") / "vae",
            output=Path(folder), shape=shape, batch_size=batch_size, num_clips=num_clips, cpu=device.type == "cpu",
        )  # fmt: skip
        numbers = throughput.measure(config, steps, turns=2)
    peak = throughput.peak_of(device)
    numbers["mfu"] = throughput.mfu_of(numbers, peak)
    numbers |= utilisation(device, sizes, peak)
    return {"ok": all(value is None or math.isfinite(value) for value in numbers.values())} | numbers


def utilisation(device: torch.device, sizes: Sizes, peak: float | None) -> Numbers:
    """TFLOP/s of forward and backward of a preset on random latents, blocks compiled where they can be."""
    from kinema.flops import FlopCounter
    from kinema.generation.transformer.model import VideoTransformer
    from kinema.training.compilation import compile_blocks

    name, latents, clips = sizes.preset
    model: Any = VideoTransformer.from_preset(name, text_dim=64)
    model.to(device).train()
    x = torch.randn(clips, model.config.in_channels, *latents, device=device)
    text = torch.randn(clips, 16, 64, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            model(x, torch.full((clips,), 500.0, device=device), text).sample.square().mean().backward()
        model.zero_grad(set_to_none=True)

    with FlopCounter() as counter:
        step()
    compiled = compile_blocks(model, "auto", device)
    seconds = timed(step, device)
    tflops = counter.get_total_flops() / 1e12 / seconds
    t, h, w = model.token_grid(latents)
    mfu = None if peak is None else tflops / peak
    found = {"tokens": clips * t * h * w, "tflops": tflops, "mfu": mfu, "compiled": compiled}
    return {f"{name}_{key}": value for key, value in found.items()}


def sparse(device: torch.device, sizes: Sizes) -> Numbers:
    """Efficiency of sparse attention over dense, forward and backward: (dense time · density) / sparse time."""
    grid, tile, heads, width = sizes.sparse
    inputs = [torch.randn(1, heads, grid.num_tokens, width, device=device, dtype=torch.bfloat16) for _ in range(3)]
    rows: list[Numbers] = []
    for backward in (False, True):
        dense_seconds = timed(partial(_attend, scaled_dot_product_attention, inputs, backward), device)
        for window in ("5x5x5", "3x3x3", "3x3x1", "1x3x1"):
            pattern = parse_pattern(f"sliding-tile:{window},tile={'x'.join(map(str, tile))}")
            order = pattern.order(grid)
            density = pattern.plan(grid, heads, 0).tile_density()
            row: Numbers = {"window": window, "density": density, "backward": backward}
            for name, given in (("tile", [order.arrange(x, 2) for x in inputs]), ("raster", inputs)):
                attention = partial(sparse_attention, pattern=pattern, grid=grid, order=name)
                row[name] = dense_seconds * density / timed(partial(_attend, attention, given, backward), device)
            rows.append(row)
    # Gathering takes its time; an efficiency above dense attention's own means that the time of one of them is wrong.
    return {"ok": all(0 < row[order] < 1.5 for row in rows for order in ("tile", "raster")), "rows": rows}


def _attend(attention: Callable[..., Tensor], inputs: Any, backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            attention(*inputs)
        return
    leaves = [x.detach().requires_grad_() for x in inputs]
    attention(*leaves).sum().backward()


def generation(device: torch.device, sizes: Sizes) -> Numbers:
    """The embedded pipeline on the device: its latents against the CPU's, and seconds a clip."""
    from kinema.generation.pipeline import KinemaPipeline
    from kinema.weights import embedded_dir

    prompts = ["a red car drives to the right in a snowy field"]

    def latents(where: torch.device) -> Tensor:
        pipeline: Any = KinemaPipeline.from_pretrained(embedded_dir("toybox")).to(where)
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        return pipeline(prompts, num_inference_steps=2, generator=noise, output_type="latent").frames.float().cpu()

    with exact_float32():
        wanted, there = latents(torch.device("cpu")), latents(device)
    pipeline: Any = KinemaPipeline.from_pretrained(embedded_dir("toybox")).to(device)
    pipeline.set_progress_bar_config(disable=True)
    steps = pipeline.config["sample_steps"] if device.type != "cpu" else 2
    seconds = timed(lambda: pipeline(prompts * sizes.generated, num_inference_steps=steps), device, repeats=2)
    off = difference(there, wanted)
    found = {"difference": off, "seconds_per_clip": seconds / sizes.generated, "steps": steps}
    return {"ok": off <= 1e-2} | found


def fvd(device: torch.device, sizes: Sizes) -> Numbers:
    """FVD's features on the device and on the CPU, of an I3D with random weights."""
    from kinema.eval.networks.i3d import I3D

    torch.manual_seed(0)
    network = I3D().eval()
    clips = _moving((16, 224, 224)).repeat(2, 1, 1, 1, 1)
    with torch.no_grad(), exact_float32():
        wanted = network(clips)
        found = network.to(device)(clips.to(device)).cpu()
        seconds = timed(lambda: network(clips.to(device)), device)
    off = difference(found, wanted)
    return {"ok": off <= 1e-3, "difference": off, "clips_per_second": len(clips) / seconds}


def timed(call: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of a call, after two to warm up (compile, choose kernels)."""
    times: list[float] = []
    for turn in range(repeats + 2):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


STAGES: dict[str, tuple[Callable[[torch.device, Sizes], Numbers], float]] = {
    "attention": (attention, 60),
    "kernels": (kernels, 15),
    "tokenizers": (tokenizers, 20),
    "training": (training, 75),
    "sparse": (sparse, 45),
    "generation": (generation, 25),
    "fvd": (fvd, 15),
}
"""Stages by name, with the seconds that each may take on a GPU."""
