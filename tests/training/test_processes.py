"""Training in two processes is training in one with the doubled batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]

STEPS = """
import json
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from kinema.generation.transformer.model import VideoTransformer
from kinema.training.config import TrainingConfig
from kinema.training.ema import EMA
from kinema.training.optimization import Learner, make_optimizer

torch.set_num_threads(1)
optimizer, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = VideoTransformer.from_preset("tiny", text_vocab_size=10)
with torch.no_grad():  # every branch starts at nothing: gradients would vanish
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.05)
ema = EMA(model, 0.9)
config = TrainingConfig(preset="tiny", optimizer=optimizer)
learner = Learner(model, make_optimizer(model, config), config.learning_rate, 1.0, accelerator)
rank, size = accelerator.process_index, accelerator.num_processes
for step in range(4):
    whole = torch.Generator().manual_seed(step)
    clean, target = (torch.randn(4, 4, 2, 4, 4, generator=whole) for _ in range(2))
    t, text = torch.rand(4, generator=whole) * 1000, torch.randint(3, 10, (4, 5), generator=whole)
    mine = slice(rank * 4 // size, (rank + 1) * 4 // size)

    def loss(network):
        out = network(clean[mine], t[mine], text[mine]).sample
        spoiled = step == 2 and rank == size - 1
        total = (out - target[mine]).square().mean()
        return (total * torch.nan if spoiled else total), {}

    terms, taken = learner.step(loss, 1.0)
    assert bool(taken) == (step != 2), "a step that is not finite in one process is left out in all"
    ema.update(learner.plain, taken)
if accelerator.is_main_process:
    save_file({k: v.contiguous() for k, v in learner.plain.state_dict().items()}, out + ".model")
    save_file({k: v.contiguous() for k, v in ema.model.state_dict().items()}, out + ".ema")
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
from kinema.training.loop import Clock, progress

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


def launch(program: str, processes: int, *arguments: str, folder: Path) -> None:
    """Runs a program in so many processes that talk through gloo."""
    file = folder / "program.py"
    file.write_text(program)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), str(file)]
    result = subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_processes_are_one_with_the_doubled_batch(tmp_path, optimizer):
    for processes in (1, 2):
        launch(STEPS, processes, optimizer, str(tmp_path / str(processes)), folder=tmp_path)
    for kind in ("model", "ema"):
        one, two = (load_file(tmp_path / f"{n}.{kind}") for n in (1, 2))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-5, msg=f"{kind} {name}")


def test_the_first_process_clock_and_any_stop_count_for_all(tmp_path):
    launch(CLOCK, 2, str(tmp_path / "rank"), folder=tmp_path)
    one, two = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(2))
    assert one == two
    assert one[-1][0] > 0
    stops = [step for step, (_, _, stopped) in enumerate(one) if stopped]
    assert stops[0] == 24  # the next step at which they agree
