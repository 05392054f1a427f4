"""What holds for any preset, clip and chunks: causality, streams equal to the whole, shapes that come back."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema.tokenizers.base import LatentTokenizer
from kinema.tokenizers.interface import latent_shape
from kinema.tokenizers.quantizers import DiscreteBottleneck
from kinema.tokenizers.registry import PRESETS, make_tokenizer
from kinema.tokenizers.streaming import StreamCache
from tokenizing import close, cut, randomised, video

GRIDS = [name for name in PRESETS if not name.startswith("1d-")]
"""Tokenizers whose latents are a grid; the others are tested in test_holistic.py, with small models."""
SOME = (
    *("kl-4x4x4-c4", "kl-4x8x8-c16", "fsq-4x8x8-32768", "lfq-4x8x8-262144", "bsq-4x8x8-262144", "vq-4x8x8-8192"),
    *("kl-8x8x8-c16", "kl-4x16x16-c32", "fsq-8x16x16-4096", "vit-kl-4x8x8-c16", "vit-fsq-4x8x8-32768"),
)
"""Every network, ratio up to 8x16x16, and bottleneck; all presets where there is time."""


@lru_cache(maxsize=2)
def model_of(name: str) -> LatentTokenizer:
    return randomised(make_tokenizer(name), vectors=0.5)


def same_latents(model: LatentTokenizer, got: Tensor, wanted: Tensor) -> bool:
    """Equal up to round-off; of codes, a number that lies on the border of two may fall to either side."""
    if isinstance(model.quantizer, DiscreteBottleneck):
        changed = ~torch.isclose(got, wanted, atol=1e-4).all(dim=1)
        # Of few cells one is more than 2 %; what comes before the bottleneck is compared exactly beside.
        return got.shape == wanted.shape and int(changed.sum()) <= max(1, int(0.02 * changed.numel()))
    return close(got, wanted)


CASES = st.tuples(
    st.integers(1, 17),
    st.integers(1, 48),
    st.integers(1, 48),
    st.lists(st.integers(1, 9), max_size=4),
    st.integers(0, 99),
)
"""Frames, height and width (at most three latent steps and cells of them are used), lengths of chunks, seed."""


@torch.no_grad()
def check(name: str, frames: int, height: int, width: int, chunks: list[int], seed: int) -> None:
    model = model_of(name)
    ct, cs = model.temporal_compression_ratio, model.spatial_compression_ratio
    clip = video(min(frames, 1 + 2 * ct), min(height, 3 * cs), min(width, 3 * cs), seed=seed)
    t, h, w = clip.shape[2:]
    code = model.encode(clip)
    assert code.latents.shape == (1, model.latent_channels, *latent_shape(t, h, w, ct, cs))

    # Before the bottleneck, where nothing is rounded, streams and prefixes are exact.
    hidden = model._hidden(clip)
    assert close(torch.cat(list(model._hidden_pieces(cut(clip, chunks), StreamCache())), dim=2), hidden)
    assert same_latents(model, torch.cat(list(model.encode_stream(cut(clip, chunks))), dim=2), code.latents)
    steps = code.latents.shape[2]
    if steps > 1:
        # Later frames change, and no earlier latent does; the last latent, which sees them, does.
        known = 1 + (steps - 2) * ct
        other = torch.cat([clip[:, :, :known], -clip[:, :, known:]], dim=2)
        changed = model._hidden(other)
        assert (changed - hidden)[:, :, :-1].abs().max() <= 1e-5 * hidden.abs().max()
        assert (changed - hidden)[:, :, -1].abs().max() > 1e-3 * hidden.abs().max()

    decoded = model.decode(code.latents, t, h, w).sample
    assert decoded.shape == clip.shape
    streamed = torch.cat(list(model.decode_stream(cut(code.latents, [1]), t, h, w)), dim=2)
    assert close(streamed, decoded)
    if code.indices is not None:
        assert torch.allclose(model.indices_to_latents(code.indices), code.latents, atol=1e-6)


@pytest.mark.parametrize("name", SOME)
@settings(max_examples=6, deadline=None)
@given(case=CASES)
def test_some_presets(name: str, case: tuple[int, int, int, list[int], int]):
    check(name, *case)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=8, deadline=None)
@given(case=CASES)
def test_all_presets(name: str, case: tuple[int, int, int, list[int], int]):
    check(name, *case)
