"""Frame metrics: how a clip differs from its reference, frame by frame or as a set of frames.

`METRICS` is the table of them. Importing it imports no torch: a metric's file is imported when the metric is loaded.
"""

from kinema.eval.frames.table import METRICS, FrameMeasure, Metric, SetMeasure, check_metrics

__all__ = ["METRICS", "FrameMeasure", "Metric", "SetMeasure", "check_metrics"]
