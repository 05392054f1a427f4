"""Show what this installation has: versions, device, attention backends, codecs, tokenizers, weights."""

import argparse
import json
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import kinema
from kinema.weights import EMBEDDED, embedded_dir

HELP = "versions, device, attention backends, codecs, tokenizers, weights"

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "av",
    "gradio",
    "xformers",
)
CODECS = ("libx264", "libx264rgb", "libx265", "libsvtav1", "h264_nvenc", "ffv1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the facts."""
    facts = collect()
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        lines = [f"{key} {text}" for key, text in value.items()] if isinstance(value, dict) else value
        print(f"{name.replace('_', ' ')}: {', '.join(lines) if isinstance(lines, list) else lines}")


def collect() -> dict[str, Any]:
    """The facts, as values for JSON."""
    from kinema.tokenizers.quantizers import BOTTLENECKS
    from kinema.tokenizers.registry import PRESETS

    return {
        "kinema": kinema.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _device(),
        "attention_backends": attention_backends(),
        "encoders": encoders(),
        "bottlenecks": list(BOTTLENECKS),
        "tokenizer_presets": list(PRESETS),
        "weights": {name: _weights(name) for name in EMBEDDED},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name()})"
    return f"cpu ({torch.get_num_threads()} threads)"


def attention_backends() -> list[str]:
    """The backends of diffusers' attention dispatcher that work on this machine: each is tried on a small input."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

    device = "cuda" if torch.cuda.is_available() else "cpu"
    query = torch.zeros(1, 64, 2, 64, device=device, dtype=torch.bfloat16)
    found = []
    for backend in AttentionBackendName:
        if backend.value.endswith("_hub"):  # they download their code
            continue
        try:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                with attention_backend(backend):
                    dispatch_attention_fn(query, query, query)
        except Exception:  # a missing package or device may raise any type
            continue
        found.append(backend.value)
    return found


def encoders() -> list[str]:
    """The video encoders of `CODECS` that PyAV was built with."""
    import av

    found = []
    for name in CODECS:
        try:
            av.Codec(name, "w")
        except ValueError:  # PyAV's UnknownCodecError
            continue
        found.append(name)
    return found


def _weights(name: str) -> str:
    try:
        folder = embedded_dir(name)
    except ValueError:
        return "missing"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{size / 1e6:.1f} MB"
