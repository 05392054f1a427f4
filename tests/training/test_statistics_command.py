"""`kinema tokenizer statistics` measures latents and stores what normalises them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kinema.apps.cli import main
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.training.config import TokenizerTrainingConfig
from kinema.training.data.batches import TokenizerBatches
from kinema.training.latent_statistics import latent_moments


@pytest.fixture
def data(tmp_path: Path, make_video: Callable[..., Path]) -> str:
    return str(make_video(tmp_path / "data/a.mp4", num_frames=12, height=24, width=32).parent)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = CausalVideoTokenizer(**TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


ARGUMENTS = ["--shape", "5x16x16", "--num-clips", "5", "--batch-size", "2", "--device", "cpu"]


def test_measures_prints_and_stores(folder: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = json.loads((folder / "config.json").read_text())
    figures = tmp_path / "figures.json"
    options = ["--tokenizer", str(folder), "--data", data, *ARGUMENTS, "--balance", "0", "--json", str(figures)]
    assert main(["tokenizer", "statistics", *options]) == 0
    said = capsys.readouterr().out
    stored = json.loads((folder / "config.json").read_text())
    assert {k: v for k, v in stored.items() if not k.startswith("latents_")} == {
        k: v for k, v in before.items() if not k.startswith("latents_")
    }
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]

    tokenizer: CausalVideoTokenizer = CausalVideoTokenizer.from_pretrained(folder)
    batches = TokenizerBatches(
        TokenizerTrainingConfig(
            preset="x", data=(data,), shapes=("5x16x16",), batch_size=2, cache_dir=tmp_path / "cache"
        )
    )
    mean, std = latent_moments(tokenizer, [batches(0), batches(1), batches(2)[:1]])
    assert stored["latents_mean"] == pytest.approx(mean.tolist(), abs=1e-5)
    assert stored["latents_std"] == pytest.approx(std.tolist(), rel=1e-4)  # no balance: unit variance
    values = json.loads(figures.read_text())
    assert values["mean"] == stored["latents_mean"]
    assert values["scale"] == stored["latents_std"]
    assert all(f"{value:.4f}" in said for value in values["mean"] + values["std"])


def test_a_dry_run_stores_nothing(folder: Path, data: str, capsys: pytest.CaptureFixture[str]):
    before = (folder / "config.json").read_bytes()
    assert main(["tokenizer", "statistics", "--tokenizer", str(folder), "--data", data, *ARGUMENTS, "--dry-run"]) == 0
    assert (folder / "config.json").read_bytes() == before
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokenizer", "missing", "--data", "toybox"], "`--tokenizer` (='missing')"),
        (["--tokenizer", "FOLDER", "--data", "missing"], "`data` (='missing')"),
        (["--tokenizer", "FOLDER", "--data", "toybox", "--shape", "5x5"], "`--shape` (=5x5)"),
        (["--tokenizer", "FOLDER", "--data", "toybox", "--num-clips", "0"], "`--num-clips` (=0)"),
        (["--tokenizer", "FOLDER", "--data", "toybox", "--balance", "2"], "`--balance` (=2)"),
        (["--tokenizer", "FOLDER", "--data", "toybox", "--json", "FOLDER"], "`--json`"),
    ],
)
def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str):
    options = [str(folder) if option == "FOLDER" else option for option in options]
    assert main(["tokenizer", "statistics", *options]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert said in error
