"""Streams and tiles give what the whole clip and the whole frame give."""

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema import CausalVideoTokenizer
from kinema.errors import KinemaError
from kinema.tokenizers import base
from kinema.tokenizers.causal_vae.presets import TINY
from kinema.tokenizers.checks import check_latents
from kinema.tokenizers.registry import make_tokenizer
from kinema.tokenizers.streaming import StreamCache, whole_steps
from kinema.tokenizers.tiling import spans
from tokenizing import close, cut, randomised, video


@pytest.fixture(scope="module")
def tiny() -> CausalVideoTokenizer:
    return randomised(CausalVideoTokenizer(**TINY), vectors=0.5)


@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(
    frames=st.integers(1, 22),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    lengths=st.lists(st.integers(0, 9), max_size=8),
    batch=st.integers(1, 2),
)
def test_encoding_in_any_chunks_is_encoding_the_clip(
    tiny: CausalVideoTokenizer, frames: int, size: tuple[int, int], lengths: list[int], batch: int
):
    clip = video(frames, *size, batch=batch)
    parts = list(tiny.encode_stream(cut(clip, lengths)))
    assert close(torch.cat(parts, dim=2), tiny.encode(clip).latents)


@torch.no_grad()
@settings(max_examples=30, deadline=None)
@given(
    frames=st.integers(1, 22),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    lengths=st.lists(st.integers(1, 3), max_size=6),
)
def test_decoding_in_any_chunks_is_decoding_the_clip(
    tiny: CausalVideoTokenizer, frames: int, size: tuple[int, int], lengths: list[int]
):
    code = tiny.encode(video(frames, *size))
    chunks = [c for c in cut(code.latents, lengths) if c.shape[2]]
    parts = list(tiny.decode_stream(chunks, num_frames=frames, height=size[0], width=size[1]))
    assert close(torch.cat(parts, dim=2), tiny.decode(code.latents, frames, *size).sample)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "kl-4x4x4-c4",
        "kl-4x8x8-c16",
        "fsq-4x8x8-32768",
        "kl-8x8x8-c16",
        "kl-4x16x16-c32",
        "kl-8x16x16-c4",
        "kl-8x32x32-c128",
    ],
)
def test_every_architecture_streams_exactly(name: str):
    """Of discrete ones what comes before the rounding: a value near the middle between two codes may fall to either."""
    model = randomised(make_tokenizer(name), vectors=0.5)
    ct, cs = model.temporal_compression_ratio, model.spatial_compression_ratio
    clip = video(1 + 3 * ct, 2 * cs, 2 * cs)
    whole, cache = model.encoder(clip), StreamCache()
    parts = []
    for piece in whole_steps([clip[:, :, :2], clip[:, :, 2 : ct + 3], clip[:, :, ct + 3 :]], ct, 1):
        parts.append(model.encoder(piece, cache))
        cache.first = False
    assert len(parts) == 4
    assert close(torch.cat(parts, dim=2), whole)
    latents = torch.randn(1, model.latent_channels, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    streamed = torch.cat(list(model.decode_stream(latents.split([1, 2, 1], dim=2))), dim=2)
    assert close(streamed, model.decode(latents).sample)


@torch.no_grad()
def test_two_streams_at_once_do_not_disturb_each_other(tiny: CausalVideoTokenizer):
    one, two = video(13, seed=1), video(13, 24, 8, seed=2)
    streams = [tiny.encode_stream(cut(clip, [3, 3, 3])) for clip in (one, two)]
    parts: list[list[Tensor]] = [[], []]
    for pair in zip(*streams, strict=True):
        for kept, part in zip(parts, pair, strict=True):
            kept.append(part)
    assert close(torch.cat(parts[0], dim=2), tiny.encode(one).latents)
    assert close(torch.cat(parts[1], dim=2), tiny.encode(two).latents)


@torch.no_grad()
def test_a_stream_takes_a_chunk_only_when_it_needs_one(tiny: CausalVideoTokenizer):
    taken: list[int] = []

    def chunks() -> Iterator[Tensor]:
        for index in range(100):
            taken.append(index)
            yield video(4, seed=index)

    stream = tiny.decode_stream(tiny.encode_stream(chunks()))
    first = next(stream)
    assert first.shape[2] == 1  # 4 frames: one latent step and a part of the next
    assert taken == [0]
    next(stream)
    assert taken == [0, 1]


@torch.no_grad()
def test_what_a_stream_keeps_does_not_grow(tiny: CausalVideoTokenizer):
    def kept(frames: int) -> int:
        cache = StreamCache()
        for _ in tiny.encode_stream(video(frames).split(4, dim=2), cache=cache):
            pass
        assert len(cache.state) == 2  # one for each temporal convolution of the encoder
        return sum(state.untyped_storage().nbytes() for state in cache.state.values())

    assert kept(9) == kept(41)


@torch.no_grad()
def test_a_stream_goes_on_with_its_cache_until_an_incomplete_step(tiny: CausalVideoTokenizer):
    clip, cache = video(12), StreamCache()
    parts = [*tiny.encode_stream([clip[:, :, :5]], cache=cache), *tiny.encode_stream([clip[:, :, 5:]], cache=cache)]
    assert close(torch.cat(parts, dim=2), tiny.encode(clip).latents)
    with pytest.raises(KinemaError, match=r"`cache`.*must be a new one"):
        next(tiny.encode_stream([clip], cache=cache))


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [10, 13])
def test_decoding_goes_on_with_its_cache_until_the_number_of_frames(tiny: CausalVideoTokenizer, num_frames: int):
    """It is that of all calls together: the last one crops, and ends the stream."""
    latents, cache = tiny.encode(video(13)).latents, StreamCache()
    parts: list[Tensor] = []
    for chunk in latents.split([1, 2, 1], dim=2):
        assert not cache.closed
        parts += tiny.decode_stream([chunk], num_frames, cache=cache)
    assert close(torch.cat(parts, dim=2), tiny.decode(latents, num_frames).sample)
    with pytest.raises(KinemaError, match=r"`cache`.*must be a new one"):
        next(tiny.decode_stream([latents], cache=cache))


