"""Two processes measure what one does: started by torchrun, as `accelerate launch` starts one alone on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

# `kinema eval`, with a small network in I3D's place; each line of the file is a command.
PROGRAM = """
import sys, torch
from accelerate import PartialState
from torch import nn
from kinema.apps.cli import main
from kinema.eval.networks.i3d import I3D

class Tiny(I3D):
    num_features = 20
    def __init__(self):
        nn.Module.__init__(self)
        weights = torch.randn(768, 20, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weights", weights)
    def forward(self, video):
        return nn.functional.adaptive_avg_pool3d(video, (4, 8, 8)).flatten(1) @ self.weights

import kinema.eval.fvd.features, kinema.eval.weights
kinema.eval.fvd.features.load_i3d = lambda _: Tiny()
kinema.eval.weights.fetch_weights = lambda name: name
torch.set_num_threads(1)
state = PartialState(cpu=True)
sys.stderr.write(f"process {state.process_index} of {state.num_processes}\\n")
for line in open(sys.argv[1]):
    if main(line.split()):
        sys.exit(1)
"""

COMMANDS = """\
eval fvd real fake --num-frames 9 --max-unreadable 0.2 --json {name}/fvd.json --statistics-dir {name}/kept
eval fvd real real --num-frames 9 --json {name}/same.json
eval compare real fake --metrics psnr flicker --max-unreadable 0.2 --json {name}/compare.json
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process and what two found: name of the file -> its content."""
    folder = tmp_path_factory.mktemp("processes")
    generator = np.random.default_rng(0)
    for side in ("real", "fake"):
        (folder / side).mkdir()
        for index in range(9):  # an odd number: shares differ
            size = 16 if index < 5 else 24
            np.save(folder / side / f"{index}.npy", generator.integers(0, 256, (12, size, size, 3), np.uint8))
    (folder / "fake" / "3.npy").write_bytes(b"broken")  # read by the second process alone
    (folder / "program.py").write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, start, number in (("one", [], 1), ("two", launch, 2)):
        (folder / name).mkdir()
        (folder / f"{name}.txt").write_text(COMMANDS.format(name=name))
        line = [sys.executable, *start, "program.py", f"{name}.txt"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [f"process {rank} of {number}" in done.stderr for rank in range(2)] == [True, number == 2], done.stderr
        # Only one process says anything about results.
        assert done.stdout.count("FVD ") == 2, done.stdout
    return {
        name: {path.stem: json.loads(path.read_text()) for path in Path(folder, name).glob("*.json")}
        for name in ("one", "two")
    }


def close(one: Any, two: Any) -> bool:
    """Equal, but for round-off of sums in another order."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(close(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(close, one, two))
    return one == pytest.approx(two, rel=1e-6, abs=1e-9) if isinstance(one, float) else one == two


@pytest.mark.parametrize("name", ["fvd", "same", "compare"])
def test_two_processes_find_what_one_finds(name: str, results: dict[str, dict[str, Any]]):
    one, two = results["one"][name], results["two"][name]
    assert close(one, two), (one, two)


def test_the_comparison_can_fail(results: dict[str, dict[str, Any]]):
    one = results["one"]["fvd"]
    assert not close(one, one | {"fvd": one["fvd"] * 1.001})
    assert one["fvd"] > 0
    assert list(one["unreadable"]) == ["fake/3"]
    assert one["num_fake"] == 8
    assert results["two"]["same"]["fvd"] == 0
