"""Data sets of pictures and label masks on disk, the paper's augmentation, and loading that always gives the same."""

from .dataset import SegmentationDataset
from .folder import FolderSegmentation
from .generated.dataset import GeneratedSegmentation
from .kinds import KINDS, open_dataset
from .labels import IGNORE
from .loading import Batch, Sample, evaluation_samples, training_batches
from .normalization import MEAN, STD, normalize
from .palette import voc_palette
from .voc import VOC_CLASSES, VOCSegmentation

__all__ = [
    "IGNORE",
    "KINDS",
    "MEAN",
    "STD",
    "VOC_CLASSES",
    "Batch",
    "FolderSegmentation",
    "GeneratedSegmentation",
    "Sample",
    "SegmentationDataset",
    "VOCSegmentation",
    "evaluation_samples",
    "normalize",
    "open_dataset",
    "training_batches",
    "voc_palette",
]
