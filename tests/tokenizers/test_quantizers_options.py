"""Options of bottlenecks, and the usage of codebooks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers import (
    BOTTLENECKS,
    BSQ,
    FSQ,
    KL,
    LFQ,
    VQ,
    CodebookUsage,
    DiscreteBottleneck,
    make_bottleneck,
)

COMPLETE: dict[str, dict] = {
    "kl": {"latent_channels": 4},
    "fsq": {"fsq_levels": (8, 5)},
    "lfq": {"codebook_size": 16},
    "bsq": {"codebook_size": 16},
    "vq": {"codebook_size": 10, "latent_channels": 3},
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_quantises_as_its_interface_says(name: str):
    bottleneck = make_bottleneck(name, **COMPLETE[name])
    assert type(bottleneck) is BOTTLENECKS[name]
    out = bottleneck(torch.randn(2, bottleneck.in_channels, 3, 4, 5))
    assert out.latents.shape == (2, bottleneck.latent_channels, 3, 4, 5)
    assert all(value.ndim == 0 for value in out.losses.values())
    assert isinstance(bottleneck, DiscreteBottleneck) == (out.indices is not None)
    if isinstance(bottleneck, DiscreteBottleneck):
        assert out.indices is not None
        assert torch.equal(bottleneck.latents_to_indices(out.mode), out.indices)
        assert torch.allclose(bottleneck.indices_to_latents(out.indices), out.mode, atol=1e-6)
        # Indices come from files in other integer types, and at times there are none.
        assert torch.allclose(bottleneck.indices_to_latents(out.indices.int()), out.mode, atol=1e-6)
        assert bottleneck.indices_to_latents(out.indices[:0]).shape[0] == 0
        for wrong in (out.indices.bool(), out.indices.float(), out.indices[0]):
            with pytest.raises(KinemaError, match=r"`indices` \(of shape .*\) must be integers \(batch, frames"):
                bottleneck.indices_to_latents(wrong)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_runs_on_the_meta_device(name: str):
    with torch.device("meta"):
        bottleneck = make_bottleneck(name, **COMPLETE[name]).eval()
        out = bottleneck(torch.empty(1, bottleneck.in_channels, 3, 4, 5))
    assert out.latents.shape == (1, bottleneck.latent_channels, 3, 4, 5)


def test_options_that_follow_from_others_may_be_given_too():
    assert isinstance(make_bottleneck("kl", latent_channels=4), KL)
    fsq = make_bottleneck("fsq", fsq_levels=[8, 5], latent_channels=2, codebook_size=40)
    assert isinstance(fsq, FSQ)
    lfq = make_bottleneck("lfq", codebook_size=2**18, latent_channels=18)
    assert isinstance(lfq, LFQ)
    assert lfq.latent_channels == 18
    bsq = make_bottleneck("bsq", latent_channels=36)
    assert isinstance(bsq, BSQ)
    assert bsq.codebook_size == 2**36
    assert isinstance(make_bottleneck("vq", codebook_size=10, latent_channels=3), VQ)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nope", {}, r"`bottleneck` \(='nope'\) must be one of kl, fsq, lfq, bsq, vq"),
        ("kl", {}, r"`latent_channels` \(=None\) must be at least 1 for the bottleneck 'kl'"),
        ("kl", {"latent_channels": 0}, r"`latent_channels` \(=0\)"),
        ("kl", {"latent_channels": 4, "fsq_levels": (8,)}, r"`fsq_levels` \(=\(8,\)\) must be left out .* 'kl'"),
        ("kl", {"latent_channels": 4, "codebook_size": 8}, r"`codebook_size` \(=8\) must be left out"),
        ("fsq", {}, r"`fsq_levels` \(=None\) must be given"),
        ("fsq", {"fsq_levels": ()}, r"`fsq_levels` \(=\(\)\)"),
        ("fsq", {"fsq_levels": (8, 1)}, r"`fsq_levels` \(=\(8, 1\)\)"),
        ("fsq", {"fsq_levels": (2,) * 63}, r"must make at most 2\^62 codes"),
        ("fsq", {"fsq_levels": (8, 8), "latent_channels": 3}, r"`latent_channels` \(=3\) must be 2, the number of"),
        ("fsq", {"fsq_levels": (8, 8), "codebook_size": 65}, r"`codebook_size` \(=65\) must be 64, the product of"),
        ("lfq", {}, r"`codebook_size` \(=None\) must be given for the bottleneck 'lfq'"),
        ("lfq", {"codebook_size": 12}, r"`codebook_size` \(=12\) must be a power of 2"),
        ("lfq", {"codebook_size": 1}, r"`codebook_size` \(=1\) must be a power of 2"),
        ("lfq", {"codebook_size": 16, "latent_channels": 3}, r"`latent_channels` \(=3\) must be 4"),
        ("bsq", {"codebook_size": 16, "fsq_levels": (2,)}, r"`fsq_levels` \(=\(2,\)\) must be left out .* 'bsq'"),
        ("bsq", {"latent_channels": 63}, r"`latent_channels` \(=63\) must lie in 1..62"),
        ("vq", {"codebook_size": 16}, r"`latent_channels` \(=None\) must be given for the bottleneck 'vq'"),
        ("vq", {"latent_channels": 16}, r"`codebook_size` \(=None\) must be given"),
        ("vq", {"codebook_size": 1, "latent_channels": 2}, r"`codebook_size` \(=1\) must be at least 2"),
        ("vq", {"codebook_size": 8, "latent_channels": 2, "fsq_levels": (8,)}, r"`fsq_levels`"),
    ],
)
def test_missing_and_wrong_options_are_refused(name: str, options: dict, message: str):
    with pytest.raises(KinemaError, match=message):
        make_bottleneck(name, **options)


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=4).filter(any))
def test_usage_is_that_of_all_indices_at_once(batches: list[list[int]]):
    usage = CodebookUsage(10)
    for batch in batches:
        usage.update(torch.tensor(batch, dtype=torch.long))
    histogram = torch.bincount(torch.tensor(list(itertools.chain(*batches)))).double()
    p = histogram[histogram > 0] / histogram.sum()
    figures = usage.compute()
    assert figures["codebook_usage"] == pytest.approx(len(p) / 10)
    assert figures["perplexity"] == pytest.approx(math.exp(-(p * p.log()).sum().item()))


def test_usage_of_a_codebook_that_cannot_be_laid_out():
    usage = CodebookUsage(2**60)
    usage.update(torch.tensor([[0, 2**60 - 1], [2**40, 0]]))
    assert usage.compute() == {"codebook_usage": 3 / 2**60, "perplexity": pytest.approx(math.exp(1.5 * math.log(2)))}
    assert usage.codes.tolist() == [0, 2**40, 2**60 - 1]


def test_usage_refuses_indices_outside_and_figures_of_nothing():
    usage = CodebookUsage(8)
    with pytest.raises(KinemaError, match=r"`indices` \(=-1\.\.3\) must lie in 0\.\.7"):
        usage.update(torch.tensor([3, -1]))
    with pytest.raises(KinemaError, match=r"`indices` .* at least one"):
        usage.compute()
    with pytest.raises(KinemaError, match=r"`codebook_size` \(=0\)"):
        CodebookUsage(0)
    usage.update(torch.tensor([3]))
    assert usage.compute() == {"codebook_usage": 1 / 8, "perplexity": 1.0}
    usage.reset()
    with pytest.raises(KinemaError, match=r"`indices` .* at least one"):
        usage.compute()
