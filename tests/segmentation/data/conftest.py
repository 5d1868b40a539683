"""What the tests of data sets share: trees of tiny pictures and masks."""

import numpy as np
import pytest

for name in ("PIL", "scipy", "tqdm", "yaml"):
    pytest.importorskip(name, reason=f"{name} is not installed: data sets need ema_ops[segmentation]")


@pytest.fixture
def tree(tmp_path):
    """A folder to fill with pictures, masks and lists."""
    return Tree(tmp_path)


class Tree:
    """Writes small files under `root`, making folders as it goes."""

    def __init__(self, root):
        self.root = root

    def picture(self, path, width=4, height=3, seed=0):
        """A picture of noise."""
        from PIL import Image

        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.path(path))

    def mask(self, path, labels, palette=True):
        """A mask with `labels` [H, W], palette or grey."""
        from PIL import Image

        from ema_ops.segmentation.data import voc_palette

        picture = Image.fromarray(np.asarray(labels, dtype=np.uint8))
        if palette:
            picture.putpalette(voc_palette().tobytes())
        picture.save(self.path(path))

    def matlab(self, path, **content):
        """A MATLAB file."""
        from scipy.io import savemat

        savemat(self.path(path), content)

    def lines(self, path, *lines):
        """A list file."""
        self.path(path).write_text("".join(f"{line}\n" for line in lines))

    def path(self, path):
        """`path` under root, whose folder is made."""
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        return full
