"""One loader for all tokenizers: by folder, embedded name, checkpoint; what is refused, and how."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinema import CausalVideoTokenizer
from kinema.apps import loading as apps
from kinema.apps.cli import main
from kinema.errors import KinemaError
from kinema.eval.frames.psnr import clip_psnr
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.published.diffusers import DiffusersTokenizer
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.video import read_video, write_video

diffusers: Any = import_module("diffusers")

WAN: dict[str, Any] = dict(
    base_dim=4, z_dim=2, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1, 0.2], latents_std=[1.0, 2.0]
)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder of diffusers, with an auto-encoder in `vae`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    diffusers.AutoencoderKLWan(**WAN).save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    CausalVideoTokenizer(**TINY).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


@torch.no_grad()
@pytest.mark.parametrize("form", ["{}:vae", "{}/vae"])
def test_diffusers_by_folder(form: str, wan: Path):
    tokenizer: Any = load_tokenizer(form.format(wan))
    assert type(tokenizer) is DiffusersTokenizer
    assert not tokenizer.training
    saved: Any = diffusers.AutoencoderKLWan.from_pretrained(wan / "vae")
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.encode(video).latents, saved.encode(video).latent_dist.mode())
    assert tokenizer.normalize(torch.ones(1, 2, 1, 1, 1)).flatten().tolist() == pytest.approx([0.9, 0.4])


@torch.no_grad()
def test_kinemas_by_folder_and_by_the_commands(own: Path):
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    wanted = CausalVideoTokenizer.from_pretrained(own).eval().encode(video).latents
    for tokenizer in (load_tokenizer(own), load_tokenizer(str(own)), apps.load_tokenizer(own, device="cpu")):
        assert type(tokenizer) is CausalVideoTokenizer
        assert torch.equal(tokenizer.encode(video).latents, wanted)


@pytest.mark.parametrize(("name", "channels"), [("kl-4x8x8-c16", 16), ("fsq-4x8x8-32768", 6), ("toybox/vae", 32)])
def test_embedded_by_name(name: str, channels: int):
    assert load_tokenizer(name).latent_channels == channels
    assert apps.load_tokenizer(name, device="cpu").latent_channels == channels


def test_without_a_name_the_commands_take_the_general_one():
    assert apps.load_tokenizer(device="cpu").latent_channels == 16


@torch.no_grad()
def test_the_embedded_discrete_one_codes_a_smooth_clip():
    """Soft shapes that drift: what its tokens hold, and that they alone are enough to decode."""
    tokenizer: Any = load_tokenizer("fsq-4x8x8-32768")
    t, y, x = torch.meshgrid(torch.arange(9.0), torch.arange(64.0), torch.arange(64.0), indexing="ij")
    channels = [torch.sin(x / 11 + t / 9 + k) * torch.cos(y / 14 - t / 12 + 2 * k) for k in range(3)]
    clip = 0.8 * torch.stack(channels)[None]
    code = tokenizer.encode(clip)
    assert code.indices is not None
    assert code.indices.shape == (1, 3, 8, 8)
    assert 0 <= int(code.indices.min()) <= int(code.indices.max()) < 32768
    latents = tokenizer.indices_to_latents(code.indices)
    assert torch.allclose(latents, code.latents, atol=1e-6)
    psnr = float(clip_psnr(clip, tokenizer.decode(latents).sample.clamp(-1, 1)))
    print(f"{psnr:.2f} dB")
    assert psnr > 20


def test_the_command_takes_any(wan: Path, tmp_path: Path):
    frames = torch.randint(0, 256, (6, 15, 17, 3), dtype=torch.uint8)
    write_video(tmp_path / "in.mkv", frames, 24, lossless=True)
    line = ["reconstruct", str(tmp_path / "in.mkv"), str(tmp_path / "out.mkv"), "--tokenizer", f"{wan}:vae"]
    assert main([*line, "--device", "cpu"]) == 0
    assert read_video(tmp_path / "out.mkv").frames.shape == frames.shape


def refusal(name: str | Path, argument: str = "tokenizer") -> str:
    with pytest.raises(KinemaError) as caught:
        load_tokenizer(name, argument=argument)
    message = str(caught.value)
    assert message.startswith(f"`{argument}` (={str(name)!r}) must be a complete tokenizer: ")
    assert "\n" not in message
    return message


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "no such folder or file" in refusal("nothing")
    assert "no such folder or file" in refusal("a/b/c", argument="--tokenizer")
    refusal("nobody/nothing")  # a hub id, without a network
    (tmp_path / "empty").mkdir()
    refusal(tmp_path / "empty")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    assert ".ckpt" in refusal(tmp_path / "clip.mp4")


def test_classes_that_are_not_known(tmp_path: Path):
    """No class is imported by a name from a file."""
    for number, config in enumerate(({"_class_name": "os.system"}, {"_class_name": "UNet2DModel"}, {}, [1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        refusal(folder)
    assert "AutoencoderKLWan" in refusal(tmp_path / "0")
    (tmp_path / "0" / "config.json").write_text("{ no JSON")
    refusal(tmp_path / "0")


@pytest.mark.parametrize("damage", ["none", "cut", "fewer"])
@pytest.mark.parametrize("kind", ["own", "wan"])
def test_weights_that_do_not_fit(kind: str, damage: str, own: Path, wan: Path, tmp_path: Path):
    source = own if kind == "own" else wan / "vae"
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "config.json").write_text((source / "config.json").read_text())
    (weights,) = source.glob("*.safetensors")
    if damage == "cut":
        (folder / weights.name).write_bytes(weights.read_bytes()[:5000])
    elif damage == "fewer":
        tensors = load_file(weights)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, folder / weights.name)
    refusal(folder)


def test_device_is_named(own: Path):
    with pytest.raises(KinemaError, match="`device`"):
        apps.load_tokenizer(own, device="nonsense")
    assert str(getattr(load_tokenizer(own, "meta"), "device", None)) == "meta"
