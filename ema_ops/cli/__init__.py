"""The `ema-ops` command. Each command is one module here with HELP, configure(parser) and run(args)."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..out_of_memory import is_out_of_memory
from .processes import is_first, tell_error

COMMANDS = ("info", "bench", "demo", "data", "train", "evaluate", "predict", "validate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ema-ops COMMAND ...`; returns the exit status.

    Bad input ends with one line and status 2, Ctrl-C with one line and status 130.
    """
    parser = argparse.ArgumentParser(prog="ema-ops", description="Expectation-Maximization Attention (EMANet).")
    parser.add_argument("--version", action="version", version=f"ema_ops {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = import_module(f"{__name__}.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.configure(command)
        command.set_defaults(run=module.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        # with the usage of the command, not that of all
        commands.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return args.run(args)
    except (ValueError, TypeError, OSError, ImportError) as error:
        tell_error(f"ema-ops {args.command}: {error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        # the system ends a process that reads pictures where memory runs out, and PyTorch tells it anywhere
        if not (is_out_of_memory(error) or str(error).startswith("DataLoader worker")):
            raise
        reason = str(error).partition("\n")[0].strip(" .") or "no memory"
        tell_error(f"ema-ops {args.command}: {reason}: expected more memory, or fewer workers")
        return 2
    except KeyboardInterrupt:
        if is_first():
            print(f"ema-ops {args.command}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
