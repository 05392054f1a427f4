"""How well a model follows Toybox prompts, decided from the pixels of its clips."""

from typing import TYPE_CHECKING

from kinema.eval.toybox.entry import Settings, run
from kinema.lazy import lazy_exports

if TYPE_CHECKING:
    from kinema.eval.toybox.evaluation import Sampling, evaluate
    from kinema.eval.toybox.oracle import Decision, Oracle
    from kinema.eval.toybox.report import ToyboxReport, write_report

_EXPORTS = {
    **dict.fromkeys(("Decision", "Oracle"), "kinema.eval.toybox.oracle"),
    **dict.fromkeys(("Sampling", "evaluate"), "kinema.eval.toybox.evaluation"),
    **dict.fromkeys(("ToyboxReport", "write_report"), "kinema.eval.toybox.report"),
}

__all__ = ["Decision", "Oracle", "Sampling", "Settings", "ToyboxReport", "evaluate", "run", "write_report"]

__getattr__ = lazy_exports(__name__, _EXPORTS)
