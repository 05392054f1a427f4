"""The transformer tokenizer: attention, causality, streams, tiles, the linear start, presets, saving."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.flops import FlopCounter
from kinema.tokenizers import base
from kinema.tokenizers.interface import VideoTokenizer, latent_shape
from kinema.tokenizers.presets import kl
from kinema.tokenizers.quantizers import BOTTLENECKS, DiscreteBottleneck
from kinema.tokenizers.registry import make_tokenizer
from kinema.tokenizers.streaming import StreamCache
from kinema.tokenizers.transformer.layers import SpatialAttention, TemporalAttention
from kinema.tokenizers.transformer.model import TransformerVideoTokenizer
from kinema.tokenizers.transformer.presets import PRESETS, TINY
from tokenizing import close, cut, noise, randomised, video


@pytest.fixture(scope="module")
def tiny() -> TransformerVideoTokenizer:
    return randomised(TransformerVideoTokenizer(**TINY))


def turned(x: Tensor, position: list[float], pairs: int, reach: int) -> Tensor:
    """Rotary positions by complex numbers; as many planes for each coordinate."""
    angles = torch.cat([p * float(reach) ** -torch.linspace(0, 1, pairs) for p in position])
    half = x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], dim=-1)


def naive(layer: SpatialAttention | TemporalAttention, x: Tensor, sees, place, reach: int) -> Tensor:
    """Attention cell by cell. `sees(a, b)` says whether cell a sees cell b, `place(a)` where a cell is."""
    cells = [(t, i, j) for t in range(x.shape[1]) for i in range(x.shape[2]) for j in range(x.shape[3])]
    heads = x.shape[-1] // layer.head_dim
    pairs = layer.head_dim // 2 // len(place(cells[0]))
    out = torch.zeros_like(x)
    q, k, v = (part.unflatten(-1, (heads, -1)) for part in layer.qkv(x[0]).chunk(3, dim=-1))
    q, k = (
        x / x.square().mean(-1, keepdim=True).sqrt() * gain for x, gain in ((q, layer.query_gain), (k, layer.key_gain))
    )
    for a in cells:
        seen = [b for b in cells if sees(a, b)]
        query = turned(q[a], place(a), pairs, reach)
        scores = torch.stack([(query * turned(k[b], place(b), pairs, reach)).sum(-1) for b in seen])
        weights = (scores / layer.head_dim**0.5).softmax(dim=0)
        values = torch.stack([v[b] for b in seen])
        out[0][a] = (weights[..., None] * values).sum(dim=0).flatten()
    return layer.out(out)


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(size=st.tuples(st.integers(1, 7), st.integers(1, 7)), shift=st.sampled_from([0, 2]))
def test_attention_in_space_is_that_of_windows(size: tuple[int, int], shift: int):
    layer = randomised(SpatialAttention(16, 8, 4, shift))
    x = noise(1, 2, *size, 16)

    def window(cell: tuple[int, int, int]) -> tuple[int, int, int]:
        return cell[0], (cell[1] + shift) // 4, (cell[2] + shift) // 4

    expected = naive(layer, x, lambda a, b: window(a) == window(b), lambda a: [float(a[1]), float(a[2])], 4)
    assert close(layer(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("reach", [1, 3, 8])
def test_attention_in_time_sees_its_column_as_far_as_it_reaches(reach: int):
    layer = randomised(TemporalAttention(16, 8, reach))
    x = noise(1, 6, 2, 1, 16)
    expected = naive(layer, x, lambda a, b: a[1:] == b[1:] and 0 <= a[0] - b[0] < reach, lambda a: [float(a[0])], reach)
    assert close(layer(x), expected)
    cache = StreamCache()
    assert close(torch.cat([layer(part, cache) for part in x.split([1, 3, 2], dim=1)], dim=1), expected)


def test_is_what_pipelines_rely_on(tiny: TransformerVideoTokenizer):
    assert isinstance(tiny, VideoTokenizer)
    assert (tiny.temporal_compression_ratio, tiny.spatial_compression_ratio, tiny.latent_channels) == (4, 8, 4)


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(frame=st.integers(0, 12))
def test_a_frame_changes_its_latent_step_and_none_before(tiny: TransformerVideoTokenizer, frame: int):
    clip = video(13, 24, 24)
    other = clip.clone()
    other[:, :, frame] = -other[:, :, frame]
    one, two = tiny.encode(clip).latents, tiny.encode(other).latents
    changed = (one - two).abs().amax(dim=(0, 1, 3, 4))
    step = -(-frame // 4)
    assert (changed[:step] <= 1e-6 * one.abs().max()).all()
    assert (changed[step:] > 1e-3 * one.abs().max()).all()


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(step=st.integers(0, 3))
def test_a_latent_step_changes_its_frames_and_none_before(tiny: TransformerVideoTokenizer, step: int):
    latents = noise(1, 4, 4, 3, 3)
    other = latents.clone()
    other[:, :, step] += 1.0
    changed = (tiny.decode(latents).sample - tiny.decode(other).sample).abs().amax(dim=(0, 1, 3, 4))
    first = 0 if step == 0 else 4 * step - 3
    assert (changed[:first] <= 1e-6 * changed.max()).all()
    assert (changed[first:] > 1e-3 * changed.max()).all()


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 11), height=st.integers(1, 50), width=st.integers(1, 50), batch=st.integers(1, 2))
def test_reconstruction_has_the_shape_of_the_input(
    tiny: TransformerVideoTokenizer, frames: int, height: int, width: int, batch: int
):
    clip = video(frames, height, width, batch)
    code = tiny.encode(clip)
    assert code.latents.shape == (batch, 4, *latent_shape(frames, height, width, 4, 8))
    assert tiny.reconstruct(clip).shape == clip.shape
    assert close(tiny.encode(clip[-1:]).latents, code.latents[-1:])


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(
    frames=st.integers(1, 34),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    lengths=st.lists(st.integers(0, 9), max_size=8),
    steps=st.lists(st.integers(1, 3), max_size=6),
)
def test_streams_in_any_chunks_are_the_clip(
    tiny: TransformerVideoTokenizer, frames: int, size: tuple[int, int], lengths: list[int], steps: list[int]
):
    clip = video(frames, *size)
    latents = tiny.encode(clip).latents
    assert close(torch.cat(list(tiny.encode_stream(cut(clip, lengths))), dim=2), latents)
    chunks = [c for c in cut(latents, steps) if c.shape[2]]
    parts = list(tiny.decode_stream(chunks, num_frames=frames, height=size[0], width=size[1]))
    assert close(torch.cat(parts, dim=2), tiny.decode(latents, frames, *size).sample)


@torch.no_grad()
def test_two_streams_at_once_do_not_disturb_each_other(tiny: TransformerVideoTokenizer):
    one, two = video(13, 24, 24, seed=1), video(13, 16, 40, seed=2)
    streams = [tiny.encode_stream(cut(clip, [3, 3, 3])) for clip in (one, two)]
    parts = list(zip(*streams, strict=True))
    for clip, own in zip((one, two), zip(*parts, strict=True), strict=True):
        assert close(torch.cat(own, dim=2), tiny.encode(clip).latents)


@torch.no_grad()
def test_what_a_stream_keeps_does_not_grow(tiny: TransformerVideoTokenizer):
    def kept(frames: int) -> int:
        cache = StreamCache()
        list(tiny.encode_stream(video(frames, 24, 24).split(4, dim=2), cache=cache))
        assert len(cache.state) == 2  # one for each block of the encoder
        return sum(x.untyped_storage().nbytes() for _, *pair in cache.state.values() for x in pair)

    assert kept(9) == kept(41) > 0
    cache = StreamCache()
    list(tiny.encode_stream([video(5, 24, 24)], cache=cache))
    with pytest.raises(KinemaError, match=r"chunk \(2 clips of \(3, 3\) cells\) must have the size of those before"):
        tiny.encoder(video(4, 24, 24, batch=2), cache)
    with pytest.raises(KinemaError, match=r"`chunk` \(of batch 2 and size 24x24\) must have .* batch 1"):
        list(tiny.encode_stream([video(4, 24, 24, batch=2)], cache=cache))


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(height=st.integers(20, 160), width=st.integers(20, 80), tile=st.integers(32, 90))
def test_tiles_are_the_whole_frame(height: int, width: int, tile: int):
    model = randomised(TransformerVideoTokenizer(**TINY))
    clip = video(5, height, width)
    model.disable_tiling()
    code = model.encode(clip)
    whole = model.decode(code.latents, 5, height, width).sample
    model.enable_tiling(tile)
    assert close(model.encode(clip).latents, code.latents)
    assert close(model.decode(code.latents, 5, height, width).sample, whole)
    assert close(torch.cat(list(model.encode_stream(clip.split(2, dim=2))), dim=2), code.latents)


@torch.no_grad()
def test_the_context_is_as_far_as_an_output_can_depend_and_no_further(tiny: TransformerVideoTokenizer):
    for network, channels, cell in ((tiny.encoder, 3, 8), (tiny.decoder, 4, 1)):
        size = 4 * network.context + 8
        x = noise(1, channels, 1, cell, cell * size)
        reached = []
        for middle in range(size // 2, size // 2 + TINY["window"]):
            other = x.clone()
            other[..., middle * cell : (middle + 1) * cell] += 1
            changed = (network(x) - network(other)).abs().amax(dim=(0, 1, 2, 3)).unflatten(0, (size, -1)).amax(dim=1)
            cells = changed.gt(1e-7 * changed.max()).nonzero().flatten()
            reached += [middle - int(cells[0]), int(cells[-1]) - middle]
        assert max(reached) == network.context


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["vit-kl-4x8x8-c16", "vit-kl-4x16x16-c32"])
def test_a_large_preset_tiles_without_an_error(name: str):
    model = randomised(make_tokenizer(name))
    cs = model.spatial_compression_ratio
    size = 100 * cs
    model.disable_tiling()
    clip = video(1, 8 * cs, size)
    latents = model.encode(clip).latents
    whole = model.decode(latents).sample
    model.enable_tiling(24 * cs)
    for tiled, exact in ((model.encode(clip).latents, latents), (model.decode(latents).sample, whole)):
        print(name, float((tiled - exact).abs().max() / exact.abs().max()))
        assert close(tiled, exact)


@torch.no_grad()
def test_a_long_clip_passes_in_pieces_and_changes_nothing(tiny: TransformerVideoTokenizer, monkeypatch):
    clip = video(30, 24, 24)
    code = tiny.encode(clip)
    whole = tiny.decode(code.latents).sample
    monkeypatch.setattr(base, "PIECE_PIXELS", 9 * 24 * 24)
    assert close(tiny.encode(clip).latents, code.latents)
    assert close(tiny.decode(code.latents).sample, whole)


@torch.no_grad()
def test_untrained_with_linear_start_is_the_code_of_the_convolutional_one():
    clips = torch.nn.functional.avg_pool3d(noise(8, 3, 9, 32, 32), (3, 5, 5), stride=1, padding=(1, 2, 2))
    model = TransformerVideoTokenizer(**TINY)
    other = CausalVideoTokenizer(
        bottleneck=kl(4), ratios=((2, 4, 4),), encoder_widths=(8, 8), encoder_blocks=(0, 0),
        decoder_widths=(8, 8), decoder_blocks=(0, 0),
    )  # fmt: skip
    for tokenizer in (model, other):
        tokenizer.init_linear([clips])
    assert close(model.encode(clips).latents, other.encode(clips).latents)
    assert close(model.reconstruct(clips), other.reconstruct(clips))
    model.freeze_linear()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{part}.linear_path.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    "bottleneck",
    [
        dict(name="kl", latent_channels=4),
        dict(name="fsq", levels=(8, 5)),
        dict(name="lfq", num_bits=4),
        dict(name="bsq", num_bits=4),
        dict(name="vq", codebook_size=16, latent_channels=4),
    ],
    ids=lambda options: options["name"],
)
def test_every_weight_gets_a_gradient_from_every_bottleneck(bottleneck: dict):
    model = randomised(TransformerVideoTokenizer(**{**TINY, "bottleneck": bottleneck})).train()
    clip = video(9, 24, 24, batch=2)
    reconstruction, output = model(clip, generator=torch.Generator().manual_seed(0))
    loss = (reconstruction - clip).square().mean() + sum(output.losses.values())
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_a_few_steps_of_training_beat_the_linear_start():
    clips = torch.nn.functional.avg_pool3d(noise(2, 3, 5, 24, 24), (3, 5, 5), stride=1, padding=(1, 2, 2)) * 4
    model = TransformerVideoTokenizer(**TINY)
    model.init_linear([clips])
    model.freeze_linear()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        loss = (model(clips, sample_posterior=False)[0] - clips).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


@torch.no_grad()
def test_is_saved_and_loaded(tiny: TransformerVideoTokenizer, tmp_path):
    tiny.save_pretrained(tmp_path)
    loaded = TransformerVideoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(video(9, 24, 24)).latents, tiny.encode(video(9, 24, 24)).latents)
    assert torch.equal(loaded.reconstruct(video(9, 24, 24)), tiny.reconstruct(video(9, 24, 24)))
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    with pytest.raises(KinemaError, match=r"of class TransformerVideoTokenizer\) must hold a CausalVideoTokenizer"):
        CausalVideoTokenizer.from_pretrained(tmp_path)


@torch.no_grad()
def test_encoder_and_decoder_have_precisions_of_their_own():
    model = randomised(TransformerVideoTokenizer(**TINY))
    exact = model.encode(video(5, 24, 24)).latents
    decoded = model.decode(exact).sample
    model.set_precision(decode=torch.bfloat16)
    assert torch.equal(model.encode(video(5, 24, 24)).latents, exact)
    rough = model.decode(exact).sample
    assert rough.dtype == torch.float32
    assert 0 < (rough - decoded).abs().max() < 0.1 * decoded.abs().max()
    model.set_precision()
    with torch.autocast("cpu", torch.bfloat16):
        assert (model.encode(video(5, 24, 24)).latents - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bottleneck": {"name": "vq9"}}, r"`bottleneck` \(='vq9'\) must be one of kl, fsq"),
        ({"ratio": (4, 8)}, r"`ratio` \(=\(4, 8\)\) must be three numbers"),
        ({"ratio": (4, 8, 16)}, r"`ratio` \(=\(4, 8, 16\)\) must be even numbers"),
        ({"ratio": (3, 8, 8)}, r"`ratio` \(=\(3, 8, 8\)\) must be even numbers"),
        ({"window": 3}, r"`window` \(=3\) must be even"),
        ({"temporal_window": 0}, r"`temporal_window` \(=0\) must be at least 1"),
        ({"head_dim": 6}, r"`head_dim` \(=6\) must be a multiple of 4 and divide the width \(=16\)"),
    ],
)
def test_wrong_configs_are_refused(change: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        TransformerVideoTokenizer(**{**TINY, **change})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name: str):
    with torch.device("meta"):
        model = make_tokenizer(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PRESETS[name].cost.parameters, rel=5e-3)
    _, bottleneck, ratio, size = name.split("-")
    assert type(model.quantizer) is BOTTLENECKS[bottleneck]
    temporal, spatial = model.temporal_compression_ratio, model.spatial_compression_ratio
    assert ratio == f"{temporal}x{spatial}x{spatial}"
    if isinstance(model.quantizer, DiscreteBottleneck):
        assert int(size) == model.quantizer.codebook_size
    else:
        assert size == f"c{model.latent_channels}"


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["vit-kl-4x8x8-c16", *(pytest.param(n, marks=pytest.mark.slow) for n in PRESETS if n != "vit-kl-4x8x8-c16")],
)
def test_a_preset_costs_what_its_row_says(name: str):
    with torch.device("meta"):
        model = make_tokenizer(name).eval()
        clip = torch.empty(1, 3, 17, 256, 256)
    with FlopCounter() as encoding:
        latents = model.quantizer(model.encoder(clip, StreamCache())).mode
    with FlopCounter() as decoding:
        assert model.decoder(latents, StreamCache()).shape == clip.shape
    assert encoding.get_total_flops() / 1e9 == pytest.approx(PRESETS[name].cost.encode, rel=5e-3)
    assert decoding.get_total_flops() / 1e9 == pytest.approx(PRESETS[name].cost.decode, rel=5e-3)


@torch.no_grad()
def test_golden_reconstruction(tiny: TransformerVideoTokenizer):
    """Any change of the arithmetic shows here; the values are this model's own under the seeds above."""
    code = tiny.encode(video(9, 24, 24))
    assert code.latents.abs().mean().item() == pytest.approx(GOLDEN_LATENTS, rel=1e-4)
    assert tiny.decode(code.latents).sample.abs().mean().item() == pytest.approx(GOLDEN_VIDEO, rel=1e-4)


GOLDEN_LATENTS = 1.7304915
GOLDEN_VIDEO = 2.3232207
