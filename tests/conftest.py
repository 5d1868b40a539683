import os

import pytest
import torch

os.environ.pop("EMA_OPS_BACKEND", None)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    """What a test draws does not depend on those before it."""
    torch.manual_seed(0)
