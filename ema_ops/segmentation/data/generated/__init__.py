"""A small segmentation task made on the spot: handwritten digits on photographs, whose class only context tells.

Reading it needs what every data set needs; making it takes its pixels from scikit-image and scikit-learn, which come
with the extra `ema_ops[demo]`.
"""

from .dataset import GeneratedSegmentation
from .drawing import CLASSES, build

__all__ = ["CLASSES", "GeneratedSegmentation", "build"]
