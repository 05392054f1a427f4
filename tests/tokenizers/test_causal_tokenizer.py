"""The causal tokenizer: shapes, causality, the linear start, gradients, saving."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers.causal_vae import klt
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.interface import VideoTokenizer, latent_shape, pad_to_grid
from kinema.tokenizers.registry import make_tokenizer
from tokenizing import randomised, video

ARCHITECTURES = (
    "kl-4x4x4-c4",
    "kl-4x8x8-c16",
    "fsq-4x8x8-32768",
    "lfq-4x8x8-262144",
    "bsq-4x8x8-262144",
    "vq-4x8x8-8192",
    "kl-8x8x8-c16",
    "kl-4x16x16-c32",
    "fsq-8x16x16-4096",
    "kl-8x32x32-c128",
)
"""Presets with every ratio and every kind of bottleneck."""


@pytest.fixture(scope="module")
def tiny() -> CausalVideoTokenizer:
    return randomised(CausalVideoTokenizer(**TINY), vectors=0.5)


@pytest.mark.parametrize(
    ("name", "channels", "spatial"), [("kl-4x8x8-c16", 16, 8), ("fsq-4x8x8-32768", 6, 8), ("kl-4x16x16-c32", 32, 16)]
)
def test_presets_have_the_size_they_are_named_after(name: str, channels: int, spatial: int):
    model = make_tokenizer(name)
    assert model.temporal_compression_ratio == 4
    assert model.spatial_compression_ratio == spatial
    with torch.no_grad():
        code = model.encode(video(5, 32, 48))
    assert code.latents.shape == (1, channels, 2, 32 // spatial, 48 // spatial)
    assert (code.indices is not None) == name.startswith("fsq")
    assert (code.latent_dist is not None) == name.startswith("kl")
    if code.indices is not None:
        assert model.quantizer.codebook_size == 32768  # pyright: ignore[reportAttributeAccessIssue]


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encoding_a_prefix_gives_the_prefix_of_the_code(name: str):
    model = randomised(make_tokenizer(name), vectors=0.5)
    ct, cs = model.temporal_compression_ratio, model.spatial_compression_ratio
    clip = video(1 + 2 * ct, 2 * cs, 2 * cs)
    whole, encoded = model.encoder(clip), model.encode(clip)
    for k in range(2):
        prefix = clip[:, :, : 1 + k * ct]
        assert (model.encoder(prefix) - whole[:, :, : 1 + k]).abs().max() < 1e-5 * whole.abs().max()
        part = model.encode(prefix)
        if part.indices is None:
            error = (part.latents - encoded.latents[:, :, : 1 + k]).abs().max()
            assert error < 1e-5 * encoded.latents.abs().max()
        else:
            assert encoded.indices is not None
            # A value within float round-off of the middle between two codes may fall to either side.
            assert (part.indices != encoded.indices[:, : 1 + k]).float().mean() < 0.02


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoding_a_prefix_gives_the_prefix_of_the_video(name: str):
    model = randomised(make_tokenizer(name), vectors=0.5)
    ct = model.temporal_compression_ratio
    latents = torch.randn(1, model.latent_channels, 3, 2, 2, generator=torch.Generator().manual_seed(2))
    whole = model.decode(latents).sample
    assert whole.shape[2] == 1 + 2 * ct
    for k in range(2):
        part = model.decode(latents[:, :, : k + 1]).sample
        assert (part - whole[:, :, : 1 + k * ct]).abs().max() < 1e-5 * whole.abs().max()


def test_is_what_pipelines_rely_on(tiny: CausalVideoTokenizer):
    assert isinstance(tiny, VideoTokenizer)


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(frame=st.integers(0, 12))
def test_a_frame_changes_its_latent_step_and_none_before(tiny: CausalVideoTokenizer, frame: int):
    clip = video(13)
    other = clip.clone()
    other[:, :, frame] = -other[:, :, frame]
    changed = (tiny.encode(clip).latents - tiny.encode(other).latents).abs().amax(dim=(0, 1, 3, 4))
    step = -(-frame // 4)
    scale = tiny.encode(clip).latents.abs().max()
    assert (changed[:step] <= 1e-6 * scale).all()
    assert changed[step] > 1e-3 * scale


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(step=st.integers(0, 3))
def test_a_latent_step_changes_its_frames_and_none_before(tiny: CausalVideoTokenizer, step: int):
    latents = tiny.encode(video(13)).latents
    other = latents.clone()
    other[:, :, step] += 1.0
    changed = (tiny.decode(latents).sample - tiny.decode(other).sample).abs().amax(dim=(0, 1, 3, 4))
    first = 0 if step == 0 else 4 * step - 3
    assert (changed[:first] <= 1e-6 * changed.max()).all()
    assert (changed[first : 4 * step + 1] > 1e-3 * changed.max()).all()


@torch.no_grad()
@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 11), height=st.integers(1, 26), width=st.integers(1, 26), batch=st.integers(1, 2))
def test_reconstruction_has_the_shape_of_the_input(
    tiny: CausalVideoTokenizer, frames: int, height: int, width: int, batch: int
):
    clip = video(frames, height, width, batch)
    code = tiny.encode(clip)
    assert code.latents.shape[2:] == latent_shape(frames, height, width, 4, 8)
    assert (code.num_frames, code.height, code.width) == (frames, height, width)
    result = tiny.reconstruct(clip)
    assert result.shape == clip.shape
    assert result.abs().max() <= 1.0


@torch.no_grad()
def test_padding_repeats_the_last_frame_and_the_edges(tiny: CausalVideoTokenizer):
    clip = video(6, 12, 20)
    padded = pad_to_grid(clip, 4, 8)
    assert padded.shape == (1, 3, 9, 16, 24)
    assert torch.equal(padded[:, :, :6, :12, :20], clip)
    assert torch.equal(padded[:, :, 7, :12, :20], clip[:, :, 5])
    assert torch.equal(padded[:, :, :6, 15, :20], clip[:, :, :, 11])
    assert torch.equal(tiny.encode(clip).latents, tiny.encode(padded).latents)


@torch.no_grad()
def test_decode_crops_within_the_last_step_and_refuses_anything_else(tiny: CausalVideoTokenizer):
    latents = torch.zeros(1, 4, 3, 2, 2)
    assert tiny.decode(latents).sample.shape == (1, 3, 9, 16, 16)
    assert tiny.decode(latents, num_frames=6, height=9, width=16).sample.shape == (1, 3, 6, 9, 16)
    for bad in ({"num_frames": 5}, {"num_frames": 10}, {"height": 8}, {"width": 17}):
        (name, value) = next(iter(bad.items()))
        with pytest.raises(KinemaError, match=rf"`{name}` \(={value}\)"):
            tiny.decode(latents, **bad)


@torch.no_grad()
def test_clips_of_a_batch_do_not_mix(tiny: CausalVideoTokenizer):
    clips = video(5, batch=3)
    one = tiny.reconstruct(clips[1:2])
    assert torch.allclose(tiny.reconstruct(clips)[1:2], one, atol=1e-5)


@torch.no_grad()
def test_untrained_with_linear_start_is_the_best_linear_code():
    """Against principal components of the raw 4×8×8 pixel blocks, found by an SVD."""
    model = CausalVideoTokenizer(**TINY)
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(24, 3, 9, 24, 24, generator=generator)
    clips = torch.nn.functional.avg_pool3d(base, (3, 5, 5), stride=1, padding=(1, 2, 2))
    model.init_linear([clips])
    error = (model.decode(model.encode(clips).latents).sample - clips)[:, :, 1:].square().sum()

    blocks = clips[:, :, 1:].unfold(2, 4, 4).unfold(3, 8, 8).unfold(4, 8, 8).permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4)
    blocks = blocks.reshape(-1, 768).double()
    centred = blocks - blocks.mean(0)
    best = torch.linalg.svdvals(centred)[4:].square().sum()
    # The code also serves the first frames, so that it cannot be the best for the other blocks alone.
    assert best <= error < 1.1 * best
    latents = model.encode(clips).latents
    assert torch.allclose(latents.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-2)


@torch.no_grad()
def test_large_blocks_start_from_a_sample(monkeypatch):
    """The same components, where the sample is all there is."""
    clips = torch.nn.functional.avg_pool3d(video(9, 24, 24, batch=4), 3, stride=1, padding=1)
    exact, sampled = (CausalVideoTokenizer(**TINY) for _ in range(2))
    exact.init_linear([clips])
    monkeypatch.setattr(klt, "LARGEST_COVARIANCE", 10)
    sampled.init_linear(clips[i : i + 1] for i in range(4))
    wanted = exact.decode(exact.encode(clips).latents).sample
    assert torch.allclose(sampled.decode(sampled.encode(clips).latents).sample, wanted, atol=1e-4)
    monkeypatch.setattr(klt, "MOST_SAMPLES", 4)
    with pytest.raises(KinemaError, match="of 4 blocks"):
        sampled.init_linear([clips])


@torch.no_grad()
def test_still_clips_have_fewer_components_than_channels(monkeypatch):
    monkeypatch.setattr(klt, "LARGEST_COVARIANCE", 10)
    model = CausalVideoTokenizer(**TINY)
    clips = (torch.rand(6, 3, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1).expand(6, 3, 5, 16, 16)
    model.init_linear([clips])
    assert (model.decode(model.encode(clips).latents).sample - clips).square().mean() < 1e-6


def test_every_weight_gets_a_gradient():
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5).train()
    clip = video(5, batch=2)
    reconstruction, output = model(clip, generator=torch.Generator().manual_seed(0))
    ((reconstruction - clip).square().mean() + output.losses["kl"]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_training_forward_samples_and_encode_does_not(tiny: CausalVideoTokenizer):
    clip = video(5)
    with torch.no_grad():
        assert torch.equal(tiny.encode(clip).latents, tiny.encode(clip).latents)
        first, _ = tiny(clip, generator=torch.Generator().manual_seed(0))
        same, _ = tiny(clip, generator=torch.Generator().manual_seed(0))
        other, _ = tiny(clip, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_statistics_are_applied_and_saved(tiny: CausalVideoTokenizer, tmp_path):
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5)
    latents = model.encode(video(9, batch=2)).latents
    assert torch.equal(model.normalize(latents), latents)
    mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
    model.set_latent_statistics(mean, std)
    model.save_pretrained(tmp_path)
    loaded = CausalVideoTokenizer.from_pretrained(tmp_path)
    normalised = loaded.normalize(latents)
    assert torch.allclose(normalised.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(normalised.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=1e-4)
    assert torch.allclose(loaded.denormalize(normalised), latents, atol=1e-5)
    assert torch.equal(loaded.encode(video(9, batch=2)).latents, latents)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}


@torch.no_grad()
def test_half_precision_weights_load_as_float32(tmp_path):
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5)
    model.half().save_pretrained(tmp_path)
    loaded = CausalVideoTokenizer.from_pretrained(tmp_path, dtype=torch.float32)
    assert loaded.dtype == torch.float32
    assert loaded.reconstruct(video(5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottleneck": {"name": "vq9"}}, r"`bottleneck` \(='vq9'\) must be one of kl, fsq"),
        ({"bottleneck": {"name": "kl", "latent_channels": 0}}, r"`latent_channels` \(=0\) must be at least 1"),
        ({"bottleneck": {"name": "fsq"}}, r"`bottleneck` 'fsq' \(without 'levels'\) must have 'levels'"),
        ({"bottleneck": {"name": "fsq", "levels": (8, 1)}}, r"`levels` \(=\(8, 1\)\)"),
        ({"encoder_widths": (8, 7, 16)}, r"`out_channels` \(=7\) must divide"),
    ],
)
def test_wrong_configs_are_refused(change: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        CausalVideoTokenizer(**{**TINY, **change})


@torch.no_grad()
def test_golden_reconstruction(tiny: CausalVideoTokenizer):
    """Any change of the arithmetic shows here; the values are this model's own under the seeds above."""
    code = tiny.encode(video(5))
    assert code.latents.abs().mean().item() == pytest.approx(GOLDEN_LATENTS, rel=1e-4)
    assert tiny.decode(code.latents).sample.abs().mean().item() == pytest.approx(GOLDEN_VIDEO, rel=1e-4)


GOLDEN_LATENTS = 0.78495401
GOLDEN_VIDEO = 1.1380287
