"""Memory flags, checks of values, statistics in buffers, and configs of earlier versions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers import base
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.checks import check_values
from kinema.tokenizers.holistic.model import HolisticVideoTokenizer
from kinema.tokenizers.holistic.presets import TINY as TINY_HOLISTIC
from kinema.tokenizers.transformer.model import TransformerVideoTokenizer
from kinema.tokenizers.transformer.presets import TINY as TINY_TRANSFORMER
from kinema.weights import embedded_dir
from tokenizing import close, randomised, video

KINDS: dict[str, Any] = {
    "causal": (CausalVideoTokenizer, TINY),
    "transformer": (TransformerVideoTokenizer, TINY_TRANSFORMER),
    "holistic": (HolisticVideoTokenizer, TINY_HOLISTIC),
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    cls, config = KINDS[request.param]
    return randomised(cls(**config))


def gradients(model: Any, clip: Tensor) -> tuple[Tensor, Tensor]:
    """The video there and back, and the gradient of its sum of squares with respect to the clip."""
    clip = clip.clone().requires_grad_(True)
    reconstruction = model.decode(model.encode(clip).latents, *clip.shape[2:]).sample
    (gradient,) = torch.autograd.grad(reconstruction.square().sum(), clip)
    return reconstruction.detach(), gradient


def test_flags_change_neither_values_nor_gradients(tokenizer: Any, monkeypatch: pytest.MonkeyPatch):
    clip = video(14, 32, 16, batch=2)
    tokenizer.use_framewise_encoding = tokenizer.use_framewise_decoding = tokenizer.use_tiling = False
    wanted, gradient = gradients(tokenizer, clip)
    monkeypatch.setattr(base, "PIECE_PIXELS", 5 * 32 * 16)
    tokenizer.enable_slicing()
    tokenizer.use_framewise_encoding = tokenizer.use_framewise_decoding = True
    result, in_pieces = gradients(tokenizer, clip)
    assert close(result, wanted)
    assert close(in_pieces, gradient, 1e-4)
    tokenizer.disable_slicing()
    assert close(gradients(tokenizer, clip)[0], wanted)


@pytest.mark.parametrize("enabled", [True, False])
def test_pieces_depend_on_the_flag_and_not_on_gradients(enabled: bool, monkeypatch: pytest.MonkeyPatch):
    model = randomised(CausalVideoTokenizer(**TINY))
    lengths: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[2]))
    monkeypatch.setattr(base, "PIECE_PIXELS", 5 * 16 * 16)
    model.use_framewise_encoding = enabled
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            model.encode(video(13))
        assert lengths == ([5, 4, 4] if enabled else [13])
        lengths.clear()
    model(video(13))  # the training pass
    assert lengths == [13]


def test_slices_are_single_clips():
    model = randomised(CausalVideoTokenizer(**TINY))
    sizes: list[int] = []
    for network in (model.encoder, model.decoder):
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    model.enable_slicing()
    model.reconstruct(video(5, batch=3))
    assert sizes == [1] * 6


def test_gradient_checkpointing_refuses_pieces():
    model = CausalVideoTokenizer(**TINY).train()
    model.enable_gradient_checkpointing()
    model(video(5))[0].sum().backward()
    with pytest.raises(KinemaError, match=r"`use_framewise_encoding`.* must be False with gradient checkpointing"):
        model.encode(video(5))
    model.use_framewise_encoding = False
    model.encode(video(5)).latents.sum().backward()


def test_values_are_checked_unless_disabled_and_shapes_always():
    model = randomised(CausalVideoTokenizer(**TINY))
    outside = video(5) * 3
    with pytest.raises(KinemaError, match="must lie in"):
        model.encode(outside)
    with check_values(False):
        model.encode(outside)
        for call in (model.encode, model):
            with pytest.raises(KinemaError, match="of shape"):
                call(video(5)[0])
    with pytest.raises(KinemaError, match="of shape"):
        model(torch.zeros(1, 4, 5, 16, 16))


def test_statistics_are_buffers_in_float32_and_only_the_config_is_saved(tmp_path: Path):
    model = CausalVideoTokenizer(**TINY)
    latents = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(model.normalize(latents), latents)
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.4]), torch.tensor([1.1, 0.7, 2.3, 0.9])
    model.set_latent_statistics(mean, std)
    wanted = (latents - mean.view(1, 4, 1, 1, 1)) / std.view(1, 4, 1, 1, 1)
    buffers = dict(model.named_buffers())
    assert [buffers[name].tolist() for name in ("_latents_mean", "_latents_std")] == [mean.tolist(), std.tolist()]
    assert torch.equal(model.normalize(latents), wanted)
    assert torch.equal(model.half().normalize(latents), wanted)
    model.float().save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    assert not any("latents" in name for name in load_file(weights))
    assert json.loads((tmp_path / "config.json").read_text())["latents_mean"] == mean.tolist()
    loaded = CausalVideoTokenizer.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert torch.equal(loaded.normalize(latents), wanted)
    assert next(loaded.to("meta").buffers()).is_meta
    with pytest.raises(KinemaError, match=r"`latents_std` \(=\[0\.0, .*\) must be 4 finite numbers above 0"):
        model.set_latent_statistics(mean, std * 0)
    with pytest.raises(KinemaError, match=r"`latents_mean` \(=\[0\.0\]\) must be 4 finite numbers"):
        CausalVideoTokenizer(**TINY, latents_mean=[0.0], latents_std=[1.0])


@pytest.mark.parametrize("name", ["kl-4x8x8-c16", "fsq-4x8x8-32768"])
def test_folders_of_earlier_versions_load_and_are_saved_in_the_new_form(name: str, tmp_path: Path):
    old = json.loads((embedded_dir(name) / "config.json").read_text())
    assert isinstance(old["bottleneck"], str)
    model = CausalVideoTokenizer.from_pretrained(embedded_dir(name))
    model.save_pretrained(tmp_path)
    new = json.loads((tmp_path / "config.json").read_text())
    assert new["bottleneck"]["name"] == old["bottleneck"]
    assert not {"latent_channels", "fsq_levels", "codebook_size"} & set(new)
    assert all(new[key] == old[key] for key in new if key != "bottleneck" and key[0] != "_")
    again = CausalVideoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(video(5)).latents, model.encode(video(5)).latents)
    untrained = CausalVideoTokenizer.from_config(old)
    assert untrained.config["bottleneck"] == new["bottleneck"]
