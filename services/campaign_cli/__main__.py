"""The entry point of the `campaign` command."""

import os
import sys


def main() -> None:
    """Runs the command that the arguments name."""
    # gRPC's core writes to stderr by itself, unless told otherwise before its first import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from campaign_cli.commands import campaign

    sys.exit(campaign(prog_name="campaign"))


if __name__ == "__main__":
    main()
