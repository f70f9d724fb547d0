"""`python -m mta_bridge.postfix_expire [CONFIGURATION]`: has Postfix give up messages now. Run it as root.

What BRIDGE_EXPIRE_COMMAND is for: reads queue ids, one a line. `postsuper -e` only marks a message, to be returned at
its next attempt, which may be an hour away; so that attempt is asked for as well, message by message (a flush of the
whole queue would also try all the others).
"""

import shutil
import subprocess
import sys
from typing import Final

SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
COMMAND_SECONDS_MAX: Final = 60.0


def main(arguments: list[str]) -> int:
    """The exit status of postsuper; a message that is gone by now is none of our business."""
    queue_ids = [line.strip() for line in sys.stdin if line.strip().isalnum()]
    if not queue_ids:
        return 0
    configuration = ["-c", arguments[0]] if arguments else []
    marked = subprocess.run(
        [_program("postsuper"), *configuration, "-e", "-"],
        input="".join(f"{queue_id}\n" for queue_id in queue_ids),
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    if marked.returncode != 0:
        return marked.returncode
    for queue_id in queue_ids:
        subprocess.run(
            [_program("postqueue"), *configuration, "-i", queue_id],
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
    return 0


def _program(name: str) -> str:
    return shutil.which(name, path=SYSTEM_PATH) or name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
