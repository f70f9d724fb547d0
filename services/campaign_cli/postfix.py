"""A Postfix of one's own: its configuration and queue in a folder, on a loopback port, beside any other on the machine.

`python -m campaign_cli.postfix OPTIONS-AS-JSON` runs one until SIGTERM, as one more process of the stack. It needs
Postfix to be installed, which is left to people, and root: its master starts as root, its daemons as `postfix`.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from campaign_cli.errors import CommandFailed

SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS_MAX: Final = 20.0
STOP_SECONDS_MAX: Final = 20.0
LOOK_SECONDS: Final = 0.05
BOUNCE_DOMAIN: Final = "bounce.campaign.test"

SERVICES: Final = """
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n {wake} 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
lmtp      unix  - - n - - lmtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
"""

QUICK: Final = {
    "queue_run_delay": "1s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "2s",
    "maximal_queue_lifetime": "16s",
    "bounce_queue_lifetime": "16s",
    "delay_warning_time": "3s",
}
"""For demonstrations and tests: what takes days is over within seconds. Never for anything else: a queue that lives so
short loses the reports themselves when nobody takes them for that long."""


@dataclass(frozen=True, slots=True)
class PostfixOptions:
    """One Postfix."""

    folder: str
    port: int
    relay_port: int
    """Everything goes there, on this machine: nothing leaves it."""
    bounce_port: int
    """But what goes to the bounce domain goes there."""
    hostname: str = "mta.campaign.test"
    quick: bool = True
    settings: Mapping[str, str] | None = None
    """More lines of main.cf."""


class Postfix:
    """One instance: started, killed, stopped, asked."""

    def __init__(self, options: PostfixOptions) -> None:
        self.options = options
        self.folder = Path(options.folder)
        self.configuration = self.folder / "conf"
        self.log = self.folder / "log" / "maillog"

    @property
    def expire_command(self) -> str:
        """Reads queue ids, and has them expired."""
        return shlex.join([sys.executable, "-m", "mta_bridge.postfix_expire", str(self.configuration)])

    def prepare(self) -> None:
        """Writes the configuration. Raises CommandFailed if it could not run."""
        check_installed()
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("conf", "queue", "data", "log"):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(0o755)
        self.folder.chmod(0o755)
        shut = [str(parent) for parent in self.folder.resolve().parents if not parent.stat().st_mode & 0o001]
        if shut:
            hint = "choose a folder that everyone may enter with --data, such as one in /var/tmp"
            raise CommandFailed(f"Postfix's own user could not enter {shut[-1]}", [hint])
        shutil.chown(self.folder / "data", "postfix")
        (self.configuration / "main.cf").write_text(self._main_cf(), "ascii")
        # After a kill, a new queue manager may find a mail still locked by a daemon that is just dying: it looks again
        # at the next new mail, or when it is woken.
        wake_seconds = 1 if self.options.quick else 300
        (self.configuration / "master.cf").write_text(
            f"127.0.0.1:{self.options.port} inet n - n - - smtpd{SERVICES.format(wake=wake_seconds)}", "ascii"
        )

    def start(self) -> None:
        """Runs it in the background, and returns when it listens."""
        self._run("postfix", "check")
        self._run("postfix", "start")
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.pids():
            if time.monotonic() > deadline:
                raise CommandFailed("Postfix did not start", [f"log: {self.log}"])
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Ends it in order."""
        if self.pids():
            self._run("postfix", "stop", check=False)

    def kill(self) -> None:
        """kill -9 of the master and all of its daemons, those included that it is just starting."""
        while found := {*self.pids(), *_working_in(self.folder.resolve() / "queue")}:
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(LOOK_SECONDS)

    def pids(self) -> list[int]:
        """The master's, and its children's; empty if it does not run."""
        try:
            master = int((self.folder / "queue" / "pid" / "master.pid").read_text())
            cmdline = Path(f"/proc/{master}/cmdline").read_bytes()
        except (OSError, ValueError):
            return []
        if b"master" not in cmdline:
            return []
        return [master, *_children_of(master)]

    def queue(self) -> list[dict[str, object]]:
        """The messages that it has."""
        lines = self._run("postqueue", "-j").stdout.splitlines()
        return [json.loads(line) for line in lines]

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [_program(program), "-c", str(self.configuration), *arguments],
            capture_output=True,
            text=True,
            timeout=STOP_SECONDS_MAX,
            check=False,
        )
        if check and done.returncode != 0:
            raise CommandFailed(f"{program} {' '.join(arguments)} failed", [done.stderr.strip(), f"log: {self.log}"])
        return done

    def _main_cf(self) -> str:
        options, folder = self.options, self.folder.resolve()
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": f"{folder}/queue",
            "data_directory": f"{folder}/data",
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "meta_directory": "/etc/postfix",
            "shlib_directory": "/usr/lib/postfix",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            "maillog_file_prefixes": f"{folder}, /dev/stdout",
            "maillog_file": f"{folder}/log/maillog",
            "myhostname": options.hostname,
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mydestination": "",
            "local_recipient_maps": "",
            "local_transport": "error:5.1.1 no local mail here",
            "mynetworks": "127.0.0.0/8",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": "",
            "disable_dns_lookups": "yes",
            "smtp_dns_support_level": "disabled",
            "smtp_host_lookup": "native",
            "relayhost": f"[127.0.0.1]:{options.relay_port}",
            "transport_maps": f"inline:{{ {BOUNCE_DOMAIN}=smtp:[127.0.0.1]:{options.bounce_port} }}",
            "enable_long_queue_ids": "yes",
            "smtp_discard_ehlo_keywords": "dsn",
            "notify_classes": "",
            "recipient_delimiter": "+",
            "smtp_destination_concurrency_limit": "20",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_client_event_limit_exceptions": "127.0.0.0/8",
            "default_process_limit": "100",
            "in_flow_delay": "0",
            **(QUICK if options.quick else {}),
            **(options.settings or {}),
        }
        return "".join(f"{name} = {value}\n" for name, value in settings.items())


def check_installed() -> None:
    """Raises CommandFailed with what to install, or who must run it."""
    if shutil.which("postfix", path=SYSTEM_PATH) is None:
        hints = [
            "Debian, Ubuntu: apt-get install postfix, answering 'No configuration'",
            "nothing of its own configuration is used, and its service need not run",
        ]
        raise CommandFailed("Postfix is not installed", hints)
    if os.geteuid() != 0:
        raise CommandFailed("Postfix's master must be started by root", ["run this as root, in a container say"])


def _program(name: str) -> str:
    return shutil.which(name, path=SYSTEM_PATH) or name


def _children_of(parent: int) -> list[int]:
    children = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(fields[1]) == parent:
            children.append(int(status.parent.name))
    return children


def _working_in(folder: Path) -> list[int]:
    """Processes whose working folder it is: all daemons of Postfix work in its queue."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")) == folder:
                found.append(int(process.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def main(options: PostfixOptions) -> None:
    signals = {signal.SIGTERM, signal.SIGINT}
    postfix = Postfix(options)
    try:
        postfix.prepare()
        postfix.start()
        # Blocked only now: what Postfix starts would inherit it. A signal before that leaves it to who starts next.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            print(json.dumps({"action": "listening", "address": f"127.0.0.1:{options.port}"}), flush=True)
            signal.sigwait(signals)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            postfix.stop()
    except CommandFailed as failure:
        sys.exit("\n".join([failure.message, *failure.details]))


def as_argument(options: PostfixOptions) -> str:
    """What `main` is started with."""
    return json.dumps(asdict(options))


if __name__ == "__main__":
    main(PostfixOptions(**json.loads(sys.argv[1])))