@torch.no_grad()
def test_decoding_with_a_cache_ends_only_where_it_is_told(tiny: CausalVideoTokenizer):
    latents, cache = torch.zeros(1, 4, 2, 2, 2), StreamCache()
    assert [part.shape[2] for _ in range(2) for part in tiny.decode_stream([latents], cache=cache)] == [5, 8]
    with pytest.raises(KinemaError, match=r"`num_frames` \(=13\) must end in the last latent step, and more came"):
        next(tiny.decode_stream([latents], num_frames=13, cache=cache))


def test_chunks_of_other_sizes_are_refused(tiny: CausalVideoTokenizer):
    for other, size in (
        (video(4, 16, 24), "batch 1 and size 16x24"),
        (video(4, 15, 15), "batch 1 and size 15x15"),  # padded to the same cells
        (video(4, batch=2), "batch 2 and size 16x16"),
    ):
        message = rf"`chunk` \(of {size}\) must have those of the stream so far: batch 1 and size 16x16"
        with pytest.raises(KinemaError, match=message):
            list(tiny.encode_stream([video(5), other]))
        cache = StreamCache()
        list(tiny.encode_stream([video(5)], cache=cache))
        with pytest.raises(KinemaError, match=message):
            list(tiny.encode_stream([other], cache=cache))
    for shape, size in (((1, 4, 1, 2, 3), "1 and size 2x3"), ((2, 4, 1, 2, 2), "2 and size 2x2")):
        with pytest.raises(KinemaError, match=rf"`latents` \(of batch {size}\) must have those .* size 2x2"):
            list(tiny.decode_stream([torch.zeros(1, 4, 3, 2, 2), torch.zeros(shape)]))


@torch.no_grad()
def test_tiles_do_not_hide_a_frame_of_another_size():
    """The caches of a larger frame's tiles may have the places and shapes of a smaller one's."""
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5)
    model.enable_tiling(16)
    for size in ((64, 64), (48, 40)):
        with pytest.raises(KinemaError, match=rf"`chunk` \(.* {size[0]}x{size[1]}\) must have .* 48x48"):
            list(model.encode_stream([video(5, 48, 48), video(4, *size)]))
    with pytest.raises(KinemaError, match=r"`latents` \(.* 8x8\) must have .* 6x6"):
        list(model.decode_stream([torch.zeros(1, 4, 2, 6, 6), torch.zeros(1, 4, 2, 8, 8)]))


def test_streams_that_end_elsewhere_are_refused(tiny: CausalVideoTokenizer):
    with pytest.raises(KinemaError, match=r"`num_frames` \(=14\) must lie in 6..9"):
        list(tiny.decode_stream([torch.zeros(1, 4, 3, 2, 2)], num_frames=14))
    with pytest.raises(KinemaError, match=r"`num_frames` \(=5\) must end in the last latent step"):
        list(tiny.decode_stream([torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 4, 1, 2, 2)], num_frames=5))
    with pytest.raises(KinemaError, match=r"`latents` \(=no chunk\) must hold latents of `num_frames` \(=5\)"):
        list(tiny.decode_stream([], num_frames=5))
    assert list(tiny.decode_stream([])) == list(tiny.encode_stream([])) == []


