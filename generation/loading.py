"""Validation of a pipeline's folder, before and after loading."""

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from kinema.errors import KinemaError
from kinema.files import read_json
from kinema.loading import one_line
from kinema.tokenizers.checks import check_weights as check_weights

INDEX_FILE = "model_index.json"
_TRUSTED_PACKAGES = ("diffusers", "transformers", "kinema")


def check_pipeline_folder(folder: Path, components: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Validate a pipeline's folder before loading imports the modules that its index names.

    Only modules of kinema, diffusers and transformers are accepted.

    Args:
        folder: the pipeline's folder.
        components: component names that the index must contain, each with a subfolder of that name.
        optional: components that may be absent or null.

    Raises:
        KinemaError: a file is missing or malformed, or the index names a module of another package.
    """
    index = _read_index(folder)
    for name in components:
        entry = index.get(name)
        if not entry or entry == [None, None]:
            if name in optional:
                continue
            raise KinemaError(f"model folder `{folder}` must name a `{name}` in {INDEX_FILE}")
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise KinemaError(f"model folder `{folder}`: `{name}` (={entry}) in {INDEX_FILE} must be [module, class]")
        if entry[0].split(".")[0] not in _TRUSTED_PACKAGES:
            allowed = ", ".join(_TRUSTED_PACKAGES)
            raise KinemaError(
                f"model folder `{folder}`: the module of `{name}` (={entry[0]!r}) must be part of {allowed}"
            )
        if not (folder / name).is_dir() or not any((folder / name).glob("*.json")):
            raise KinemaError(f"model folder `{folder}` lacks `{name}/`, or its JSON file is missing")


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_FILE
    if not folder.is_dir():
        raise KinemaError(f"model folder `{folder}` does not exist")
    if not path.is_file():
        raise KinemaError(f"model folder `{folder}` must have a file {INDEX_FILE}")
    index = read_json(path, name="model")
    if not isinstance(index, dict):
        raise KinemaError(f"`{path}` must hold a JSON object")
    return index


def _check_words(tokenizer: Any, folder: Path) -> None:
    """Check that a tokenizer can encode text; with damaged files it may load but fail here."""
    if tokenizer is None:
        return
    try:
        tokenizer(["a word", "another"], padding=True, truncation=True, max_length=4)
        tokenizer("a word")
    except Exception as error:  # any exception type, depending on the settings in its JSON files
        reason = one_line(error)
        raise KinemaError(f"model folder `{folder}`: `tokenizer` must be able to read text: {reason}") from error


def _check_scheduler(scheduler: Any, folder: Path) -> None:
    """Check that a scheduler accepts the pipeline's sigmas and returns decreasing noise levels."""
    if scheduler is None:
        return
    try:
        probe = deepcopy(scheduler)  # setting timesteps changes the scheduler's state
        probe.set_timesteps(sigmas=[1.0, 0.5])
        levels = probe.sigmas.tolist()
        if not all(before > after >= 0 for before, after in pairwise(levels)):
            raise ValueError(f"its noise levels are {levels}")
    except Exception as error:  # any exception type, e.g. if it is not a flow-matching scheduler
        reason = one_line(error)
        raise KinemaError(
            f"model folder `{folder}`: `scheduler` must be a flow-matching scheduler: {reason}"
        ) from error


def check_parts(
    transformer: nn.Module | None, vae: nn.Module | None, tokenizer: Any, text_encoder: nn.Module | None,
    scheduler: Any, folder: Path,
) -> None:  # fmt: skip
    """Check that the components of a loaded pipeline match; components that are None are skipped.

    Raises:
        KinemaError: latent channels or vocabulary sizes differ, the tokenizer cannot encode text, or the scheduler is
            not for flow matching.
    """
    _check_words(tokenizer, folder)
    _check_scheduler(scheduler, folder)
    config: Any = None if transformer is None else transformer.config
    if config is None:
        return
    if vae is not None and vae.latent_channels != config["in_channels"]:
        raise KinemaError(
            f"model folder `{folder}`: the latents of `vae` (of {vae.latent_channels} channels) must have the "
            f"{config['in_channels']} channels of `transformer`"
        )
    num_words = config["text_vocab_size"]
    if text_encoder is None and tokenizer is not None and num_words not in (None, len(tokenizer)):
        raise KinemaError(
            f"model folder `{folder}`: `tokenizer` (of {len(tokenizer)} words) must have the {num_words} words of "
            "`transformer`"
        )
