"""VidTok in a module of kinema's own, against the original.

`golden/vidtok.safetensors` was made once with the original code (github.com/microsoft/VidTok, commit d6ad92d,
`model_3dcausal.py` and `regularizers.py`) at a small but complete size: ch 8, ch_mult 1, 2, 3, 3, 4 latent channels,
two blocks a level. Every weight is random, those that training starts at zero too, and rounded to bfloat16, in which
the file keeps them. The KL encoder's first four outputs are the FSQ encoder's. For 1, 5 and 17 frames the file holds a
video, the moments, the mode decoded, FSQ's codes and indices (8 levels a channel) and the codes decoded.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers.interface import VideoTokenizer, pad_to_grid
from kinema.tokenizers.published.loading import load_tokenizer
from kinema.tokenizers.published.vidtok import VidTokTokenizer, infer_options
from kinema.tokenizers.published.vidtok_networks import Decoder, Encoder

LENGTHS = (1, 5, 17)
CONVERTED = ("encoder.conv_out.conv.weight", "encoder.conv_out.conv.bias")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("golden") / "vidtok.safetensors")


def weights_of(golden: dict[str, Tensor], bottleneck: str) -> dict[str, Tensor]:
    weights = {n.removeprefix("weights."): v.float() for n, v in golden.items() if n.startswith("weights.")}
    if bottleneck == "fsq":
        weights |= {name: weights[name][:4].clone() for name in CONVERTED}
    return weights


@pytest.fixture(scope="module")
def models(golden: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, VidTokTokenizer]:
    """Both kinds, from checkpoints as VidTok's trainer writes them: with the loss' networks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for bottleneck in ("kl", "fsq"):
        weights = weights_of(golden, bottleneck) | {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
        torch.save({"state_dict": weights, "global_step": 7}, folder / f"{bottleneck}.ckpt")
    return {name: VidTokTokenizer.from_checkpoint(folder / f"{name}.ckpt") for name in ("kl", "fsq")}


def close(got: Tensor, wanted: Tensor) -> None:
    """Equal to 1e-5 of the largest value, as the project asks of imported models."""
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("frames", LENGTHS)
def test_kl_is_the_original(frames: int, golden: dict[str, Tensor], models: dict[str, VidTokTokenizer]):
    video = golden[f"{frames}.video"].float()
    code = models["kl"].encode(video)
    mean, logvar = golden[f"{frames}.moments"].chunk(2, dim=1)
    close(code.latents, mean)
    close(code.latent_dist.logvar, logvar)
    close(code.losses["kl"] * mean.numel(), golden[f"{frames}.kl"])
    close(models["kl"].decode(mean).sample, golden[f"{frames}.kl_video"])


@torch.no_grad()
@pytest.mark.parametrize("frames", LENGTHS)
def test_fsq_is_the_original(frames: int, golden: dict[str, Tensor], models: dict[str, VidTokTokenizer]):
    code = models["fsq"].encode(golden[f"{frames}.video"].float())
    indices, codes = golden[f"{frames}.indices"], golden[f"{frames}.codes"]
    assert code.indices is not None
    assert torch.equal(code.indices, indices.long())
    close(code.latents, codes)
    close(models["fsq"].indices_to_latents(indices.long()), codes)
    close(models["fsq"].decode(codes).sample, golden[f"{frames}.fsq_video"])


@pytest.mark.parametrize("frames", [1, 2, 5, 16, 17])
def test_every_frame_comes_back(frames: int, models: dict[str, VidTokTokenizer]):
    """The original returns 1 of 2 and 13 of 16 frames."""
    tokenizer = models["kl"]
    assert isinstance(tokenizer, VideoTokenizer)
    video = torch.rand(1, 3, frames, 15, 9) * 2 - 1
    reconstruction = tokenizer.reconstruct(video)
    assert reconstruction.shape == video.shape
    whole = tokenizer.reconstruct(pad_to_grid(video, 4, 8))
    torch.testing.assert_close(reconstruction, whole[:, :, :frames, :15, :9])


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_streams_are_the_whole_clip(cuts: list[int], models: dict[str, VidTokTokenizer]):
    tokenizer = models["kl"]
    video = torch.rand(1, 3, sum(cuts), 8, 8) * 2 - 1
    latents = torch.cat(list(tokenizer.encode_stream(video.split(cuts, dim=2))), dim=2)
    wanted = tokenizer.encode(video).latents
    close(latents, wanted)
    steps = [1] * (wanted.shape[2] - wanted.shape[2] // 2 * 2) + [2] * (wanted.shape[2] // 2)
    frames = torch.cat(list(tokenizer.decode_stream(wanted.split(steps, dim=2), num_frames=sum(cuts))), dim=2)
    close(frames, tokenizer.decode(wanted, num_frames=sum(cuts)).sample)


@torch.no_grad()
def test_no_latent_depends_on_later_frames(models: dict[str, VidTokTokenizer]):
    video = torch.rand(1, 3, 13, 16, 16) * 2 - 1
    changed = video.clone()
    changed[:, :, 9:] *= -1
    one, other = (models["kl"].encode(x).latents for x in (video, changed))
    close(other[:, :, :3], one[:, :, :3])
    assert (other[:, :, 3] - one[:, :, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("bottleneck", ["kl", "fsq"])
def test_saved_as_a_folder_of_kinemas(bottleneck: str, models: dict[str, VidTokTokenizer], tmp_path: Path):
    tokenizer = models[bottleneck]
    tokenizer.save_pretrained(tmp_path)
    loaded: Any = load_tokenizer(tmp_path)
    assert type(loaded) is VidTokTokenizer
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    assert torch.equal(loaded.reconstruct(video), tokenizer.reconstruct(video))


def test_loaded_by_its_file(golden: dict[str, Tensor], models: dict[str, VidTokTokenizer], tmp_path: Path):
    save_file(weights_of(golden, "kl"), tmp_path / "vidtok.safetensors")
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    loaded = load_tokenizer(tmp_path / "vidtok.safetensors")
    assert torch.equal(loaded.reconstruct(video), models["kl"].reconstruct(video))


@pytest.mark.parametrize(
    ("name", "options", "ratios"),
    [
        ("kl 4x8x8", {}, (4, 8)),
        ("kl 4x4x4", {"spatial_down": [1, 2], "spatial_up": [1, 2]}, (4, 4)),
        ("kl 2x8x8", {"temporal_down": [1], "temporal_up": [2]}, (2, 8)),
        ("kl 4x16x16", {"widths": [128, 256, 512, 512, 512], "spatial_down": [0, 1, 2, 3], "temporal_down": [2, 3],
                        "spatial_up": [1, 2, 3, 4]}, (4, 16)),
    ],
)  # fmt: skip
def test_published_sizes(name: str, options: dict[str, Any], ratios: tuple[int, int]):
    """Each configuration of the published causal models builds, and is inferred from its own weights' shapes."""
    with torch.device("meta"):
        model = VidTokTokenizer(**options)
    assert (model.temporal_compression_ratio, model.spatial_compression_ratio) == ratios
    inferred = infer_options(model.state_dict())
    config: Any = model.config
    assert {key: list(config[key]) for key in inferred if key.startswith(("widths", "spatial", "temporal"))} == {
        key: value for key, value in inferred.items() if key.startswith(("widths", "spatial", "temporal"))
    }
    if name == "kl 4x8x8":
        assert len(model.state_dict()) == 416
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(157.5e6, rel=1e-3)


def test_other_checkpoints_are_refused(golden: dict[str, Tensor], tmp_path: Path):
    weights = weights_of(golden, "kl")

    def refused(name: str, content: Any) -> str:
        torch.save(content, tmp_path / name)
        with pytest.raises(KinemaError) as caught:
            VidTokTokenizer.from_checkpoint(tmp_path / name)
        return str(caught.value)

    assert "version 1.0" in refused("vidtok_kl_causal_488_4chn_v1_1.ckpt", weights)
    assert "encoder.conv_out.conv.weight" in refused("other.ckpt", {"state_dict": {"a": torch.zeros(1)}})
    short = {k: v for k, v in weights.items() if k != "encoder.mid.attn_1.q.conv.bias"}
    assert "1 weights are missing, unknown or of another shape, such as 'encoder.mid.attn_1.q" in refused(
        "s.ckpt", short
    )
    assert "regularization.x" in refused("r.ckpt", weights | {"regularization.x": torch.zeros(1)})
    wide = weights | {"encoder.conv_in.conv.bias": torch.zeros(9)}
    assert "encoder.conv_in.conv.bias" in refused("wide.ckpt", wide)
    assert "tensors by name" in refused("numbers.ckpt", {"state_dict": {"a": 1}})
    assert "weights alone" in refused("code.ckpt", {"state_dict": Encoder(4, [8, 8], 1, [0], [0])})
    odd = weights | {name: weights[name][:5] for name in CONVERTED}
    assert "`fsq_levels`" in refused("odd.ckpt", odd)
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "r.ckpt").read_bytes()[:1000])
    with pytest.raises(KinemaError, match="weights alone"):
        VidTokTokenizer.from_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(KinemaError, match="does not exist"):
        VidTokTokenizer.from_checkpoint(tmp_path / "none.ckpt")


def test_bad_options():
    with pytest.raises(KinemaError, match="`bottleneck`"):
        VidTokTokenizer(bottleneck={"name": "vq"})
    with pytest.raises(KinemaError, match="must double as often"):
        VidTokTokenizer(widths=[8, 8], spatial_down=[0], spatial_up=[], temporal_down=[], temporal_up=[])


def test_gradients_reach_every_weight():
    torch.manual_seed(0)
    levels: dict[str, Any] = {
        "spatial_down": [0, 1],
        "temporal_down": [0, 1],
        "spatial_up": [1, 2],
        "temporal_up": [1, 2],
    }
    tokenizer = VidTokTokenizer(widths=[8, 8, 8], blocks=1, **levels)
    reconstruction, output = tokenizer(torch.rand(1, 3, 5, 8, 8) * 2 - 1)
    (reconstruction.square().mean() + output.losses["kl"]).backward()
    # A bias of the keys moves all scores of a query alike, which the softmax does not see.
    seen = [p for name, p in tokenizer.named_parameters() if not name.endswith("k.conv.bias")]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in seen)


def test_networks_keep_nothing_between_clips(golden: dict[str, Tensor], models: dict[str, VidTokTokenizer]):
    encoder, decoder = models["kl"].encoder, models["kl"].decoder
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    video = golden["5.video"].float()
    assert torch.equal(encoder(video), encoder(video))