@torch.no_grad()
def test_a_long_clip_passes_in_pieces_and_changes_nothing(tiny: CausalVideoTokenizer, monkeypatch):
    clip = video(30, 24, 16)
    code = tiny.encode(clip)
    whole = tiny.decode(code.latents).sample
    lengths: list[int] = []
    tiny.encoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[2]))
    monkeypatch.setattr(base, "PIECE_PIXELS", 9 * 24 * 16)
    assert close(tiny.encode(clip).latents, code.latents)
    assert lengths == [9, 8, 8, 8]
    assert close(tiny.decode(code.latents).sample, whole)


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(height=st.integers(20, 160), width=st.integers(20, 160), tile=st.integers(16, 80))
def test_tiles_are_the_whole_frame(tiny: CausalVideoTokenizer, height: int, width: int, tile: int):
    clip = video(5, height, width)
    tiny.disable_tiling()
    code = tiny.encode(clip)
    whole = tiny.decode(code.latents, 5, height, width).sample
    tiny.enable_tiling(tile)
    latents = tiny.encode(clip).latents
    assert close(latents, code.latents)
    assert close(tiny.decode(code.latents, 5, height, width).sample, whole)
    streamed = torch.cat(list(tiny.encode_stream(clip.split(2, dim=2))), dim=2)
    assert close(streamed, code.latents)


@torch.no_grad()
def test_the_context_is_what_it_says(tiny: CausalVideoTokenizer):
    """A cell further away changes nothing, and the furthest that may does."""
    for original, channels, cell in ((tiny.encoder, 3, 8), (tiny.decoder, 4, 1)):
        network = copy.deepcopy(original).double()  # what comes from far is too little for float32
        size = 2 * network.context + 3
        x = torch.randn(1, channels, 1, cell, cell * size, generator=torch.Generator().manual_seed(0)).double()
        other = x.clone()
        other[..., (size // 2) * cell : (size // 2 + 1) * cell] += 1
        changed = (network(x) - network(other)).abs().amax(dim=(0, 1, 2, 3))
        changed = changed.unflatten(0, (size, -1)).amax(dim=1)
        assert changed[0] == 0
        assert changed[-1] == 0
        assert changed[1] > 0
        assert changed[-2] > 0


@given(size=st.integers(1, 200), tile=st.integers(1, 60), context=st.integers(0, 20), grain=st.sampled_from([1, 4, 8]))
def test_spans_keep_every_cell_once(size: int, tile: int, context: int, grain: int):
    parts = spans(size, tile, context, grain)
    kept = [cell for part in parts for cell in range(part.keep_start, part.keep_stop)]
    assert kept == list(range(size))
    for part in parts:
        assert part.keep_stop - part.keep_start <= max(tile // grain, 1) * grain
        assert part.start % grain == 0
        assert part.start == 0 or part.keep_start - part.start >= context
        assert part.stop == min(size, part.keep_stop + context)


@torch.no_grad()
def test_frames_are_cut_by_themselves_above_a_size(monkeypatch):
    monkeypatch.setattr(CausalVideoTokenizer, "tile_size", 32)
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5)
    widths: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[-1]))
    model.encode(video(1, 32, 32))
    assert widths == [32]
    model.encode(video(1, 32, 96))
    assert len(widths) == 4
    with pytest.raises(KinemaError, match=r"`tile_size` \(=4\)"):
        model.enable_tiling(4)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 3, 6, 13, 14])
def test_a_stream_ends_in_the_last_step_or_says_so(tiny: CausalVideoTokenizer, num_frames: int, monkeypatch):
    """As `decode` does, in one chunk or many, in one piece or many."""
    latents = tiny.encode(video(13)).latents
    for pixels in (16 * 16 * 4, base.PIECE_PIXELS):
        monkeypatch.setattr(base, "PIECE_PIXELS", pixels)
        for parts in (latents.split(4, dim=2), latents.split(1, dim=2)):
            if 10 <= num_frames <= 13:
                assert sum(part.shape[2] for part in tiny.decode_stream(parts, num_frames)) == num_frames
            else:
                with pytest.raises(KinemaError, match=rf"`num_frames` \(={num_frames}\)"):
                    list(tiny.decode_stream(parts, num_frames))


