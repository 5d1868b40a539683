"""Any folder of pictures with a folder of masks beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from typing_extensions import Unpack

from .dataset import Common, SegmentationDataset
from .errors import DataError
from .folders import file_names, read_list, require_folders
from .labels import Labels, class_names

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files with another ending are taken for neither pictures nor masks; upper case is as good."""


class FolderSegmentation(SegmentationDataset):
    """Pictures in one folder, masks of the same names in another.

        root/images/NAME.jpg         or .png, .tif, ...
        root/masks/NAME.png          palette or 8-bit grey, one label a pixel, 255 = ignore

    Args:
        root: the folder that holds both.
        split: "all"; or the name of a list in root, SPLIT.txt, with one NAME a line; or of folders inside both,
            root/images/SPLIT and root/masks/SPLIT.
        classes: names of the classes, background included.
        num_classes: how many there are, if they have no names.
        images: name of the folder of pictures.
        masks: name of the folder of masks.
        mask_suffix: what a mask's name has behind that of its picture, such as "_mask".
        transform, check_files: as in `SegmentationDataset`.

    Raises:
        FileNotFoundError: a folder, the list, or a partner of a picture or a mask is missing.
        DataError: there is no picture, or two have the same name.
        ValueError: neither `classes` nor `num_classes` is given.

    Reading raises as `SegmentationDataset` says.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "all",
        *,
        classes: Sequence[str] | None = None,
        num_classes: int | None = None,
        images: str = "images",
        masks: str = "masks",
        mask_suffix: str = "",
        **common: Unpack[Common],
    ):
        root = Path(root)
        labels = Labels(class_names(classes, num_classes))
        require_folders(root, (images, masks), f"a folder {images} of pictures and a folder {masks} of masks")
        list_file = root / f"{split}.txt"
        self._whole = split == "all" or not list_file.is_file()
        inner = split if self._whole and split != "all" else ""
        if inner and not (root / images / split).is_dir():
            raise FileNotFoundError(
                f"list {list_file} is missing: expected it, or a folder {root / images / split}, or the split 'all'"
            )
        require_folders(root, (f"{masks}/{inner}",), f"folders {inner} in {images} and {masks}")
        self._image_folder, self._mask_folder = root / images / inner, root / masks / inner
        self._images = _by_stem(self._image_folder)
        self._masks = {
            stem.removesuffix(mask_suffix): file
            for stem, file in _by_stem(self._mask_folder).items()
            if stem.endswith(mask_suffix)
        }
        self._mask_suffix = mask_suffix
        names = list(self._images) if self._whole else [_stem(line) for line in read_list(list_file)]
        if not names:
            raise DataError(f"folder {self._image_folder} has no pictures: expected files {', '.join(ENDINGS)}")
        super().__init__(names, labels, **common)

    def image_path(self, name: str) -> Path:
        """Where the picture called `name` lies."""
        return self._image_folder / self._images.get(name, f"{name}.jpg")

    def mask_path(self, name: str) -> Path:
        """Where the mask of the picture called `name` lies."""
        return self._mask_folder / self._masks.get(name, f"{name}{self._mask_suffix}.png")

    def missing_files(self) -> Iterator[str]:
        """What is missing or has no partner, a sentence each; no file is opened for it."""
        yield from super().missing_files()
        if self._whole:
            for name in sorted(set(self._masks) - set(self._images)):
                yield f"mask {self.mask_path(name)} has no picture: expected {self._image_folder / name}.*"


def _by_stem(folder: Path) -> dict[str, str]:
    """File name of each picture in `folder` by its name without ending. DataError when two have the same."""
    found: dict[str, str] = {}
    for file in file_names(folder):
        stem = _stem(file)
        if stem == file:
            continue
        if stem in found:
            raise DataError(f"{folder / file} has the name of {folder / found[stem]}: expected different names")
        found[stem] = file
    return found


def _stem(file: str) -> str:
    """`file` without an ending of `ENDINGS`."""
    path = Path(file)
    return file.removesuffix(path.suffix) if path.suffix.lower() in ENDINGS else file
