"""A measurement as one HTML file with plots and clips, which opens anywhere, without a network."""

from kinema.eval.report.document import Clips, Figure, Report, Section, Table, number

__all__ = ["Clips", "Figure", "Report", "Section", "Table", "number"]
