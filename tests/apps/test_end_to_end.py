"""`kinema generate` with a real, tiny, untrained pipeline from a folder, whole and damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image

from kinema.apps.cli import main
from kinema.apps.gradio_app import build_app
from kinema.apps.loading import load_pipeline
from kinema.generation.pipeline import KinemaPipeline
from kinema.generation.text import build_word_tokenizer
from kinema.generation.transformer.model import VideoTransformer
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import read_video


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    words = build_word_tokenizer(["a", "red", "blue", "car", "drives"])
    pipeline = KinemaPipeline(
        transformer=VideoTransformer.from_preset("tiny", text_vocab_size=len(words)),
        vae=CausalVideoTokenizer(**TINY),
        tokenizer=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        sample_size=(5, 16, 24),
        sample_fps=12.0,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the folder, to be damaged, and an empty working folder."""
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(tmp_path / "model")


def test_prompt_to_clip(model: str, capfd: pytest.CaptureFixture[str]):
    assert main(["generate", "a red car drives", "--model", model, "--num-steps", "2", "--contact-sheet"]) == 0
    video = read_video("a-red-car-drives.mp4")
    assert video.frames.shape == (5, 16, 24, 3)
    assert video.fps == 12
    captured = capfd.readouterr()
    assert captured.out.startswith("a-red-car-drives.mp4  5 frames of 16x24 in ")
    assert captured.err == ""  # no bars, no chatter where there is no terminal


def test_same_seed_same_clip(model: str):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        argv = ["generate", "a red car", "--model", model, "--num-steps", "2", "--lossless", "-o", f"{name}.mp4"]
        assert main([*argv, "--seed", seed]) == 0
    a, b, c = (read_video(f"{name}.mp4").frames for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_image_is_the_first_frame_as_the_tokenizer_reconstructs_it(model: str):
    picture = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    Image.fromarray(picture.numpy()).save("first.png")
    argv = ["generate", "a red car", "--model", model, "--num-steps", "2", "--lossless", "-o", "x.mp4"]
    assert main([*argv, "--image", "first.png"]) == 0
    tokenizer = CausalVideoTokenizer.from_pretrained(model, subfolder="vae").eval()
    with torch.inference_mode():
        wanted = tokenizer.reconstruct(picture.permute(2, 0, 1)[None, :, None] / 127.5 - 1)[0, :, 0]
    got = read_video("x.mp4").frames[0].permute(2, 0, 1) / 127.5 - 1
    assert (got - wanted).abs().max() <= 1.01 / 255


def test_unknown_word_gives_a_warning_and_a_clip(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a red carr zzz", "--model", model, "--num-steps", "1", "-o", "x.mp4"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("kinema: warning: ")
    assert error.count("\n") == 1
    assert "'carr'" in error
    assert "car)" in error
    assert "'zzz'" in error
    assert Path("x.mp4").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--height", "4"), ("--width", "7"), ("--num-frames", "0"), ("--num-steps", "0")]
)
def test_below_the_minimum(model: str, option: str, value: str, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a red car", "--model", model, option, value]) == 2
    error = capsys.readouterr().err
    assert option.strip("-").replace("-", "_") in error.replace("-", "_")
    assert value in error
    assert error.count("\n") == 1
    assert list(Path().iterdir()) == []


DAMAGES = {
    "no index": lambda folder: (folder / "model_index.json").unlink(),
    "index is no JSON": lambda folder: (folder / "model_index.json").write_text("{"),
    "no weights": lambda folder: next((folder / "transformer").glob("*.safetensors")).unlink(),
    "cut weights": lambda folder: cut(next((folder / "vae").glob("*.safetensors"))),
    "empty weights": lambda folder: next((folder / "vae").glob("*.safetensors")).write_bytes(b""),
    "no config": lambda folder: (folder / "transformer" / "config.json").unlink(),
    "no component": lambda folder: shutil.rmtree(folder / "vae"),
    "foreign module": lambda folder: change_index(folder, "vae", ["os.path", "join"]),
    "foreign class": lambda folder: change_index(folder, "vae", ["kinema.errors", "Nonsense"]),
    "no words": lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_index(folder: Path, name: str, entry: list[str]) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = entry
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_model_folder(model: str, damage: str, capfd: pytest.CaptureFixture[str]):
    DAMAGES[damage](Path(model))
    assert main(["generate", "a red car", "--model", model]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("kinema: error: ")
    assert captured.err.count("\n") == 1
    assert "model" in captured.err
    assert captured.out == ""
    assert list(Path().iterdir()) == []


def test_unknown_device(model: str, capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a red car", "--model", model, "--device", "nonsense"]) == 2
    assert "`device` (='nonsense')" in capsys.readouterr().err


def test_page_for_a_real_pipeline(model: str):
    labels = {getattr(block, "label", None) for block in build_app(load_pipeline(model)).blocks.values()}
    assert {"Prompt", "Steps", "Clip"} <= labels
