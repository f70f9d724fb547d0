"""The entry point of the `campaign` command."""

import os
import sys


def main() -> None:
    """Runs the command that the arguments name."""
    # gRPC's core writes to stderr by itself, unless told otherwise before its first import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Its handlers of fork can crash a child before it becomes the program that it is to run, such as pg_ctl.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from campaign_cli.commands import campaign

    sys.exit(campaign(prog_name="campaign"))


if __name__ == "__main__":
    main()
