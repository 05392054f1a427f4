"""Training in two processes is training in one with the doubled batch."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from kinema.training.config import DiffusionTrainingConfig, to_dict
from kinema.training.diffusion import train
from processes import launch

STEPS = """
import json
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from kinema.generation.transformer.model import VideoTransformer
from kinema.training.config import TrainingConfig
from kinema.training.ema import EMA
from kinema.training.checkpoint import optimizer_tensors
from kinema.training.optimization import Learner, make_optimizer
from kinema.training.sharding import gather, local, shard
from kinema.training.task import StepLoss

torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)


def steps(optimizer, splits, out):
    torch.manual_seed(0)
    model = VideoTransformer.from_preset("tiny", text_vocab_size=10)
    with torch.no_grad():  # every branch starts at nothing: gradients would vanish
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    ema = EMA(model, 0.9)
    config = TrainingConfig(preset="tiny", optimizer=optimizer)
    rank, size = accelerator.process_index, accelerator.num_processes
    if splits:
        mesh = init_device_mesh("cpu", (size,))
        ema.shard(mesh, keep_whole=rank == 0)
        shard(model, mesh)
        for held in (model, ema.model):
            share = sum(local(p).numel() for p in held.parameters()) / sum(p.numel() for p in held.parameters())
            assert abs(share - 1 / size) < 0.02
    learner = Learner(
        model, make_optimizer(model, config), config.learning_rate, 1.0, accelerator, prepares_model=not splits
    )
    for step in range(4):
        whole = torch.Generator().manual_seed(step)
        clean, target = (torch.randn(4, 4, 2, 4, 4, generator=whole) for _ in range(2))
        t, text = torch.rand(4, generator=whole) * 1000, torch.randint(3, 10, (4, 5), generator=whole)
        mine = slice(rank * 4 // size, (rank + 1) * 4 // size)

        def loss(network):
            out = network(clean[mine], t[mine], text[mine]).sample
            spoiled = step == 2 and rank == size - 1
            total = (out - target[mine]).square().mean()
            return StepLoss(total * torch.nan if spoiled else total, {})

        _, taken, _ = learner.step(loss, 1.0)
        assert bool(taken) == (step != 2), "a step that is not finite in one process is left out in all"
        ema.update(learner.unwrapped_model, taken)
    with ema.whole() as averaged:
        assert (averaged is None) == (splits and rank > 0)
        if rank == 0:
            save_file({k: v.contiguous() for k, v in averaged.state_dict().items()}, out + ".ema")
    states = {"model": learner.unwrapped_model.state_dict(), "optimizer": optimizer_tensors(learner.optimizer)}
    for kind, tensors in states.items():
        tensors = gather(tensors, keep=rank == 0)
        if rank == 0:
            save_file(tensors, out + "." + kind)


for case in sys.argv[2:]:
    optimizer, parallel = case.split("-")
    steps(optimizer, parallel == "fsdp", str(Path(sys.argv[1]) / case))
"""

TRAINING = """
import json
import sys
import torch
from kinema.training.config import DiffusionTrainingConfig, from_dict
from kinema.training.diffusion import train

torch.set_num_threads(1)
train(from_dict(DiffusionTrainingConfig, json.loads(sys.argv[1])))
"""

SLOW_EVALUATION = """
import time
from datetime import timedelta
from torch import distributed
from kinema.training.diffusion import DiffusionTask

DiffusionTask.evaluate = lambda self, model: time.sleep(5) or {}
distributed.init_process_group("gloo", timeout=timedelta(seconds=3))
"""

CLOCK = """
import json
import sys
import time
from pathlib import Path
import torch
from accelerate import Accelerator
from kinema.training.checkpoint import TrainingState
from kinema.training.config import TrainingConfig
from kinema.training.clock import Clock, progress

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
monotonic = time.monotonic
time.monotonic = lambda: monotonic() * (1 + 5 * rank)  # the second process' clock runs six times as fast
config = TrainingConfig(preset="x", num_steps=40, max_minutes=1.0, schedule_on="minutes")
state = TrainingState()
clock = Clock(accelerator, config, state)
seen = []
for step in range(40):
    ended, stopped = clock.look(stop_asked=rank == 1 and step >= 20)
    seen.append([progress(state, config), ended, stopped])
    state.step += 1
    clock.advance()
    time.sleep(0.005)
Path(sys.argv[1] + str(rank)).write_text(json.dumps(seen))
"""


CASES = [f"{optimizer}-{parallel}" for optimizer in ("muon", "adamw") for parallel in ("ddp", "fsdp")]


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """Folders of weights, averages and optimizer states after the same steps in one process and in two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    launch(STEPS, 1, str(one), *CASES[::2], folder=one)
    launch(STEPS, 2, str(two), *CASES, folder=two)
    return one, two


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_with_the_doubled_batch(stepped, case):
    alone = case.replace("fsdp", "ddp")
    for kind in ("model", "ema", "optimizer"):
        one, two = load_file(stepped[0] / f"{alone}.{kind}"), load_file(stepped[1] / f"{case}.{kind}")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-5, msg=f"{kind} {name}")