@torch.no_grad()
def test_encoder_and_decoder_have_precisions_of_their_own():
    model = randomised(CausalVideoTokenizer(**TINY), vectors=0.5)
    exact = model.encode(video(5)).latents
    decoded = model.decode(exact).sample
    model.set_precision(decode=torch.bfloat16)
    assert torch.equal(model.encode(video(5)).latents, exact)
    rough = model.decode(exact).sample
    assert rough.dtype == torch.float32
    assert 0 < (rough - decoded).abs().max() < 0.1 * decoded.abs().max()


NAN = video(5)
NAN[0, 0, 2, 3, 4] = float("nan")


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (video(5) * 2, r"`video` \(in \[-\d.*\]\) must lie in \[-1, 1\]"),
        ((video(5) * 127).to(torch.uint8), r"`video` \(of type torch.uint8\) must be float in \[-1, 1\]"),
        (torch.zeros(1, 4, 5, 16, 16), r"`video` \(of shape \(1, 4, 5, 16, 16\)\) must be \(batch, 3,"),
        (torch.zeros(3, 5, 16, 16), r"`video` \(of shape \(3, 5, 16, 16\)\)"),
        (torch.zeros(1, 3, 0, 16, 16), "must have frames of at least 1"),
        (NAN, r"`video` \(with NaN\)"),
    ],
)
def test_what_is_no_video_is_refused(tiny: CausalVideoTokenizer, clip: Tensor, message: str):
    with pytest.raises(KinemaError, match=message):
        tiny.encode(clip)
    if clip.numel():
        with pytest.raises(KinemaError, match=message.replace("`video`", "`chunk`")):
            list(tiny.encode_stream([clip]))


@pytest.mark.parametrize(
    "latents", [torch.zeros(1, 5, 2, 2, 2), torch.zeros(4, 2, 2, 2), torch.zeros(1, 4, 2, 2, 2, dtype=torch.long)]
)
def test_what_are_no_latents_of_this_tokenizer_is_refused(tiny: CausalVideoTokenizer, latents: Tensor):
    with pytest.raises(KinemaError, match=r"`latents` \(of (shape|type)"):
        tiny.decode(latents)
    with pytest.raises(KinemaError, match=r"`latents` \(of (shape|type)"):
        list(tiny.decode_stream([latents]))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2, 2), (1, 5, 2, 2, 2), (4, 2, 2, 2)])
def test_latents_of_another_tokenizer_are_not_normalised(tiny: CausalVideoTokenizer, shape: tuple[int, ...]):
    """One channel would spread over all of them."""
    for change in (tiny.normalize, tiny.denormalize):
        with pytest.raises(KinemaError, match=r"`latents` \(of shape .*must be \(batch, 4, frames"):
            change(torch.zeros(shape))


def test_finite_is_what_every_number_is():
    """Not their sum, which half precision cannot hold."""
    check_latents(torch.full((1, 4, 5, 64, 64), 5.0, dtype=torch.float16), 4)
    for bad in (torch.inf, torch.nan):
        latents = torch.zeros(1, 4, 2, 2, 2)
        latents[0, 1, 1, 0, 0] = bad
        with pytest.raises(KinemaError, match="NaN or infinity"):
            check_latents(latents, 4)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    CausalVideoTokenizer(**TINY).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"CausalVideoTokenizer"', '"AutoencoderKLWan"'))
    with pytest.raises(KinemaError, match=r"of class AutoencoderKLWan\) must hold a CausalVideoTokenizer"):
        CausalVideoTokenizer.from_pretrained(tmp_path)
    CausalVideoTokenizer(**TINY).save_config(tmp_path)
    saved = config.read_text()
    config.write_text(saved.replace('"decoder_blocks"', '"decoder_block"'))
    with pytest.raises(KinemaError, match=r"\(with 'decoder_block'\) must have no other keys than .*decoder_blocks"):
        CausalVideoTokenizer.from_pretrained(tmp_path)
    config.write_text(saved.replace("{", '{"_name_or_path": "elsewhere",', 1))
    assert CausalVideoTokenizer.from_pretrained(tmp_path).latent_channels == 4
    CausalVideoTokenizer(**{**TINY, "decoder_blocks": (1, 2, 1)}).save_config(tmp_path)
    with pytest.raises(KinemaError, match="do not fit their config: 16 missing and 8 unknown"):
        CausalVideoTokenizer.from_pretrained(tmp_path)
    CausalVideoTokenizer(**{**TINY, "encoder_widths": (8, 16, 16)}).save_config(tmp_path)
    with pytest.raises(KinemaError, match="cannot be loaded as a CausalVideoTokenizer"):
        CausalVideoTokenizer.from_pretrained(tmp_path)
