"""From what was planned, measured and executed to the Report."""

from tersor.pipeline.graph.reporting.figures import make_report

__all__ = ["make_report"]
