"""Clips shared by several processes are what one process makes of them."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

import sharing
from kinema.errors import KinemaError
from kinema.generation.attention import Full, PerHead, SlidingTile, Spatial, Temporal, TileTopK
from kinema.generation.attention.patterns import StaticPattern
from kinema.generation.transformer.context_parallel import context_group
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.config import DiffusionTrainingConfig, to_dict
from kinema.training.diffusion import DiffusionTask, train
from processes import launch_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[Callable[[], Accelerator]]:
    """Makes accelerators; accelerate keeps its state for the whole process."""

    def make() -> Accelerator:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return Accelerator(cpu=True)

    yield make
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def config(tmp_path) -> DiffusionTrainingConfig:
    """A training of few steps, of clips whose tokens are no multiple of the processes."""
    folder = tmp_path / "alone"
    torch.manual_seed(0)
    CausalVideoTokenizer(**TINY).save_pretrained(folder / "tokenizer")
    return DiffusionTrainingConfig(
        preset="tiny", data=("toybox",), tokenizer=folder / "tokenizer", output=folder / "run", shape="9x24x24",
        num_clips=8, batch_size=4, num_steps=4, warmup_steps=1, validation_clips=2, num_samples=1, sample_steps=1,
        log_every=2, cache_dir=folder / "cache", image_probability=0.5, mixed_precision="no", cpu=True,
    )  # fmt: skip


def launch(processes: int, folder: Path, config: DiffusionTrainingConfig) -> dict[str, Any]:
    """What `sharing.py` finds in so many processes."""
    launch_file(sharing.__file__, processes, str(folder), json.dumps(to_dict(config)))
    return json.loads((folder / "results.json").read_text())


def assert_close(found: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = load_file(found)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-5, msg=f"{found} {name}")


# One test: its processes take seconds to start.
@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_that_share_clips_are_one(processes, tmp_path, config, fresh_accelerator):
    results = launch(processes, tmp_path, replace(config, output=tmp_path / "run", context_parallel=2, fsdp=True))
    assert results["cases"].keys() == sharing.CASES.keys()
    assert not {name: errors for name, errors in results["cases"].items() if max(errors.values()) > 1e-5}
    assert results["generated"] < 1e-5
    heads, group = results["refused"]
    assert heads == f"`num_heads` (=5) must be divisible by the number of processes that share a clip (={processes})"
    assert re.match(r"`context_parallel` .* must be at least 2, and divide the number of processes", group)

    for optimizer in ("muon", "adamw"):
        expected = sharing.take_steps(optimizer, fresh_accelerator(), 1)
        files = list(tmp_path.glob(f"{optimizer}-*.safetensors"))
        assert len(files) == processes // 2  # clips of two processes, and of four
        for file in files:
            assert_close(file, expected)
    if processes == 2:  # one process with the same batches
        fresh_accelerator()
        name = "transformer/diffusion_pytorch_model.safetensors"
        assert_close(tmp_path / "run/model" / name, load_file(train(config) / name))


def test_one_process_shares_no_clips(config, fresh_accelerator):
    one = r"`context_parallel` \(=2\) must .* the number of processes \(=1\)"
    with pytest.raises(KinemaError, match=one):
        context_group(2)
    with pytest.raises(KinemaError, match=one):
        DiffusionTask(replace(config, context_parallel=2), fresh_accelerator())


def test_patterns_of_some_heads():
    mixed = PerHead((Full(), Spatial(), Temporal(), Spatial()))
    assert mixed.of_heads(slice(1, 3)) == PerHead((Spatial(), Temporal()))
    windows = SlidingTile((1, 2, 2), ((1, 1, 1), (3, 1, 1)))
    assert windows.of_heads(slice(1, 2)).windows == ((3, 1, 1),)
    for alike in (Spatial(), SlidingTile(), TileTopK(k=2)):
        assert alike.of_heads(slice(0, 1)) == alike


def test_a_pattern_for_some_heads_must_say_what_each_sees():
    class Odd(Full):
        @property
        def num_heads(self) -> int:
            return 4

    pattern: StaticPattern = Odd()
    with pytest.raises(KinemaError, match=r"`pattern` \(=full\) must implement `of_heads`"):
        pattern.of_heads(slice(0, 2))
