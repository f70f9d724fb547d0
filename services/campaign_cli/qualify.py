"""`campaign qualify`: how texts and bounce mails would be qualified, without any service running.

The one place where the reading of mails and the rules of qualification meet outside of the running system: so that
anyone can try a text before it is asked about.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.table import Table

from campaign_cli.options import json_option
from campaign_cli.running import open_console
from feedback_service.domain.qualification import qualify as qualify_event
from feedback_service.domain.vocabulary import FailureType, MtaEventKind, Reason
from mta_bridge.mail.mime import BYTES_READ_MAX
from mta_bridge.mail.reader import read_mail
from mta_bridge.mail.replies import codes_in
from mta_bridge.mail.report import Action, MailKind, MailReport, RecipientReport

_KIND_OF_ACTION: Final = {
    Action.DELIVERED: MtaEventKind.DELIVERY,
    Action.DELAYED: MtaEventKind.TRANSIENT_FAILURE,
    Action.EXPIRED: MtaEventKind.EXPIRATION,
    Action.FAILED: MtaEventKind.BOUNCE,
}
_KINDS: Final = {
    kind.name.lower().replace("_", "-"): kind for kind in MtaEventKind if kind <= MtaEventKind.OUT_OF_BAND_BOUNCE
}


@dataclass(frozen=True, slots=True)
class Qualified:
    """One recipient of one mail, with the verdict."""

    recipient: RecipientReport
    kind: MtaEventKind
    failure_type: FailureType
    reason: Reason

    def as_json(self) -> dict[str, Any]:
        return {
            "address": self.recipient.address,
            "type": type_word(self.failure_type),
            "reason": reason_word(self.reason),
            "smtp_code": self.recipient.smtp_code,
            "enhanced_code": self.recipient.enhanced_code,
            "kind": self.kind.name.lower(),
        }


def type_word(failure_type: FailureType) -> str:
    """`soft`, `hard`, `ignored`; empty where nothing failed."""
    return "" if failure_type is FailureType.NONE else failure_type.name.lower()


def reason_word(reason: Reason) -> str:
    """The product's name: `Mailbox full`; empty where nothing failed."""
    return "" if reason is Reason.NONE else reason.name.replace("_", " ").capitalize()


def qualified(report: MailReport) -> list[Qualified]:
    """What a mail's recipients come to."""
    return [_qualified(report, recipient) for recipient in report.recipients]


def _qualified(report: MailReport, recipient: RecipientReport) -> Qualified:
    match report.kind:
        case MailKind.AUTO_REPLY:
            # A machine answered in the recipient's place: known to be harmless.
            return Qualified(recipient, MtaEventKind.AUTO_REPLY, FailureType.IGNORED, Reason.ERROR_IGNORED)
        case MailKind.COMPLAINT:
            kind = MtaEventKind.COMPLAINT
        case _:
            kind = _KIND_OF_ACTION[recipient.action]
    verdict = qualify_event(
        kind, recipient.smtp_code, recipient.enhanced_code, recipient.diagnostic, "", report.feedback_type
    )
    return Qualified(recipient, kind, *verdict)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option("--text", help="What an MTA said, instead of mails: '550 5.1.1 user unknown'.")
@click.option("--kind", type=click.Choice(list(_KINDS)), default="bounce", show_default=True, help="With --text.")
@json_option
def qualify(files: tuple[Path, ...], text: str | None, kind: str, as_json: bool) -> None:
    """Tells how bounce mails (FILES, folders of them, or - for standard input), or a text, are qualified."""
    if (text is None) == (not files):
        raise click.UsageError("give either files, or --text")
    if text is not None:
        code, enhanced = codes_in(text)
        action = {value: key for key, value in _KIND_OF_ACTION.items()}.get(_KINDS[kind], Action.FAILED)
        recipient = RecipientReport("", action, code, enhanced, text)
        verdict = qualify_event(_KINDS[kind], code, enhanced, text, "", "")
        results = [("", [Qualified(recipient, _KINDS[kind], *verdict)])]
        _show(iter(results), as_json)
    else:
        _show(((str(path), qualified(read_mail(raw))) for path, raw in _mails(files)), as_json)


def _mails(files: tuple[Path, ...]) -> Iterator[tuple[Path, bytes]]:
    for path in files:
        if str(path) == "-":
            yield path, sys.stdin.buffer.read(BYTES_READ_MAX)
        elif path.is_dir():
            yield from ((inner, _beginning(inner)) for inner in sorted(path.rglob("*")) if inner.is_file())
        else:
            yield path, _beginning(path)


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BYTES_READ_MAX)


def _show(results: Iterator[tuple[str, list[Qualified]]], as_json: bool) -> None:
    if as_json:
        for name, found in results:
            click.echo(json.dumps({"file": name, "recipients": [one.as_json() for one in found]}, ensure_ascii=False))
        return
    table = Table("file", "address", "kind", "type", "reason", "code", "what was said")
    for name, found in results:
        if not found:
            table.add_row(name, "", "not a bounce", "", "", "", "")
        for one in found:
            told = one.recipient
            table.add_row(
                name,
                told.address,
                one.kind.name.lower().replace("_", " "),
                type_word(one.failure_type),
                reason_word(one.reason),
                f"{told.smtp_code or ''} {told.enhanced_code}".strip(),
                told.diagnostic[:80],
            )
    open_console().print(table)
