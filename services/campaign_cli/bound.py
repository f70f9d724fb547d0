"""Starts a Python module as a process that does not outlive its parent: `python -m campaign_cli.bound PARENT MODULE …`.

The parent may be killed in a way that leaves it no time to stop its children. Linux then sends them SIGTERM, so that
they stop in order. (Elsewhere they would stay: there is nothing as simple.) This is a process of its own, replaced by
the module, because code between fork and exec is not safe in a parent that has gRPC's threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, module, *rest = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before it could be watched
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
