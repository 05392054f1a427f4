"""The command line as a whole: quick help, and mistakes reported in one line with status 2 and nothing written."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kinema.apps.cli import COMMANDS, main
from kinema.video import write_video

HELPS = [
    ["--help"],
    *([command, "--help"] for command in COMMANDS),
    ["toybox", "render", "--help"],
    ["attention", "report", "--help"],
]


@pytest.mark.parametrize("argv", HELPS, ids=" ".join)
def test_help_does_not_import_torch(argv: list[str]):
    code = f"""
import sys
from kinema.apps.cli import main
status = main({argv!r})
heavy = [name for name in ("torch", "numpy", "diffusers", "gradio", "av") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: kinema")


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]):
    import kinema

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kinema {kinema.__version__}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good and bad files."""
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    write_video(tmp_path / "good.mp4", frames, 8)
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 3])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video\n")
    (tmp_path / "text.png").write_text("no picture\n")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "prompts.txt").write_text("a red car\na blue car\n")
    (tmp_path / "gap.txt").write_text("a red car\n\na blue car\n")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("un caf\u00e9\n".encode("latin-1"))
    (tmp_path / "no model").mkdir()
    (tmp_path / "wrong model").mkdir()
    (tmp_path / "wrong model" / "config.json").write_text('{"_class_name": "Something"}')
    (tmp_path / "wrong model" / "model_index.json").write_text("{ this is no JSON")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    "": "COMMAND",
    "nonsense": "nonsense",
    "generate": "`prompt`",
    "generate --bogus": "--bogus",
    "generate car --bogus 3": "--bogus",
    "generate car --num 3": "--num",
    "generate car --num-frames x": "--num-frames",
    "generate car --num-frames 0": "`--num-frames` (=0)",
    "generate car --num-frames -4": "`--num-frames` (=-4)",
    "generate car --height 0": "`--height` (=0)",
    "generate car --width -1": "`--width` (=-1)",
    "generate car --num-steps 0": "`--num-steps` (=0)",
    "generate car --guidance-scale -1": "`--guidance-scale` (=-1.0)",
    "generate car --guidance-scale nan": "`--guidance-scale` (=nan)",
    "generate car --seed -1": "`--seed` (=-1)",
    "generate car --fps 0": "`--fps` (=0)",
    "generate car -o good.mp4": "`output` (='good.mp4')",
    "generate car -o folder.mp4": "`output` (='folder.mp4')",
    "generate car -o new.avi": "`output` (='new.avi')",
    "generate car -o good.mp4/new.mp4": "good.mp4",
    "generate car --image missing.png": "`image` (='missing.png')",
    "generate car --image empty.mp4": "`image` (='empty.mp4')",
    "generate car --image text.png": "`image` (='text.png')",
    "generate car --image text.png -o text.mp4 --contact-sheet --overwrite": "`--contact-sheet` (='text.png')",
    "generate car --fps 0.0001": "`--fps` (=0.0001)",
    "generate car --prompts prompts.txt --out-dir new": "`prompt`",
    "generate car --out-dir new": "`--out-dir`",
    "generate --prompts prompts.txt": "`--out-dir`",
    "generate --prompts prompts.txt --out-dir new -o new.mp4": "`--output`",
    "generate --prompts missing.txt --out-dir new": "missing.txt",
    "generate --prompts gap.txt --out-dir new": "line 2",
    "generate --prompts blank.txt --out-dir new": "blank.txt",
    "generate --prompts latin.txt --out-dir new": "UTF-8",
    "generate --prompts prompts.txt --out-dir good.mp4": "`--out-dir`",
    "generate car --model missing": "`model` (='missing')",
    "generate car --model good.mp4": "`model` (='good.mp4')",
    "generate car --model no+model": "no model",
    "generate car --model wrong+model": "wrong model",
    "reconstruct": "IN",
    "reconstruct missing.mp4 new.mp4": "`input` (='missing.mp4')",
    "reconstruct empty.mp4 new.mp4": "`input` (='empty.mp4')",
    "reconstruct folder.mp4 new.mp4": "`input` (='folder.mp4')",
    "reconstruct text.mp4 new.mp4": "`input` (='text.mp4')",
    "reconstruct cut.mp4 new.mp4": "`input` (='cut.mp4')",
    "reconstruct good.mp4 good.mp4": "`output` (='good.mp4')",
    "reconstruct good.mp4 good.mp4 --overwrite": "another file",
    "reconstruct good.mp4 new.mp4 --window-frames 0": "`--window-frames` (=0)",
    "reconstruct good.mp4 new.mp4 --json prompts.txt": "`--json` (='prompts.txt')",
    "reconstruct good.mp4 new.mp4 --json new.mp4": "`--json` (='new.mp4')",
    "reconstruct good.mp4 new.mp4 --json good.mp4 --overwrite": "`--json` (='good.mp4')",
    "reconstruct good.mp4 new.mp4 --tokenizer missing": "`tokenizer` (='missing')",
    "reconstruct good.mp4 new.mp4 --tokenizer no+model": "`tokenizer` (='no model')",
    "reconstruct good.mp4 new.mp4 --tokenizer wrong+model": "`tokenizer` (='wrong model')",
    "train": "KIND",
    "train nonsense": "nonsense",
    "train tokenizer nonsense": "nonsense",
    "train diffusion nonsense": "nonsense",
    "train distill nonsense": "nonsense",
    "train distill 4-steps --data toybox --output new --teacher missing": "`teacher` (=missing)",
    "train tokenizer kl-4x8x8-c16 --bogus 3": "--bogus",
    "train tokenizer kl-4x8x8-c16 --batch-size x": "--batch-size",
    "train tokenizer kl-4x8x8-c16 --batch-size 0": "`batch_size` (=0)",
    "train diffusion toybox-s --schedule wave": "--schedule",
    "toybox": "ACTION",
    "toybox render new --num-clips 0": "`num_clips` (=0)",
    "toybox render new --split nonsense": "nonsense",
    "toybox render new --cameras nonsense": "nonsense",
    "toybox render new --num-objects 9": "`num_objects`",
    "toybox render new --height 3": "`height` (=3)",
    "toybox render new --sprites missing": "missing",
    "toybox render good.mp4": "good.mp4",
    "eval": "MEASURE",
    "eval toybox --model missing": "`model` (='missing')",
    "eval toybox --num-prompts 1": "`--num-prompts` (=1)",
    "eval toybox --batch-size 0": "`--batch-size` (=0)",
    "eval toybox --json good.mp4": "`--json` (='good.mp4')",
    "eval toybox --contact-sheet good.mp4": "`--contact-sheet` (='good.mp4')",
    "eval toybox --json new --contact-sheet new": "`--contact-sheet` (='new')",
    "app --port 0": "`--port` (=0)",
    "app --model missing": "`model` (='missing')",
    "info --bogus": "--bogus",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistake_is_one_line_and_status_2(line: str, folder: Path, capfd: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    assert main([word.replace("+", " ") for word in line.split()]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("kinema: error: ")
    assert captured.err.count("\n") == 1
    assert MISTAKES[line] in captured.err
    assert captured.out == ""
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before


def test_mistake_through_the_installed_command(folder: Path):
    result = subprocess.run(
        [sys.executable, "-m", "kinema", "generate", "--bogus"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("kinema: error: ")


def test_app_on_a_port_in_use(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    from kinema.apps import loading

    monkeypatch.setattr(loading, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"`--port` (={port}) must be free: something listens on 127.0.0.1:{port} already" in error
    assert error.count("\n") == 1


def test_interruption(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinema.apps.loading.load_pipeline", interrupt)
    assert main(["generate", "car"]) == 130
    assert capsys.readouterr().err == "kinema: interrupted\n"


def test_trainer_gets_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch):
    got: list[list[str]] = []
    monkeypatch.setattr("kinema.training.tokenizer.main", lambda argv, program: got.append([program, *argv]))
    line = ["kl-4x8x8-c16", "--learning-rate", "3e-4", "--data", "toybox", "clips", "--resume"]
    assert main(["train", "tokenizer", *line]) == 0
    assert got == [["kinema train tokenizer", *line]]


def test_trainer_answers_help(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "diffusion", "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: kinema train diffusion")
    assert "--num-clips" in captured.out
    assert captured.err == ""


def test_toybox_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert main(["toybox", "render", "--num-clips", "2", str(out), "--num-frames", "3"]) == 0
    assert str(out) in capsys.readouterr().out
    assert sorted(os.listdir(out)) == ["00000.mp4", "00001.mp4", "captions.jsonl", "ground_truth.jsonl"]
    captions = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert [entry["file"] for entry in captions] == ["00000.mp4", "00001.mp4"]


def test_info(capsys: pytest.CaptureFixture[str]):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["packages"]["torch"] == torch.__version__.split("+")[0]
    assert "native" in facts["attention_backends"]
    assert {"libx264", "libx264rgb"} <= set(facts["encoders"])
    assert set(facts["weights"]) == {"kl-4x8x8-c16", "fsq-4x8x8-32768", "toybox"}
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [name.replace("_", " ") for name in facts]


def test_eval_toybox(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from kinema.eval.toybox.entry import Settings

    got: list[Settings] = []

    class Report:
        def table(self) -> str:
            return "the table"

    def run(settings: Settings) -> Report:
        got.append(settings)
        return Report()

    monkeypatch.setattr("kinema.eval.toybox.entry.run", run)
    line = "eval toybox --model m --sprites s --num-prompts 7 --json r.json --contact-sheet c.png --image"
    assert main([*line.split(), "--num-steps", "3", "--guidance-scale", "2", "--seed", "5", "--overwrite"]) == 0
    assert capsys.readouterr().out == "the table\n"
    wanted = Settings(
        model=Path("m"),
        sprites=Path("s"),
        num_prompts=7,
        json=Path("r.json"),
        contact_sheet=Path("c.png"),
        image=True,
        num_steps=3,
        guidance_scale=2.0,
        seed=5,
        overwrite=True,
    )
    assert got == [wanted]
