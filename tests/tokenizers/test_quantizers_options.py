"""Options of bottlenecks, and the usage of codebooks."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kinema.errors import KinemaError
from kinema.tokenizers.checks import check_values
from kinema.tokenizers.quantizers import (
    BOTTLENECKS,
    FSQ,
    CodebookUsage,
    DiscreteBottleneck,
    make_bottleneck,
    nested_bottleneck,
)

COMPLETE: dict[str, dict] = {
    "kl": {"latent_channels": 4},
    "fsq": {"levels": (8, 5)},
    "lfq": {"num_bits": 4},
    "bsq": {"num_bits": 4},
    "vq": {"codebook_size": 10, "latent_channels": 3},
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_quantises_as_its_interface_says(name: str):
    bottleneck = make_bottleneck({"name": name, **COMPLETE[name]})
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
        bottleneck = make_bottleneck({"name": name, **COMPLETE[name]}).eval()
        out = bottleneck(torch.empty(1, bottleneck.in_channels, 3, 4, 5))
    assert out.latents.shape == (1, bottleneck.latent_channels, 3, 4, 5)


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        (("kl", 4, None, None), {"name": "kl", "latent_channels": 4}),
        (("fsq", None, [8, 5], None), {"name": "fsq", "levels": [8, 5]}),
        (("fsq", 2, [8, 5], 40), {"name": "fsq", "levels": [8, 5]}),
        (("lfq", None, None, 2**18), {"name": "lfq", "num_bits": 18}),
        (("bsq", 36, None, None), {"name": "bsq", "num_bits": 36}),
        (("vq", 3, None, 10), {"name": "vq", "codebook_size": 10, "latent_channels": 3}),
        (("nope", None, None, None), {"name": "nope", "num_bits": None}),
    ],
)
def test_configs_with_flat_arguments_are_converted(flat: tuple, nested: dict):
    names = ("bottleneck", "latent_channels", "fsq_levels", "codebook_size")
    config = {"_class_name": "X", "size": 16} | dict(zip(names, flat, strict=True))
    converted = nested_bottleneck(config)
    assert converted == {"_class_name": "X", "size": 16, "bottleneck": nested}
    assert nested_bottleneck(converted) == converted
    if nested["name"] in BOTTLENECKS:
        assert type(make_bottleneck(nested)) is BOTTLENECKS[nested["name"]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_channels": 4}, r"`bottleneck` \(=\{'latent_channels': 4\}\) must be a dict with a `name`"),
        ({"name": "nope"}, r"`bottleneck` \(='nope'\) must be one of kl, fsq, lfq, bsq, vq"),
        ({"name": "kl"}, r"`bottleneck` 'kl' \(without 'latent_channels'\) must have 'latent_channels'"),
        ({"name": "kl", "latent_channels": 0}, r"`latent_channels` \(=0\) must be at least 1"),
        (
            {"name": "kl", "latent_channels": 4, "levels": (8,)},
            r"'kl' \(with 'levels'\) must only have",
        ),
        ({"name": "fsq"}, r"`bottleneck` 'fsq' \(without 'levels'\)"),
        ({"name": "fsq", "levels": ()}, r"`levels` \(=\(\)\)"),
        ({"name": "fsq", "levels": (8, 1)}, r"`levels` \(=\(8, 1\)\)"),
        ({"name": "fsq", "levels": (2,) * 63}, r"must make at most 2\^62 codes"),
        ({"name": "lfq"}, r"'lfq' \(without 'num_bits'\)"),
        ({"name": "lfq", "num_bits": 0}, r"`num_bits` \(=0\) must lie in 1\.\.62"),
        ({"name": "bsq", "num_bits": 63}, r"`num_bits` \(=63\) must lie in 1\.\.62"),
        ({"name": "bsq", "num_bits": 4, "levels": (2,)}, r"'bsq' \(with 'levels'\)"),
        ({"name": "vq", "codebook_size": 16}, r"'vq' \(without 'latent_channels'\)"),
        ({"name": "vq", "latent_channels": 16}, r"'vq' \(without 'codebook_size'\)"),
        ({"name": "vq", "codebook_size": 1, "latent_channels": 2}, r"`codebook_size` \(=1\) must be at least 2"),
    ],
)
def test_missing_and_wrong_options_are_refused(config: Any, message: str):
    with pytest.raises(KinemaError, match=message):
        make_bottleneck(config)


def test_indices_are_checked_unless_values_are_not():
    fsq = FSQ((8, 5))
    outside = torch.full((1, 1, 1, 1), 40)
    with pytest.raises(KinemaError, match=r"`indices` \(=40\.\.40\) must lie in 0\.\.39"):
        fsq.indices_to_latents(outside)
    with check_values(False):
        assert fsq.indices_to_latents(outside).shape == (1, 2, 1, 1, 1)
        with pytest.raises(KinemaError, match=r"`indices` \(of shape"):
            fsq.indices_to_latents(outside[0])


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
