"""Data sets of pictures and label masks on disk, the paper's augmentation, and loading that always gives the same."""

from .check import Report, check_dataset
from .cityscapes import CITYSCAPES_CLASSES, CityscapesSegmentation
from .coco_stuff import COCOStuffSegmentation
from .coco_stuff_classes import COCO_STUFF_CLASSES
from .context import CONTEXT_CLASSES, ContextSegmentation
from .dataset import SegmentationDataset
from .errors import DataError
from .folder import FolderSegmentation
from .generated.dataset import GeneratedSegmentation
from .kinds import KINDS, open_dataset
from .labels import IGNORE
from .loading import Batch, Sample, evaluation_samples, training_batches
from .normalization import MEAN, STD, normalize
from .palette import voc_palette
from .voc import VOC_CLASSES, VOCSegmentation

__all__ = [
    "CITYSCAPES_CLASSES",
    "COCO_STUFF_CLASSES",
    "CONTEXT_CLASSES",
    "IGNORE",
    "KINDS",
    "MEAN",
    "STD",
    "VOC_CLASSES",
    "Batch",
    "COCOStuffSegmentation",
    "CityscapesSegmentation",
    "ContextSegmentation",
    "DataError",
    "FolderSegmentation",
    "GeneratedSegmentation",
    "Report",
    "Sample",
    "SegmentationDataset",
    "VOCSegmentation",
    "check_dataset",
    "evaluation_samples",
    "normalize",
    "open_dataset",
    "training_batches",
    "voc_palette",
]
