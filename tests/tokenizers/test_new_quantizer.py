"""A quantizer that is registered at run time: one class and one line, and it is where users choose it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from kinema import CausalVideoTokenizer
from kinema.apps.commands.info import collect
from kinema.tokenizers import registry
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.presets import Cost, Preset
from kinema.tokenizers.quantizers import BOTTLENECKS, Bottleneck, BottleneckOutput
from tokenizing import video

CODE = """
import sys
sys.path.append("../helpers")
import test_new_quantizer
from kinema.tokenizers import registry
from kinema.tokenizers.quantizers import BOTTLENECKS
BOTTLENECKS["round"] = test_new_quantizer.Round
registry.PRESETS["round-4x8x8"] = test_new_quantizer.ROW
from kinema.apps.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Round(Bottleneck):
    """Rounds to multiples of `step`."""

    def __init__(self, latent_channels: int, step: float = 0.5):
        super().__init__()
        self.latent_channels = self.in_channels = latent_channels
        self.step = step

    def forward(self, h: Any, sample: bool = False, generator: torch.Generator | None = None) -> BottleneckOutput:
        rounded = h + ((h / self.step).round() * self.step - h).detach()
        return BottleneckOutput(latents=rounded, mode=rounded)


HERE = Path(__file__).parent
CONFIG = {**TINY, "bottleneck": {"name": "round", "latent_channels": 4, "step": 0.25}}
ROW = Preset("CausalVideoTokenizer", CONFIG, Cost(0.1, 0.1, 0.1))


def test_it_is_a_bottleneck_and_a_preset(monkeypatch, tmp_path):
    monkeypatch.setitem(BOTTLENECKS, "round", Round)
    monkeypatch.setitem(registry.PRESETS, "round-4x8x8", ROW)
    model = registry.make_tokenizer("round-4x8x8")
    latents = model.encode(video(5)).latents
    assert torch.equal(latents * 4, (latents * 4).round())
    model.save_pretrained(tmp_path)
    loaded = CausalVideoTokenizer.from_pretrained(tmp_path)
    assert loaded.config["bottleneck"] == CONFIG["bottleneck"]
    assert torch.equal(loaded.encode(video(5)).latents, latents)
    facts = collect()
    assert "round" in facts["bottlenecks"]
    assert "round-4x8x8" in facts["tokenizer_presets"]


def test_the_command_line_trains_it(tmp_path):
    line = ["train", "tokenizer", "round-4x8x8", "--data", "toybox", "--shapes", "5x16x16", "--batch-size", "1"]
    line += ["--num-steps", "1", "--output", str(tmp_path / "run"), "--validation-shape", "5x16x16"]
    help_ = subprocess.run(
        [sys.executable, "-c", CODE, "train", "tokenizer", "--help"], capture_output=True, text=True, check=True,
        cwd=HERE,
    )  # fmt: skip
    assert "round-4x8x8" in help_.stdout
    done = subprocess.run(
        [sys.executable, "-c", CODE, *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
    )
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["bottleneck"]["name"] == "round"