def test_a_training_with_split_weights_goes_on(tmp_path, tiny_tokenizer_folder):
    whole = DiffusionTrainingConfig(
        preset="tiny", data=("toybox",), tokenizer=tiny_tokenizer_folder, cache_dir=tmp_path / "cache", shape="5x16x16",
        num_clips=8, batch_size=2, num_steps=6, warmup_steps=2, eval_every=4, sample_every=4, save_every=4, log_every=2,
        validation_clips=4, num_samples=1, sample_steps=2, schedule="constant", fsdp=True, cpu=True,
        output=tmp_path / "whole",
    )  # fmt: skip
    stopped = replace(whole, output=tmp_path / "stopped")
    runs = (whole, replace(stopped, num_steps=4), replace(stopped, resume=True))
    for run in runs:
        launch(TRAINING, 2, json.dumps(to_dict(run)), folder=tmp_path)
    one, two = (tmp_path / name / "checkpoints/step-00000006" for name in ("whole", "stopped"))
    for kind in ("model", "ema", "optimizer"):
        tensors, others = (load_file(folder / f"{kind}.safetensors") for folder in (one, two))
        assert tensors.keys() == others.keys()
        for name, value in tensors.items():
            assert torch.equal(value, others[name]), f"{kind} {name}"
    scores = [json.loads((folder / "state.json").read_text())["best_score"] for folder in (one, two)]
    assert scores[0] == scores[1] is not None
    assert (tmp_path / "whole/model/model_index.json").is_file()
    # One process goes on from what two had split.
    train(replace(stopped, resume=True, fsdp=False, num_steps=7))
    assert (tmp_path / "stopped/checkpoints/step-00000007").is_dir()


def test_an_evaluation_may_take_longer_than_the_time_out_of_the_processes(tmp_path, tiny_tokenizer_folder):
    config = DiffusionTrainingConfig(
        preset="tiny", data=("toybox",), tokenizer=tiny_tokenizer_folder, cache_dir=tmp_path / "cache", shape="5x16x16",
        num_clips=8, batch_size=2, num_steps=3, eval_every=1, validation_clips=0, num_samples=0, cpu=True,
        output=tmp_path / "run",
    )  # fmt: skip
    launch(SLOW_EVALUATION + TRAINING, 2, json.dumps(to_dict(config)), folder=tmp_path)
    assert (tmp_path / "run/model/model_index.json").is_file()


def test_the_first_process_clock_and_any_stop_count_for_all(tmp_path):
    launch(CLOCK, 2, str(tmp_path / "rank"), folder=tmp_path)
    one, two = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert one == two
    assert one[-1][0] > 0
    stops = [step for step, (_, _, stopped) in enumerate(one) if stopped]
    assert stops[0] == 24  # the next step at which they agree
