"""Run in several processes: the transformer with context parallelism against itself in one process."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention import Band, Full, Pattern, PerHead, SlidingTile
from kinema.generation.conditioning import Conditioning, flow_inputs
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.context_parallel import context_group
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.config import DiffusionTrainingConfig, TrainingConfig, from_dict
from kinema.training.diffusion import train
from kinema.training.optimization import Learner, make_optimizer
from kinema.training.task import StepLoss

_WINDOWS = ((1, 1, 1), (3, 1, 1), (1, 1, 3), (3, 1, 3))


@dataclass(frozen=True)
class Case:
    """A forward and a backward pass.

    Attributes:
        grid: latents along t, h, w.
        attention: what tokens see.
        timestep: what has its own timestep: a clip, a (latent) step, or a token; image: the first latent step is given.
        settings: of the model.
    """

    grid: tuple[int, int, int] = (4, 4, 4)
    attention: str | Pattern | tuple[Pattern, ...] | None = None
    timestep: str = "clip"
    checkpointing: bool = False
    settings: tuple[tuple[str, Any], ...] = ()


CASES = {
    "dense": Case(),
    "dense, tokens no multiple": Case(grid=(3, 3, 5)),
    "dense, fewer tokens than processes": Case(grid=(1, 1, 3)),
    "dense, timesteps of latent steps": Case(timestep="step"),
    "dense, timesteps of latent steps, no multiple": Case(grid=(3, 3, 5), timestep="step"),
    "dense, timesteps of tokens, no multiple": Case(grid=(3, 3, 5), timestep="token"),
    "dense, image given": Case(grid=(3, 4, 4), timestep="image"),
    "sliding tiles": Case(attention="sliding-tile:tile=1x2x2,window=3x1x1", timestep="step"),
    "sliding tiles, empty slots": Case((3, 1, 32), "sliding-tile:tile=1x1x11,window=1x1x3", "step"),
    "dense layer, empty slots": Case((3, 1, 32), "sliding-tile:tile=1x1x11,window=1x1x1+full", "token"),
    "spatial and temporal": Case(grid=(3, 3, 4), attention="spatial+temporal", timestep="token"),
    "radial": Case(grid=(3, 3, 5), attention="radial:min_width=2,tile_size=4"),
    "tiles chosen by score": Case(attention="tile-top-k:k=2,tile=2x2x2", timestep="image"),
    "heads chosen by queries": Case(grid=(3, 3, 5), attention="spatial-temporal-heads:width=0.2,tile=1x4"),
    "window of each head": Case((4, 4, 6), SlidingTile((1, 4, 2), _WINDOWS), "step"),
    "pattern of each head": Case(
        grid=(3, 3, 5),
        attention=PerHead(
            (Band("spatial", 0.2, (1, 4)), Full(), Band("temporal", 0.2, (1, 4)), SlidingTile((1, 3, 3), (1, 1, 1)))
        ),
        timestep="step",
    ),
    "coarse branch": Case(grid=(4, 4, 5), settings=(("coarse_tile", (2, 2, 2)),), timestep="step"),
    "coarse branch beside tiles": Case(
        attention="tile-top-k:k=2,tile=2x2x2", settings=(("coarse_tile", (2, 2, 2)),), checkpointing=True
    ),
    "checkpointing": Case(grid=(3, 3, 5), timestep="step", checkpointing=True),
}


def make_model(case: Case) -> Any:
    """A small transformer whose every path is open."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"text_vocab_size": 11, "num_layers": 2, "num_heads": 4, **dict(case.settings)}
    model = VideoTransformer.from_preset("tiny", **settings)
    model.set_attention(case.attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if case.checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


def make_inputs(case: Case) -> tuple[list[Any], Tensor]:
    """Arguments of `forward` of two clips, the first of which takes gradients, and a target."""
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 4, *case.grid, generator=generator) for _ in range(2))
    text = torch.arange(10).view(2, 5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    if case.timestep == "image":
        given = Conditioning.first_steps(clean[:, :, :1], case.grid[0])
        inputs = flow_inputs(clean, noise, torch.tensor([0.3, 0.8]), given, (1, 1, 1))
        return [inputs.hidden_states.requires_grad_(), inputs.timestep, text, mask], inputs.target
    numbers = {"clip": (), "step": case.grid[:1], "token": (clean[0, 0].numel(),)}[case.timestep]
    return [clean.requires_grad_(), torch.rand(2, *numbers, generator=generator) * 1000, text, mask], noise


def gradients(network: Any, model: Any, case: Case) -> dict[str, Tensor]:
    """The output, and gradients of weights and of the input."""
    inputs, target = make_inputs(case)
    output = network(*inputs).sample
    (output - target).square().mean().backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters()}
    return own | {"input": inputs[0].grad, "output": output.detach()}


