"""Two processes measure what one does: started by torchrun, as `accelerate launch` starts one alone on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY

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

class MeanColours(nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3)) - 127

import kinema.eval.fvd.features, kinema.eval.generation.looks, kinema.eval.weights
kinema.eval.generation.looks.load_frame_network = lambda *_: MeanColours()
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
eval reconstruction --tokenizer tokenizer --data real --metrics psnr --fvd styleganv --json {name}/reconstruction.json
eval generation --clips real --prompts prompts.txt --reference fake --max-unreadable 0.2 --fvd styleganv \
--metrics temporal_flickering frame_consistency stream_t stream_f stream_d --json {name}/generation.json
"""

# The same number of clips for each of two metrics, all of them in the first process; the second has none.
IDLE = """
import json, sys, torch
torch.set_num_threads(1)
rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if size > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
exec(open(f"{folder}/program.py").read().split("import kinema.eval.fvd")[0])
from kinema.eval.fvd import EXTRAS, FrechetVideoDistance, Protocol, Resize, VideoFeatures
from kinema.eval.motion.stream import STREAM
protocol = Protocol(name="plain", num_frames=9, network=Resize(size=12, mode="crop", antialias=False))
metric = FrechetVideoDistance(features=VideoFeatures(protocol, network=Tiny()), extra=EXTRAS)
stream = STREAM(num_frames=8)
if rank == 0:
    generator = torch.Generator().manual_seed(0)
    for real in (True, False):
        videos = torch.randint(0, 256, (7, 3, 9, 12, 12), generator=generator, dtype=torch.uint8)
        metric.update(videos, real=real)
        stream.update(torch.randn(7, 8, 5, generator=generator), real=real)
found = {"value": float(metric.compute()), "stream": stream.compute(), "result": metric.result().as_dict()}
found["again"] = float(metric.compute())
json.dump(found, open(f"{folder}/idle-{rank}-of-{size}.json", "w"))
if size > 1:
    torch.distributed.destroy_process_group()
"""


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(line: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a program of Python to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    line = [sys.executable, *line]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process and what two found: name of the file -> its content."""
    folder = tmp_path_factory.mktemp("processes")
    generator = np.random.default_rng(0)
    for side in ("real", "fake"):
        (folder / side).mkdir()
        for index in range(9):  # an odd number: shares differ
            size = 16 if index < 5 else 24
            np.save(folder / side / f"{index}.npy", generator.integers(0, 256, (17, size, size, 3), np.uint8))
    (folder / "fake" / "3.npy").write_bytes(b"broken")  # read by the second process alone
    (folder / "program.py").write_text(PROGRAM)
    (folder / "prompts.txt").write_text("".join(f"clip {index}\n" for index in range(9)))
    torch.manual_seed(0)
    CausalVideoTokenizer(**TINY).save_pretrained(folder / "tokenizer")
    for name, launch, number in (("one", [], 1), ("two", LAUNCH, 2)):
        (folder / name).mkdir()
        (folder / f"{name}.txt").write_text(COMMANDS.format(name=name))
        done = start([*launch, "program.py", f"{name}.txt"], folder)
        assert [f"process {rank} of {number}" in done.stderr for rank in range(2)] == [True, number == 2], done.stderr
        # Only one process says anything about results.
        assert done.stdout.count("FVD ") == 4, done.stdout
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


@pytest.mark.parametrize("name", ["fvd", "same", "compare", "reconstruction", "generation"])
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
    assert results["two"]["reconstruction"]["rfvd"] > 0
    generation = results["two"]["generation"]
    assert min(generation[name] for name in ("fvd", "stream_t", "stream_f", "stream_d")) > 0
    assert generation["num_reference"] == 8


def test_a_note_on_several_sizes_does_not_depend_on_who_read_them(tmp_path: Path):
    """Clips of one size each in two processes are clips of two sizes."""
    for side in ("real", "fake"):
        (tmp_path / side).mkdir()
        for index in range(8):
            size = 16 if index % 2 else 24  # the second process reads every second clip
            pixels = np.random.default_rng([index, side == "real"]).integers(0, 256, (9, size, size, 3), np.uint8)
            np.save(tmp_path / side / f"{index}.npy", pixels)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "two.txt").write_text("eval fvd real fake --num-frames 9 --json r.json\n")
    start([*LAUNCH, "program.py", "two.txt"], tmp_path)
    assert any("2 sizes (16x16, 24x24)" in note for note in json.loads((tmp_path / "r.json").read_text())["notes"])


def test_a_process_without_a_clip_computes_like_the_others(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "idle.py").write_text(IDLE)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    for size in (1, 2):
        lines = [[sys.executable, "-W", "ignore", "idle.py", str(rank), str(size), "."] for rank in range(size)]
        running = [subprocess.Popen(line, cwd=tmp_path, env=environment) for line in lines]
        assert [process.wait(timeout=300) for process in running] == [0] * size
    alone, *both = (json.loads((tmp_path / f"idle-{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2"))
    assert alone["value"] > 0
    assert alone["value"] == alone["result"]["fvd"] == alone["again"]
    for found in both:
        assert close(alone, found), (alone, found)
