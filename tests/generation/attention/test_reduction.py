"""Merging tokens: matchings, exact cases, caches. The coarse branch of tiles' means."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kinema.errors import KinemaError
from kinema.generation.attention import Grid
from kinema.generation.attention import reduction as module
from kinema.generation.attention.coarse import annealed_share, coarse_attention
from kinema.generation.attention.grid import tile_order
from kinema.generation.attention.reduction import Matching, TokenReduction, match

GRID = Grid(4, 4, 6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


@settings(max_examples=40, deadline=None)
@given(
    t=st.integers(1, 5),
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    rate=st.floats(0, 0.6),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_matchings_merge_the_most_alike(t: int, h: int, w: int, rate: float, stride: tuple[int, int, int]):
    grid = Grid(t, h, w)
    features = normal(2, grid.num_tokens, 5)
    anchors = [
        i
        for i in range(grid.num_tokens)
        if all(
            int(x) % min(s, n) == 0 for x, s, n in zip(grid.positions(torch.tensor(i)), stride, grid.sizes, strict=True)
        )
    ]
    number = int(rate * grid.num_tokens)
    if number > grid.num_tokens - len(anchors):
        with pytest.raises(KinemaError, match=f"merges {number} tokens of the grid {grid}"):
            match(features, grid, rate, stride)
        return
    matching = match(features, grid, rate, stride)
    unit = torch.nn.functional.normalize(features, dim=-1)
    for clip in range(2):
        kept = matching.kept[clip].tolist()
        assert len(set(kept)) == len(kept) == grid.num_tokens - number
        assert set(anchors) <= set(kept)
        worst = 2.0
        for token in range(grid.num_tokens):
            stands_for = kept[matching.target[clip, token]]
            if token in kept:
                assert stands_for == token
            else:
                likeness = unit[clip, anchors] @ unit[clip, token]
                assert stands_for == anchors[int(likeness.argmax())]
                worst = min(worst, likeness.max().item())
        for token in set(kept) - set(anchors):
            assert (unit[clip, anchors] @ unit[clip, token]).max().item() <= worst + 1e-6
    assert matching.sizes().sum(1).tolist() == [grid.num_tokens] * 2


def test_no_rate_is_dense_attention():
    query, key, value = (normal(2, 3, GRID.num_tokens + 2, 8, seed=i) for i in range(3))
    reduction = TokenReduction(0.0, 0.0)
    out = reduction(query, key, value, GRID, num_extra_tokens=2)
    assert torch.allclose(out, dense(query, key, value), atol=1e-5)


@pytest.mark.parametrize("extra", [0, 3])
def test_merging_tokens_that_are_the_same_is_exact(extra: int):
    """All eight tokens of a 2×2×2 cube are the same: seven of eight may go, as queries and as keys."""
    coarse = [normal(2, 3, 2, 2, 3, 8, seed=i) for i in range(3)]
    tokens = [x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4).flatten(2, 4) for x in coarse]
    query, key, value = (torch.cat((x, normal(2, 3, extra, 8, seed=9)), dim=2) for x in tokens)
    expected = dense(query, key, value)
    for rates in ((0.5, 0.5), (7 / 8, 0.0), (0.0, 7 / 8), (7 / 8, 7 / 8)):
        out = TokenReduction(*rates)(query, key, value, GRID, num_extra_tokens=extra)
        assert torch.allclose(out, expected, atol=1e-5), rates
    plain = TokenReduction(0.0, 0.5, proportional=False)(query, key, value, GRID, num_extra_tokens=extra)
    assert (plain - expected).abs().max() > 1e-3, "without sizes, merged keys count once"


def test_matchings_are_kept_for_some_steps(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []

    def counted(*args: Any) -> Matching:
        made.append(1)
        return match(*args)

    monkeypatch.setattr(module, "match", counted)
    x: Any = [normal(1, 2, GRID.num_tokens, 8, seed=i) for i in range(3)]
    reduction = TokenReduction(keep_for=3)
    counts = []
    for step in (0, 0, 1, 2, 3, 4, 0, None):
        reduction(*x, grid=GRID, step=step)
        counts.append(len(made))
    # Two roles each; the second call of step 0 is that of guidance, a fall of the step means another clip.
    assert counts == [2, 2, 2, 2, 4, 4, 6, 8]
    reduction(*x, grid=GRID, layer=1, step=0)
    assert len(made) == 10
    reduction.reset()
    reduction(*x, grid=GRID, step=0)
    assert len(made) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_rate": 1.0}, r"`query_rate` \(=1.0\) must lie in \[0, 1\)"),
        ({"key_rate": -0.1}, r"`key_rate`"),
        ({"keep_for": 0}, r"`keep_for` \(=0\)"),
        ({"stride": (2, 2)}, r"`stride` \(=\(2, 2\)\)"),
    ],
)
def test_mistakes_are_named(settings: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        TokenReduction(**settings)


def test_tokens_must_fit_the_grid():
    x = normal(1, 2, 10, 8)
    with pytest.raises(KinemaError, match=r"`query` \(of 10 tokens\) must have 96 of the grid 4x4x6 and 0"):
        TokenReduction()(x, x, x, GRID)


def test_the_coarse_branch_by_loops():
    grid = Grid(3, 5, 4)
    order = tile_order(grid, (2, 2, 4))
    query, key, value = (normal(2, 2, grid.num_tokens, 8, seed=i).requires_grad_() for i in range(3))
    out = order.restore(coarse_attention(*(order.arrange(x, 2) for x in (query, key, value)), order=order), 2)
    tile = order.slots // order.tile_size
    means: Any = [
        torch.stack([x[:, :, tile == i].mean(2) for i in range(order.num_tiles)], dim=2) for x in (query, key, value)
    ]
    assert torch.allclose(out, dense(*means)[:, :, tile], atol=1e-5)
    grads = torch.autograd.grad(out.square().sum(), (query, key, value))
    assert all(grad.abs().max() > 1e-4 for grad in grads)


def test_the_share_falls_to_its_end():
    assert [annealed_share(step, 0.1) for step in (0, 49, 50, 100, 10_000)] == [1.0, 1.0, 0.97, 0.94, 0.1]
