"""Any text- or image-to-video pipeline of diffusers behind the commands, beside kinema's own."""

import inspect
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kinema.errors import KinemaError
from kinema.files import read_json
from kinema.loading import one_line, quiet_loading

DEFAULT_FPS = 16.0
"""Frames a second of a pipeline that does not say them."""

_OWN = "KinemaPipeline"


def load_any_pipeline(name: str | None, *, device: str | None = None) -> Any:
    """kinema's embedded pipeline, one of its own in a folder, or one of diffusers by folder or hub id.

    Args:
        name: A folder or a hub id (`Wan-AI/Wan2.1-T2V-1.3B-Diffusers`); None: the embedded pipeline.
        device: What the user asked for; None takes CUDA where there is one, else the CPU.

    Raises:
        KinemaError: There is no such pipeline, a file of it is missing or wrong, or it makes no video from a prompt.
    """
    from kinema.apps.loading import load_pipeline, pick_device

    if name is None or _class_name(name) == _OWN:
        return load_pipeline(name, device=device)
    if os.path.lexists(name) and not Path(name).is_dir():
        raise KinemaError(f"`model` (={name!r}) must be a pipeline's folder or a hub id, and it is a file")
    if Path(name).is_dir() and _class_name(name) is None:
        raise KinemaError(f"`model` (={name!r}) must be a pipeline's folder, and it has no model_index.json")
    device = pick_device(device)
    return _load(name, device).to(device)


def _class_name(name: str) -> str | None:
    index = Path(name) / "model_index.json"
    if not index.is_file():
        return None
    content = read_json(index, name="model")
    if not isinstance(content, dict) or not isinstance(content.get("_class_name"), str):
        raise KinemaError(f"`model` (={name!r}) must be a pipeline's folder: {index.name} names no `_class_name`")
    return content["_class_name"]


def _load(name: str, device: Any) -> Any:
    import torch
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    half = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    try:
        with quiet_loading():
            pipeline: Any = DiffusionPipeline.from_pretrained(name, dtype=half)
    # What diffusers, transformers, huggingface_hub and safetensors raise over what is missing or wrong.
    except Exception as error:
        kind = "folder" if Path(name).is_dir() else "folder, or the hub id of a pipeline that can be reached"
        raise KinemaError(f"`model` (={name!r}) must be a pipeline's {kind}: {one_line(error)}") from error
    call = inspect.signature(type(pipeline).__call__).parameters
    if not {"prompt", "num_frames"} <= set(call):
        raise KinemaError(f"`model` (={name!r}, a {type(pipeline).__name__}) must make videos from prompts")
    if "image" in call and call["image"].default is inspect.Parameter.empty:
        pipeline.needs_image = True
    return pipeline


def set_attention(
    pipeline: Any, text: str, *, dense_steps: tuple[int, int], dense_layers: int, num_steps: int | None
) -> None:
    """Lets the transformers of a pipeline attend as a pattern says.

    Args:
        pipeline: kinema's or diffusers'.
        text: The pattern, or patterns that blocks take in turns, as `parse_patterns` reads them.
        dense_steps: First and last sampling steps that stay dense.
        dense_layers: First blocks that stay dense.
        num_steps: Sampling steps; None: the pipeline's own number.

    Raises:
        KinemaError: The text is no pattern, or not one for these transformers.
    """
    from kinema.generation.attention import PatternSchedule, apply_sparse_attention, parse_patterns

    patterns = parse_patterns(text)
    if num_steps is None:
        num_steps = _default_steps(pipeline)
    if type(pipeline).__name__ == _OWN:
        sizes = pipeline.transformer.config
        schedule = PatternSchedule(patterns, dense_layers=dense_layers, dense_steps=dense_steps)
        schedule.check(sizes["num_layers"], sizes["num_heads"], num_steps)
        pipeline.transformer.set_attention(schedule)
        return
    parts = [getattr(pipeline, name, None) for name in ("transformer", "transformer_2")]
    # Together: Wan 2.2's two models share one sampling, and one count of its steps.
    transformers = tuple(part for part in parts if part is not None)
    if not transformers:
        raise KinemaError(
            f"`--attention` (={text}) must go with a pipeline that has a transformer, not {type(pipeline).__name__}"
        )
    apply_sparse_attention(
        transformers, patterns, dense_steps=dense_steps, dense_layers=dense_layers, num_steps=num_steps
    )


def _default_steps(pipeline: Any) -> int | None:
    """Sampling steps that a pipeline makes where none are asked for."""
    own = pipeline.config.get("sample_steps")
    if own is not None:
        return own
    steps = inspect.signature(type(pipeline).__call__).parameters.get("num_inference_steps")
    return steps.default if steps is not None and isinstance(steps.default, int) else None


def frames_per_second(pipeline: Any) -> float:
    """Frames a second at which a pipeline's clips are meant to be shown."""
    return float(pipeline.config.get("sample_fps") or DEFAULT_FPS)


def check_options(pipeline: Any, names: Iterable[str]) -> None:
    """Check that the call of a pipeline takes arguments of these names.

    Raises:
        KinemaError: It takes no such argument.
    """
    call = inspect.signature(type(pipeline).__call__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in call.values()):
        return  # it decides itself
    for name in names:
        if name not in call:
            raise KinemaError(f"`{name}` must be left out: a {type(pipeline).__name__} takes none")


def image_argument(pipeline: Any, image: Any) -> dict[str, Any]:
    """The argument of the pipeline's call that has the first frame.

    Raises:
        KinemaError: The pipeline takes none and one is given, or needs one.
    """
    call = inspect.signature(type(pipeline).__call__).parameters
    kind = type(pipeline).__name__
    if image is None:
        if getattr(pipeline, "needs_image", False):
            raise KinemaError(f"`--image` must be given: a {kind} starts from a picture")
        return {}
    if "image" not in call:
        raise KinemaError(f"`--image` must be left out: a {kind} takes none")
    return {"image": image}
