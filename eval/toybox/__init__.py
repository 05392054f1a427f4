"""How well a model follows Toybox prompts, decided from the pixels of its clips."""

from kinema.eval.toybox.entry import Settings, run
from kinema.eval.toybox.evaluate import Sampling, evaluate
from kinema.eval.toybox.oracle import Decision, Oracle
from kinema.eval.toybox.report import ToyboxReport, write_report

__all__ = ["Decision", "Oracle", "Sampling", "Settings", "ToyboxReport", "evaluate", "run", "write_report"]
