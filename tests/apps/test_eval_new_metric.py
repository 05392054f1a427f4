"""A metric that is added at run time, one file and one entry, is in the command line, its help and the report."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinema.apps.cli import main
from kinema.errors import KinemaError
from kinema.eval.metrics import METRICS, Inputs, MetricSpec, add_metric
from kinema.eval.networks.i3d import I3D

CODE = {
    "frame pairs": "def make(device, weights=None):\n    return lambda a, b: torch.full((1, a.shape[2]), 42.5)",
    "clip": "from kinema.eval.generation.looks import ClipMeasure\n"
    "def make(networks):\n"
    "    return ClipMeasure(curve=lambda look: torch.full((look.num_frames,), 42.5), value=lambda c: float(c.mean()))",
    "generated features": "def make():\n    return lambda real, fake: {'answer': 42.5}",
}

LINES = {
    "frame pairs": "eval compare real fake",
    "clip": "eval generation --clips fake --prompts prompts.txt",
    "generated features": "eval fvd real fake --num-frames 9",
}


class FirstPixels(I3D):
    """In place of I3D."""

    num_features = 4

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("none", torch.zeros(1))

    def forward(self, video: Tensor) -> Tensor:
        return video[:, 0, 0, 0, :4]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    generator = np.random.default_rng(0)
    for side in ("real", "fake"):
        (tmp_path / side).mkdir()
        for index in range(3):
            np.save(tmp_path / side / f"{index}.npy", generator.integers(0, 256, (9, 16, 16, 3), np.uint8))
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("kinema.eval.fvd.features.load_i3d", lambda _: FirstPixels())
    yield tmp_path
    METRICS.pop("answer")


@pytest.mark.parametrize("inputs", CODE)
def test_a_new_metric(inputs: Inputs, folder: Path, capsys: pytest.CaptureFixture[str]):
    module = f"new_metric_{inputs.replace(' ', '_')}"
    (folder / f"{module}.py").write_text(f"import torch\n{CODE[inputs]}\n")
    spec = MetricSpec(
        name="answer", title="The Answer", help="to it all", direction="lower", inputs=inputs, module=module
    )
    add_metric(spec)
    with pytest.raises(KinemaError, match=r"`name` \(='answer'\)"):
        add_metric(spec)

    assert main([*LINES[inputs].split()[:2], "--help"]) == 0
    assert "answer (to it all)" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert main([*LINES[inputs].split(), "--metrics", "answer", "--json", "r.json", "--html", "r.html"]) == 0
    assert "42.5" in capsys.readouterr().out
    assert json.loads(Path("r.json").read_text())["answer"] == 42.5
    page = Path("r.html").read_text()
    assert "The Answer" in page
    assert "lower is better" in page
