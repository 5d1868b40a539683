"""What the tests of the demo share; without the demo's extra none of them runs."""

import pytest

for name in ("jinja2", "matplotlib", "PIL", "skimage", "sklearn", "torchmetrics", "tqdm"):
    pytest.importorskip(name, reason=f"{name} is not installed: the demo needs ema_ops[demo]")


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """The demo's set with 6 training and 4 validation pictures."""
    from ema_ops.segmentation.data.generated.drawing import build

    root = tmp_path_factory.mktemp("set")
    build(root, train=6, val=4, seed=3)
    return root
