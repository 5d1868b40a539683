"""Training: the paper's optimizer and schedule, on one process or many, interrupted or not."""

from .loop import Best, Summary, train

__all__ = ["Best", "Summary", "train"]
