"""Bottlenecks between encoder and decoder; a new one is one file and one line in `BOTTLENECKS`."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

from kinema.errors import KinemaError
from kinema.tokenizers.quantizers.base import Bottleneck, BottleneckOutput, DiscreteBottleneck
from kinema.tokenizers.quantizers.bsq import BSQ
from kinema.tokenizers.quantizers.fsq import FSQ
from kinema.tokenizers.quantizers.kl import KL, DiagonalGaussian
from kinema.tokenizers.quantizers.lfq import LFQ
from kinema.tokenizers.quantizers.usage import CodebookUsage
from kinema.tokenizers.quantizers.vq import VQ

BOTTLENECKS: dict[str, type[Bottleneck]] = {"kl": KL, "fsq": FSQ, "lfq": LFQ, "bsq": BSQ, "vq": VQ}
"""Classes by the `name` in a tokenizer's `bottleneck`."""


def make_bottleneck(config: Mapping[str, Any], classes: Mapping[str, type[Bottleneck]] = BOTTLENECKS) -> Bottleneck:
    """Build the bottleneck that a tokenizer's `bottleneck` argument describes.

    Args:
        config: `name`, a key of `classes`, and the arguments of that class: `{"name": "fsq", "levels": (8, 5, 5)}`.
        classes: Bottleneck classes by name.

    Raises:
        KinemaError: The name is unknown, or an argument is missing, unknown or out of range.
    """
    if not isinstance(config, Mapping) or "name" not in config:
        raise KinemaError(f"`bottleneck` (={config!r}) must be a dict with a `name` and the arguments of that class")
    options = dict(config)
    name = options.pop("name")
    if name not in classes:
        raise KinemaError(f"`bottleneck` (={name!r}) must be one of {', '.join(classes)}")
    parameters = signature(classes[name]).parameters
    unknown = sorted(options.keys() - parameters.keys())
    if unknown:
        raise KinemaError(f"`bottleneck` {name!r} (with {unknown[0]!r}) must only have {', '.join(parameters)}")
    for argument, parameter in parameters.items():
        if parameter.default is Parameter.empty and argument not in options:
            raise KinemaError(f"`bottleneck` {name!r} (without {argument!r}) must have {argument!r}")
    return classes[name](**options)


def nested_bottleneck(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a tokenizer's config from the form before 0.2, which had the bottleneck as four flat arguments.

    Args:
        config: With `bottleneck` as a dict (returned as it is), or as a name beside `latent_channels`, `fsq_levels`
            and `codebook_size`.
    """
    new = dict(config)
    if not isinstance(new.get("bottleneck"), str):
        return new
    name = new.pop("bottleneck")
    flat = {key: new.pop(key, None) for key in ("latent_channels", "fsq_levels", "codebook_size")}
    size = flat["codebook_size"]
    options = {
        "kl": {"latent_channels": flat["latent_channels"]},
        "fsq": {"levels": flat["fsq_levels"]},
        "vq": {"codebook_size": size, "latent_channels": flat["latent_channels"]},
    }
    # A code of LFQ or BSQ has one bit per channel; either of the two numbers was enough.
    bits = {"num_bits": flat["latent_channels"] if size is None else size.bit_length() - 1}
    return new | {"bottleneck": {"name": name, **options.get(name, bits)}}


__all__ = [
    "BOTTLENECKS",
    "BSQ",
    "FSQ",
    "KL",
    "LFQ",
    "VQ",
    "Bottleneck",
    "BottleneckOutput",
    "CodebookUsage",
    "DiagonalGaussian",
    "DiscreteBottleneck",
    "make_bottleneck",
    "nested_bottleneck",
]
