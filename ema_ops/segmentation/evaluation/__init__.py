"""Networks judged on data sets, and their predictions for pictures and videos."""

from .evaluate import Stopped, evaluate
from .inference import PAPER_SCALES, Inference
from .metric import Scores

__all__ = ["PAPER_SCALES", "Inference", "Scores", "Stopped", "evaluate"]
