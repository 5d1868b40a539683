import os

os.environ.pop("EMA_OPS_BACKEND", None)
