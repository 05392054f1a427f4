"""Metrics of generated clips: how well they match their prompts, and how they move.

`METRICS` has those of `kinema.eval.metrics`. What needs torch is imported on first use.
"""

from typing import TYPE_CHECKING

from kinema.eval.generation.requirements import DEFAULT_METRICS, check_metrics
from kinema.eval.metrics import GENERATION_METRICS as METRICS
from kinema.lazy import lazy_exports

if TYPE_CHECKING:
    from kinema.eval.generation.evaluate import evaluate_generation
    from kinema.eval.generation.report import GeneratedClip, GenerationReport

_EXPORTS = {
    "GeneratedClip": "kinema.eval.generation.report",
    "GenerationReport": "kinema.eval.generation.report",
    "evaluate_generation": "kinema.eval.generation.evaluate",
}

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "GeneratedClip",
    "GenerationReport",
    "check_metrics",
    "evaluate_generation",
]

__getattr__ = lazy_exports(__name__, _EXPORTS)
