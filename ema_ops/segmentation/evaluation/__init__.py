"""Networks judged on data sets, and their predictions for pictures and videos."""

from .evaluate import Stopped, evaluate
from .inference import Inference
from .metric import Scores

__all__ = ["Inference", "Scores", "Stopped", "evaluate"]