def compare(case: Case, accelerator: Accelerator, group: Any) -> dict[str, float]:
    """The largest errors of output and gradients, the latter over the largest gradient of the same weight."""
    model = make_model(case)
    expected = gradients(model, model, case)
    model = make_model(case)
    model.enable_context_parallel(group)
    found = gradients(accelerator.prepare(model), model, case)
    found["input"] = accelerator.reduce(found["input"], "mean")  # pyright: ignore[reportArgumentType]
    assert all(value.abs().max() > 0 for value in expected.values())
    errors = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    output = errors.pop("output")
    worst = max(errors, key=lambda name: errors[name] / float(expected[name].abs().max()))
    return {"output": output, "gradient": errors[worst] / float(expected[worst].abs().max())}


def _loss(inputs: tuple[Tensor, ...], target: Tensor, network: Any) -> StepLoss:
    return StepLoss((network(*inputs).sample - target).square().mean(), {})


def take_steps(optimizer: str, accelerator: Accelerator, sharing: int) -> dict[str, Tensor]:
    """Weights after some steps in which `sharing` processes have each clip; the others have other clips."""
    model = make_model(Case(attention="sliding-tile:tile=2x2x2,window=1x3x1"))
    if sharing > 1:
        model.enable_context_parallel(context_group(sharing))
    config = TrainingConfig(preset="tiny", optimizer=optimizer)  # pyright: ignore[reportArgumentType]
    learner = Learner(model, make_optimizer(model, config), config.learning_rate, 1.0, accelerator)
    rank, size = accelerator.process_index // sharing, accelerator.num_processes // sharing
    own = slice(rank * 4 // size, (rank + 1) * 4 // size)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        clean, target = (torch.randn(4, 4, 3, 4, 5, generator=generator) for _ in range(2))
        t, text = torch.rand(4, 3, generator=generator) * 1000, torch.randint(3, 10, (4, 5), generator=generator)
        learner.step(partial(_loss, (clean[own], t[own], text[own]), target[own]), 1.0)
    return {name: value.clone() for name, value in learner.unwrapped_model.state_dict().items()}


def refusals(group: Any, size: int) -> list[str]:
    """What is said of heads that cannot be shared, and of groups that the processes cannot form."""
    model = VideoTransformer.from_preset("tiny", text_vocab_size=11, dim=30, num_heads=5)
    said: list[str] = []
    for attempt in (lambda: model.enable_context_parallel(group), lambda: context_group(size + 1)):
        try:
            attempt()
        except KinemaError as error:
            said.append(str(error))
    return said


def generate(group: Any) -> float:
    """The largest difference of a clip from that of one process."""
    tokenizer = build_word_tokenizer(["red", "car"])
    transformer = make_model(Case(settings=(("text_vocab_size", len(tokenizer)),))).eval()
    vae = CausalVideoTokenizer(**TINY).eval()
    vae.set_latent_statistics(torch.zeros(4), torch.ones(4))
    pipeline = KinemaPipeline(transformer, vae, tokenizer, FlowMatchEulerDiscreteScheduler(), sample_size=(9, 24, 24))
    pipeline.set_progress_bar_config(disable=True)

    def clip() -> Tensor:
        generator = torch.Generator().manual_seed(0)
        output: Any = pipeline("red car", num_inference_steps=2, generator=generator, output_type="pt")
        return output.frames

    alone = clip()
    transformer.enable_context_parallel(group)
    return float((clip() - alone).abs().max())


def main(folder: Path, settings: str) -> None:
    """All cases, steps of training with each way of sharing clips, and a whole training with these settings."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    size, group = accelerator.num_processes, context_group(accelerator.num_processes)
    results = {
        "cases": {name: compare(case, accelerator, group) for name, case in CASES.items()},
        "refused": refusals(group, size),
        "generated": generate(group),
    }
    for optimizer in ("muon", "adamw"):
        for sharing in sorted({2, size}):
            weights = take_steps(optimizer, accelerator, sharing)
            if accelerator.is_main_process:
                save_file(weights, folder / f"{optimizer}-{sharing}.safetensors")
    if accelerator.is_main_process:
        (folder / "results.json").write_text(json.dumps(results))
    train(from_dict(DiffusionTrainingConfig, json.loads(settings)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
