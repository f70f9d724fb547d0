"""An SMTP server that does as it is told: what it announces, what it answers to whom, when it hangs or cuts."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Mail:
    """One that was taken."""

    sender: str
    recipient: str
    content: bytes
    mail_line: str
    rcpt_line: str


@dataclass
class ScriptedSmtp:
    """Answers by the first word of the recipient's local part, or by `replies` of the command."""

    announced: tuple[str, ...] = ("PIPELINING", "SIZE 10000000", "8BITMIME", "DSN", "ENHANCEDSTATUSCODES")
    rcpt: dict[str, str] = field(default_factory=dict)
    """The reply to RCPT, by the first word of the local part."""
    mail_replies: list[str] = field(default_factory=list)
    """To the next MAIL commands, one each; then 250."""
    data_reply: dict[str, str] = field(default_factory=dict)
    """The reply to the final dot, by the first word of the local part."""
    accepts_data_without_recipient: bool = False
    cuts_after_dot: int = 0
    """The next so many messages are taken, and their connections cut instead of answered."""
    hold_dot: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: the answers to final dots wait."""
    mails: list[Mail] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    connections: int = 0
    connections_most: int = 0
    connections_total: int = 0
    waiting_dots: int = 0
    busy_of_domain: Counter[str] = field(default_factory=Counter)
    busy_of_domain_most: Counter[str] = field(default_factory=Counter)
    port: int = 0

    def __post_init__(self) -> None:
        self.hold_dot.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listens; after a `stop`, on the same port again."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Ends as when killed."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    @property
    def recipients(self) -> Counter[str]:
        return Counter(mail.recipient for mail in self.mails)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self.connections_total += 1
        self.connections_most = max(self.connections_most, self.connections)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 scripted ESMTP\r\n")
        sender = recipient = mail_line = rcpt_line = ""
        while line := await reader.readline():
            command = line.decode().rstrip("\r\n")
            self.commands.append(command)
            verb = command[:4].upper()
            reply = "250 2.0.0 ok"
            if verb == "EHLO":
                words = ["scripted", *self.announced]
                reply = "\r\n".join([*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}"])
            elif verb == "MAIL":
                if sender:
                    reply = "503 5.5.1 nested MAIL"
                elif self.mail_replies:
                    reply = self.mail_replies.pop(0)
                if reply.startswith("250"):
                    sender, mail_line = command[11 : command.index(">")], command
            elif verb == "RCPT":
                address = command[9 : command.index(">")]
                reply = self.rcpt.get(_word(address), "250 2.1.5 ok") if sender else "503 5.5.1 need MAIL"
                if reply.startswith("250"):
                    recipient, rcpt_line = address, command
                    self._busy(address, 1)
            elif verb == "DATA":
                if not recipient and not self.accepts_data_without_recipient:
                    reply = "554 5.5.1 no valid recipients"
                else:
                    writer.write(b"354 go on\r\n")
                    content = await self._content(reader)
                    reply = await self._end_of_data(Mail(sender, recipient, content, mail_line, rcpt_line))
                    if recipient:
                        self._busy(recipient, -1)
                    sender = recipient = ""
                    if not reply:
                        writer.transport.abort()
                        return
            elif verb == "RSET":
                if recipient:
                    self._busy(recipient, -1)
                sender = recipient = ""
            elif verb == "QUIT":
                writer.write(b"221 bye\r\n")
                return
            writer.write(f"{reply}\r\n".encode())
            if reply.startswith("421"):
                return

    def _busy(self, address: str, change: int) -> None:
        domain = address.rpartition("@")[2]
        self.busy_of_domain[domain] += change
        self.busy_of_domain_most[domain] = max(self.busy_of_domain_most[domain], self.busy_of_domain[domain])

    async def _content(self, reader: asyncio.StreamReader) -> bytes:
        lines = []
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    async def _end_of_data(self, mail: Mail) -> str:
        if not mail.recipient:
            return "554 5.5.1 no valid recipients"
        self.waiting_dots += 1
        await self.hold_dot.wait()
        self.waiting_dots -= 1
        reply = self.data_reply.get(_word(mail.recipient), f"250 2.0.0 Ok: queued as Q{len(self.mails) + 1:08}")
        if reply.startswith("250"):
            self.mails.append(mail)
        if self.cuts_after_dot:
            self.cuts_after_dot -= 1
            return ""
        return reply


def _word(address: str) -> str:
    return address.partition("@")[0].partition("+")[0].rstrip("0123456789")
