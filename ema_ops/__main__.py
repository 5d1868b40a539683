"""`python -m ema_ops` is the `ema-ops` command; without arguments it shows `ema-ops info`."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:] or ["info"]))
