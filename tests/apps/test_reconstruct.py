"""`kinema reconstruct`: as many frames of the same size at the same rate, honestly measured."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import peak_signal_noise_ratio

from kinema.apps.cli import main
from kinema.apps.commands.reconstruct import windows
from kinema.tokenizers.causal_vae.model import CausalVideoTokenizer
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.video import VideoReader, read_video, to_float, to_uint8, write_video
from videos import gray_ramp, make_sounding_video, make_video, spans


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tokenizer")
    CausalVideoTokenizer(**TINY).save_pretrained(folder)
    return folder


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(1, 16, 16), (5, 16, 24), (6, 17, 23), (2, 9, 50)])
def test_shape_and_rate_are_kept(shape: tuple[int, int, int], model: Path, tmp_path: Path):
    write_video(tmp_path / "in.mp4", noise(*shape), 24000 / 1001, lossless=True)
    argv = ["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main(argv) == 0
    result = read_video(tmp_path / "out.mp4")
    assert result.frames.shape == (*shape, 3)
    assert result.fps == pytest.approx(24000 / 1001)


def test_lossless_result_and_numbers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    frames = noise(5, 16, 16)
    write_video(tmp_path / "in.mp4", frames, 24, lossless=True)
    argv = ["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(model), "--lossless"]
    assert main([*argv, "--json", str(tmp_path / "r.json")]) == 0
    tokenizer = CausalVideoTokenizer.from_pretrained(str(model)).eval()
    with torch.inference_mode():
        wanted = to_uint8(tokenizer.reconstruct(to_float(frames))[0])
    result = read_video(tmp_path / "out.mp4").frames
    assert torch.equal(result, wanted)
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert numbers["psnr"] == pytest.approx(
        float(peak_signal_noise_ratio(result.float(), frames.float(), data_range=255.0)), abs=1e-3
    )
    assert -1 <= numbers["ssim"] <= 1
    assert numbers["num_frames"] == 5
    assert numbers["video_values"] == frames.numel()
    assert numbers["latent_values"] == tokenizer.encode(to_float(frames)).latents.numel()
    assert numbers["output_bytes"] == (tmp_path / "out.mp4").stat().st_size
    assert f"PSNR {numbers['psnr']:.2f} dB" in capsys.readouterr().out


def test_windows_cover_every_frame_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    frames = noise(50, 16, 16)
    write_video(tmp_path / "in.mp4", frames, 24, lossless=True)
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert [len(piece) for piece in windows(reader, None, 4)] == [50]
    with VideoReader(tmp_path / "in.mp4") as reader:
        pieces = list(windows(reader, 9, 4))
    assert [len(piece) for piece in pieces] == [9, 9, 9, 9, 9, 5]
    assert torch.equal(torch.cat(pieces), frames)
    # Large frames: as many as fit, in whole latent steps, yet some at once however large they are.
    monkeypatch.setattr("kinema.apps.commands.reconstruct.WINDOW_PIXELS", 24 * 16 * 16)
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert [len(piece) for piece in windows(reader, None, 4)] == [21, 21, 8]
    monkeypatch.setattr("kinema.apps.commands.reconstruct.WINDOW_PIXELS", 1)
    with VideoReader(tmp_path / "in.mp4") as reader:
        assert [len(piece) for piece in windows(reader, None, 4)] == [17, 17, 16]


def test_windows_change_nothing(model: Path, tmp_path: Path):
    write_video(tmp_path / "in.mp4", noise(7, 16, 16), 24, lossless=True)
    argv = ["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main([*argv, "--window-frames", "5", "--lossless"]) == 0
    tokenizer = CausalVideoTokenizer.from_pretrained(str(model)).eval()
    frames = read_video(tmp_path / "in.mp4").frames
    with torch.inference_mode():
        wanted = to_uint8(tokenizer.reconstruct(to_float(frames))[0])
    got = read_video(tmp_path / "out.mp4").frames
    # Round-off may put a value on the other side of a half.
    assert (got.int() - wanted.int()).abs().max() <= 1
    assert (got != wanted).float().mean() < 0.01


def test_truncated_in_the_middle_writes_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_video(tmp_path / "in.mp4", noise(24, 16, 16), 24)
    data = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "in.mp4").write_bytes(data[: len(data) * 3 // 4])
    argv = ["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main(argv) == 2
    assert "truncated" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_too_small_for_ssim(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_video(tmp_path / "in.mp4", noise(1, 8, 8), 24, lossless=True)
    argv = ["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "PSNR" in out
    assert "SSIM" not in out


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other weights", "no config", "unknown setting"])
def test_damaged_tokenizer_folder(damage: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tmp_path / "tokenizer"
    shutil.copytree(model, folder)
    (weights,) = folder.glob("*.safetensors")
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "other weights":
        tensors = load_file(weights)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, weights)
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"bottleneck": "nonsense"}))
    write_video(tmp_path / "in.mp4", noise(1, 16, 16), 24)
    assert main(["reconstruct", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"), "--tokenizer", str(folder)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("kinema: error: ")
    assert error.count("\n") == 1
    assert str(folder) in error or "nonsense" in error
    assert not (tmp_path / "out.mp4").exists()


def test_frames_of_a_variable_rate_keep_their_times(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slides = make_video(tmp_path / "in.mkv", gray_ramp(3), [0, 2, 5], rate=25)
    argv = ["reconstruct", str(slides), str(tmp_path / "out.mp4"), "--tokenizer", str(model)]
    assert main([*argv, "--json", str(tmp_path / "r.json")]) == 0
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert [time for time, _ in reader.timed()] == pytest.approx([0, 2, 5])
        with VideoReader(slides) as before:
            assert reader.timing.duration == pytest.approx(before.timing.duration, abs=2e-3)
    numbers = json.loads((tmp_path / "r.json").read_text())
    assert (numbers["fps"], numbers["variable_rate"], numbers["sound"]) == (0.4, True, None)
    assert "0.4 fps (variable)" in capsys.readouterr().out


def test_sound_is_kept_unless_it_is_not_wanted(model: Path, tmp_path: Path):
    path = make_sounding_video(tmp_path / "in.mkv", 12, seconds=0.5)
    argv = ["reconstruct", str(path), "--tokenizer", str(model)]
    assert main([*argv, str(tmp_path / "out.mp4"), "--json", str(tmp_path / "r.json")]) == 0
    before, after = spans(path), spans(tmp_path / "out.mp4")
    assert after["audio"] == pytest.approx(before["audio"], abs=0.03)
    assert json.loads((tmp_path / "r.json").read_text())["sound"] == "copied"
    assert main([*argv, str(tmp_path / "quiet.mp4"), "--no-audio"]) == 0
    assert list(spans(tmp_path / "quiet.mp4")) == ["video"]
