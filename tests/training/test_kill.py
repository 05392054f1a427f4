"""Trainings that are killed at random moments end with the weights of those that were left alone, byte for byte."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import child

COMMON = (
    "--cpu --batch-size 1 --num-workers 0 --warmup-steps 1 --save-every 1 --eval-every 7 --sample-every 7 --log-every 5"
)
KINDS = {
    "tokenizer": "tokenizer kl-4x8x8-c16 --shapes 5x16x16 --validation-shape 5x16x16 --validation-clips 1"
    " --init-linear --num-steps 12",
    "diffusion": "diffusion tiny --shape 5x16x16 --num-clips 40 --validation-clips 1 --num-samples 1 --sample-steps 1"
    " --num-steps 12",
}


@pytest.fixture
def command(tmp_path, tiny_tokenizer_folder, make_video) -> Callable[[str, str], list[str]]:
    """The arguments of a training of a kind into a folder."""
    make_video(tmp_path / "data/a.mp4", num_frames=9, height=20, width=24)
    make_video(tmp_path / "data/b.mp4", num_frames=12, height=20, width=24)
    (tmp_path / "data/captions.csv").write_text("file,caption\na.mp4,bars move\nb.mp4,bars move on\n")

    def build(kind: str, name: str) -> list[str]:
        data = ["--data", str(tmp_path / "data"), "toybox", "--output", str(tmp_path / name)]
        extra = ["--tokenizer", str(tiny_tokenizer_folder)] if kind == "diffusion" else []
        return ["train", *KINDS[kind].split(), *COMMON.split(), *data, *extra]

    return build


def start(arguments: list[str], log: Path):
    return child.start(arguments, log, "tiny_tokenizers")


def result(run: Path) -> dict[str, bytes]:
    """Weights and configurations of the model, and the last checkpoint's tensors."""
    (last,) = (run / "checkpoints").glob("step-00000012")
    files = [
        *last.glob("*.safetensors"),
        *(run / "model").rglob("*.safetensors"),
        *(run / "model").rglob("config.json"),
    ]
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in files}


def leftovers(run: Path) -> list[Path]:
    names = [file for file in run.rglob(".*") if not file.name.startswith(".nfs")]
    return names + list((run / "checkpoints").glob("damaged-*")) + list(run.rglob("*.raw"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_trainings_end_the_same(tmp_path, command, kind, num_kills):
    began = time.monotonic()
    assert child.finish(start(command(kind, "warm"), tmp_path / "log")) == 0  # the server has started
    began = time.monotonic()
    assert child.finish(start(command(kind, "whole"), tmp_path / "log")) == 0
    duration = time.monotonic() - began
    expected = result(tmp_path / "whole")
    assert len(expected) > 4

    moments, kills, run = random.Random(f"{kind} {num_kills}"), 0, 0
    while kills < num_kills:
        run += 1
        arguments = [*command(kind, f"run-{run}"), "--resume"]
        while True:
            process = start(arguments, tmp_path / "log")
            if kills < num_kills and child.signal_after(process, signal.SIGKILL, moments.uniform(0.1, 0.7) * duration):
                kills += 1
                assert child.finish(process) == -signal.SIGKILL
                continue
            assert child.finish(process) == 0, (tmp_path / "log").read_text()
            break
        assert result(tmp_path / f"run-{run}") == expected, (run, kills)
        assert leftovers(tmp_path / f"run-{run}") == []
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "damaged" not in said
