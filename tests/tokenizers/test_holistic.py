"""The holistic tokenizer: prefixes, windows, streams, nested dropout, bottlenecks, presets, saving."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema.errors import KinemaError
from kinema.tokenizers import base
from kinema.tokenizers.holistic.linear import cosine_transform
from kinema.tokenizers.holistic.model import HolisticVideoTokenizer, prefix_lengths
from kinema.tokenizers.holistic.networks import causal_queries, present
from kinema.tokenizers.holistic.presets import TINY
from kinema.tokenizers.holistic.windows import Windows
from kinema.tokenizers.interface import VideoTokenizer
from kinema.tokenizers.quantizers import DiscreteBottleneck
from kinema.tokenizers.streaming import StreamCache
from kinema.tokenizers.transformer.networks import to_blocks
from tokenizing import close, cut, noise, randomised, video


@pytest.fixture(scope="module")
def tiny() -> HolisticVideoTokenizer:
    return randomised(HolisticVideoTokenizer(**TINY))


def test_is_what_pipelines_rely_on(tiny: HolisticVideoTokenizer):
    assert isinstance(tiny, VideoTokenizer)
    assert (tiny.temporal_compression_ratio, tiny.spatial_compression_ratio, tiny.latent_channels) == (5, 16, 4)


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(count=st.integers(1, 6), size=st.tuples(st.integers(1, 12), st.integers(1, 33), st.integers(1, 33)))
def test_a_prefix_of_the_encoding_is_the_encoding_of_a_prefix(
    tiny: HolisticVideoTokenizer, count: int, size: tuple[int, int, int]
):
    clip = video(*size, batch=2)
    whole = tiny.encode(clip).latents
    assert close(tiny.encode(clip, num_tokens=count).latents, whole[..., :count])


@torch.no_grad()
@pytest.mark.parametrize("token", range(6))
def test_a_query_changes_its_token_and_later_ones_alone(token: int):
    model = randomised(HolisticVideoTokenizer(**TINY))
    before = model.encode(video(5)).latents
    model.encoder.queries[token] += noise(16)
    changed = (model.encode(video(5)).latents - before).abs().amax(dim=(0, 1, 2, 3))
    assert (changed[:token] == 0).all()
    assert (changed[token:] > 1e-3 * before.abs().max()).all()


@torch.no_grad()
def test_every_token_depends_on_every_patch_and_every_pixel_on_every_token(tiny: HolisticVideoTokenizer):
    clip = video(5)
    latents = tiny.encode(clip).latents
    for t in (slice(0, 1), slice(1, 5)):
        for row in (0, 8):
            for column in (0, 8):
                other = clip.clone()
                other[:, :, t, row : row + 8, column : column + 8] *= -1
                assert ((tiny.encode(other).latents - latents).abs().amax(dim=1) > 1e-4).all()
    whole = tiny.decode(latents).sample
    for token in range(6):
        other = latents.clone()
        other[..., token] += 1
        moved = (tiny.decode(other).sample - whole).abs().amax(dim=1)
        assert (torch.nn.functional.max_pool2d(moved, 8) > 1e-4).all()


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 6))
def test_tokens_that_are_dropped_are_absent(tiny: HolisticVideoTokenizer, count: int):
    """In training they are masked, afterwards they are not there: the same video, whatever they were."""
    tokens = noise(2, 6, 4)
    short = tiny.decoder(tokens[:, :count])
    masked = tiny.decoder(tokens, torch.tensor([count, 6]))
    assert close(masked[:1], short[:1])
    assert close(masked[1:], tiny.decoder(tokens)[1:])
    assert count == 6 or not close(masked[:1], tiny.decoder(tokens)[:1], 1e-3)
    latents = tokens.transpose(1, 2)[:, :, None, None]
    assert close(tiny.decode(latents[..., :count]).sample, short)


def test_masks_are_what_they_say():
    mask = causal_queries(2, 3, torch.device("cpu")).int().tolist()
    assert mask == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert present(torch.tensor([1, 3]), 3, 2).int().flatten(1).tolist() == [[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


@torch.no_grad()
@settings(max_examples=15, deadline=None)
@given(frames=st.integers(1, 12), height=st.integers(1, 40), width=st.integers(1, 40), batch=st.integers(1, 2))
def test_any_clip_goes_through_in_windows(
    tiny: HolisticVideoTokenizer, frames: int, height: int, width: int, batch: int
):
    clip = video(frames, height, width, batch)
    code = tiny.encode(clip)
    steps, rows, columns = -(-frames // 5), -(-height // 16), -(-width // 16)
    assert code.latents.shape == (batch, 4, steps * rows * columns, 1, 6)
    assert tiny.reconstruct(clip).shape == clip.shape
    # Each window is tokenised by itself: the last one, filled up, has the last tokens.
    last = clip[:, :, (steps - 1) * 5 :, (rows - 1) * 16 :, (columns - 1) * 16 :]
    assert close(tiny.encode(last).latents, code.latents[:, :, -1:])
    part = tiny.decode(code.latents[:, :, -1:], *last.shape[2:]).sample
    assert close(tiny.decode(code.latents, frames, height, width).sample[..., -last.shape[3] :, -last.shape[4] :][
        :, :, (steps - 1) * 5 :
    ], part)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(size=st.tuples(st.integers(1, 11), st.integers(1, 9), st.integers(1, 9)))
def test_windows_are_filled_with_the_last_frame_and_the_edges_and_joined_again(size: tuple[int, int, int]):
    clip = noise(2, 3, *size)
    layout = Windows.of_clip(5, 4, size)
    t, h, w = size
    joined = layout.join(layout.split(clip))
    assert torch.equal(joined[:, :, :t, :h, :w], clip)
    assert torch.equal(joined[:, :, -1], joined[:, :, t - 1])
    assert torch.equal(joined[..., -1, :], joined[..., h - 1, :])
    assert torch.equal(joined[..., -1], joined[..., w - 1])
    assert Windows.of_latents(5, 4, layout.split(clip).shape[1], size) == layout


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 17), lengths=st.lists(st.integers(0, 9), max_size=6), width=st.sampled_from([16, 20]))
def test_streams_in_any_chunks_are_the_clip(tiny: HolisticVideoTokenizer, frames: int, lengths: list[int], width: int):
    clip = video(frames, 16, width)
    latents = tiny.encode(clip).latents
    assert close(torch.cat(list(tiny.encode_stream(cut(clip, lengths))), dim=2), latents)
    parts = tiny.decode_stream(latents.split(-(-width // 16), dim=2), frames, 16, width)
    assert close(torch.cat(list(parts), dim=2), tiny.decode(latents, frames, 16, width).sample)


@torch.no_grad()
def test_two_streams_at_once_do_not_disturb_each_other(tiny: HolisticVideoTokenizer):
    clips = video(12, seed=1), video(12, 16, 40, seed=2)
    parts = list(zip(*(tiny.encode_stream(cut(clip, [3, 3, 3])) for clip in clips), strict=True))
    for clip, own in zip(clips, zip(*parts, strict=True), strict=True):
        assert close(torch.cat(own, dim=2), tiny.encode(clip).latents)


@torch.no_grad()
def test_a_stream_keeps_its_size(tiny: HolisticVideoTokenizer):
    """Windows are tokenised by themselves, and would take any."""
    for other in (video(5, batch=2), video(5, 16, 30), video(5, 40, 16)):
        with pytest.raises(KinemaError, match=r"`chunk` \(of batch .*\) must have those of the stream so far"):
            list(tiny.encode_stream([video(5), other]))
    with pytest.raises(KinemaError, match=r"`latents` \(of batch 2 and size 16x16\) must have .* batch 1"):
        list(tiny.decode_stream([noise(1, 4, 1, 1, 6), noise(2, 4, 1, 1, 6)]))
    cache = StreamCache()
    list(tiny.decode_stream([noise(1, 4, 4, 1, 6)], height=32, width=32, cache=cache))
    with pytest.raises(KinemaError, match=r"`latents` \(of batch 1 and size 16x64\) must have .* size 32x32"):
        list(tiny.decode_stream([noise(1, 4, 4, 1, 6)], height=16, width=64, cache=cache))
    # The number of tokens is no size: still parts of a clip may take fewer.
    assert [v.shape[2] for v in tiny.decode_stream([noise(1, 4, 1, 1, 6), noise(1, 4, 1, 1, 2)])] == [5, 5]


@torch.no_grad()
def test_a_stream_goes_on_with_its_cache_and_ends_in_its_last_window(tiny: HolisticVideoTokenizer):
    clip, encoding, decoding = video(12), StreamCache(), StreamCache()
    parts: list[Tensor] = []
    for piece in clip.split(5, dim=2):
        assert not encoding.closed
        assert not decoding.closed
        parts += tiny.decode_stream(tiny.encode_stream([piece], encoding), 12, cache=decoding)
    assert encoding.closed
    assert decoding.closed
    assert close(torch.cat(parts, dim=2), tiny.decode(tiny.encode(clip).latents, 12).sample)


@torch.no_grad()
def test_many_windows_pass_in_groups_and_nothing_changes(tiny: HolisticVideoTokenizer, monkeypatch):
    clip = video(12, 40, 40)
    code = tiny.encode(clip)
    whole = tiny.decode(code.latents, 12, 40, 40).sample
    monkeypatch.setattr(base, "PIECE_PIXELS", 2 * 5 * 16 * 16)
    seen: list[int] = []
    hook = tiny.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert close(tiny.encode(clip).latents, code.latents)
    hook.remove()
    assert max(seen) == 2
    assert close(tiny.decode(code.latents, 12, 40, 40).sample, whole)


def test_what_does_not_fit_is_refused(tiny: HolisticVideoTokenizer):
    clip = video(5)
    for count in (0, 7):
        with pytest.raises(KinemaError, match=rf"`num_tokens` \(={count}\) must lie in 1..6"):
            tiny.encode(clip, num_tokens=count)
    with pytest.raises(KinemaError, match=r"`video` \(in \["):
        tiny.encode(clip * 3)
    for shape in ((1, 4, 1, 1, 7), (1, 4, 1, 2, 6), (1, 5, 1, 1, 6)):
        with pytest.raises(KinemaError, match=r"`latents` \(of shape"):
            tiny.decode(torch.zeros(shape))
    latents = torch.zeros(1, 4, 4, 1, 6)
    for name, value in (("num_frames", 15), ("num_frames", 21), ("height", 0), ("width", 0)):
        with pytest.raises(KinemaError, match=rf"`{name}` \(={value}\) must"):
            tiny.decode(latents, **{name: value})
    with pytest.raises(KinemaError, match=r"of 4 windows\) must have a multiple of 3 windows"):
        tiny.decode(latents, height=33)
    with pytest.raises(KinemaError, match=r"`num_frames` \(=5\) must end in the last latent step"):
        list(tiny.decode_stream(latents.split(1, dim=2), num_frames=5))
    with pytest.raises(KinemaError, match=r"`num_frames` \(=50\) must lie in 16..20"):
        list(tiny.decode_stream([latents], num_frames=50))


@pytest.mark.parametrize("kind", ["powers", "uniform"])
def test_prefix_lengths_are_drawn_alike(kind: str):
    lengths = prefix_lengths(6000, 6, kind, torch.Generator().manual_seed(0))
    values, counts = lengths.unique(return_counts=True)
    assert values.tolist() == ([1, 2, 4, 6] if kind == "powers" else [1, 2, 3, 4, 5, 6])
    assert counts.min() > 0.85 * 6000 / len(values)
    assert prefix_lengths(3, 1, kind).tolist() == [1, 1, 1]


def test_training_drops_tails_and_evaluation_does_not():
    model = randomised(HolisticVideoTokenizer(**TINY))
    clip = video(5, batch=8)
    with torch.no_grad():
        whole = model(clip, False)[0]
        assert close(whole, model.decode(model.encode(clip).latents).sample)
        model.train()
        dropped = model(clip, False, torch.Generator().manual_seed(0))[0]
        lengths = prefix_lengths(8, 6, "powers", torch.Generator().manual_seed(0))
        assert len(lengths.unique()) > 2
        latents = model.encode(clip).latents
        for k, length in enumerate(lengths.tolist()):
            assert close(dropped[k : k + 1], model.decode(latents[k : k + 1, ..., :length]).sample)
        model = randomised(HolisticVideoTokenizer(**TINY, nested_dropout="none")).train()
        assert close(model(clip, False)[0], whole)


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
    model = randomised(HolisticVideoTokenizer(**{**TINY, "bottleneck": bottleneck})).train()
    clip = video(10, batch=4)
    reconstruction, output = model(clip, generator=torch.Generator().manual_seed(0))
    loss = (reconstruction - clip).square().mean() + sum(output.losses.values())
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    model.eval()
    with torch.no_grad():
        code = model.encode(clip)
    if isinstance(model.quantizer, DiscreteBottleneck):
        assert code.indices is not None
        assert code.indices.shape == (4, 2, 1, 6)
        assert torch.allclose(model.indices_to_latents(code.indices), code.latents, atol=1e-6)


@torch.no_grad()
def test_untrained_with_linear_start_is_a_transform_code_in_the_order_of_energy():
    model = HolisticVideoTokenizer(**TINY)
    clips = torch.nn.functional.avg_pool3d(noise(40, 3, 5, 16, 16), (3, 5, 5), stride=1, padding=(1, 2, 2)) * 3 + 0.3
    model.init_linear(iter([clips[:20], clips[20:]]))
    latents = model.encode(clips.clamp(-1, 1)).latents
    errors = [float((model.decode(latents[..., :n]).sample - clips).square().mean()) for n in range(1, 7)]
    assert all(more < fewer for fewer, more in pairwise(errors))
    # An orthonormal transform: what the coefficients hold and what is lost add up to the whole.
    path, bare = model.decoder.linear_path, model.encoder.linear_path
    blocks = to_blocks(clips, model.encoder.block_ratio, first=True)
    centred = (blocks - path.transform.bias).square().sum()
    kept = (bare(blocks) * path.scale * path.transform.weight.norm(dim=0)[path.order % 6]).square().sum()
    lost = (path(bare(blocks)) - blocks).square().sum()
    assert torch.isclose(kept + lost, centred, rtol=1e-4)
    assert torch.allclose(bare(blocks).square().mean(dim=0), torch.ones(24), atol=1e-3)
    with pytest.raises(KinemaError, match="at least one clip"):
        model.init_linear([])
    model.freeze_linear()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{c}.linear_path.transform.{k}" for c in ("encoder", "decoder") for k in ("weight", "bias")}


@torch.no_grad()
@pytest.mark.parametrize(
    "bottleneck", [{"name": "fsq", "levels": (8, 8, 8, 8)}, {"name": "bsq", "num_bits": 4}], ids=["fsq", "bsq"]
)
def test_the_linear_start_of_a_quantiser_expects_its_codes(bottleneck: dict[str, object]):
    """The gain of every coefficient is that of least squares, and the codes say as much as they can."""
    model = HolisticVideoTokenizer(**{**TINY, "bottleneck": bottleneck})
    clips = torch.nn.functional.avg_pool3d(noise(40, 3, 5, 16, 16), (3, 5, 5), stride=1, padding=(1, 2, 2)) * 2
    model.init_linear([clips[:20], clips[20:]])
    encoder, decoder = model.encoder.linear_path, model.decoder.linear_path
    hidden = encoder(to_blocks(clips, model.encoder.block_ratio, first=True)).unflatten(1, (6, 4)).movedim(2, 1)
    codes, kept = model.quantizer(hidden[:, :, :, None, None]).mode.flatten(2), hidden * encoder.scale.view(6, 4).T
    gains = (kept * codes).sum(0) / codes.square().sum(0)
    assert torch.allclose(decoder.scale.view(6, 4).T, gains, rtol=1e-4)

    def error() -> float:
        return float((model.reconstruct(clips) - clips).square().mean())

    fitted, errors = error(), []
    for scale in (0.8 * decoder.scale, 1.25 * decoder.scale, encoder.scale.clone()):
        decoder.scale.copy_(scale)
        errors.append(error())
    assert fitted < min(errors)
    whitened = HolisticVideoTokenizer(**TINY)
    whitened.init_linear([clips])
    size = hidden.square().mean(dim=(0, 2)).sqrt()
    assert torch.allclose(size, torch.full_like(size, model.quantizer.start_std or 0.0), rtol=1e-3)
    assert torch.equal(whitened.decoder.linear_path.scale, whitened.encoder.linear_path.scale)


def test_the_cosine_transform_is_orthonormal():
    x = noise(2, 3, 4, 5, 2)
    spectrum = cosine_transform(x)
    assert torch.isclose(spectrum.square().sum(), x.square().sum(), rtol=1e-5)
    assert close(cosine_transform(spectrum, inverse=True), x)
    assert close(spectrum[:, 0, 0, 0], x.sum(dim=(1, 2, 3)) / 60**0.5)


@torch.no_grad()
def test_is_saved_and_loaded_with_its_statistics(tmp_path):
    tiny = randomised(HolisticVideoTokenizer(**TINY))
    latents = tiny.encode(video(10, batch=2)).latents
    tiny.set_latent_statistics(latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)))
    tiny.save_pretrained(tmp_path)
    loaded = HolisticVideoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(video(10, batch=2)).latents, latents)
    assert torch.equal(loaded.reconstruct(video(9)), tiny.reconstruct(video(9)))
    assert loaded.normalize(latents).mean().abs() < 1e-5
    assert torch.allclose(loaded.denormalize(loaded.normalize(latents)), latents, atol=1e-5)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 4}, r"`num_frames` \(=4\) must be 1 more than a multiple of 4"),
        ({"size": 12}, r"`size` \(=12\) must be a multiple of 8"),
        ({"patch": (4, 8)}, r"`patch` \(=\(4, 8\)\) must be three numbers"),
        ({"patch": (3, 8, 8)}, r"must be even numbers"),
        ({"num_tokens": 0}, r"`num_tokens` \(=0\) must be at least 1"),
        ({"nested_dropout": "some"}, r"`nested_dropout` \(='some'\) must be one of powers, uniform, none"),
    ],
)
def test_wrong_configs_are_refused(change: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        HolisticVideoTokenizer(**{**TINY, **change})


@torch.no_grad()
def test_golden_reconstruction(tiny: HolisticVideoTokenizer):
    """Any change of the arithmetic shows here; the values are this model's own under the seeds above."""
    code = tiny.encode(video(9))
    assert code.latents.abs().mean().item() == pytest.approx(GOLDEN_LATENTS, rel=1e-4)
    assert tiny.decode(code.latents).sample.abs().mean().item() == pytest.approx(GOLDEN_VIDEO, rel=1e-4)


GOLDEN_LATENTS = 0.7221811413764954
GOLDEN_VIDEO = 1.6252466440200806
