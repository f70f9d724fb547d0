"""Refusals that use the words for an unknown user about something else: none of them may end in the quarantine."""

import pytest

from feedback_service.domain.qualification import qualify
from feedback_service.domain.rules import REFUSED, UNREACHABLE, USER_UNKNOWN, Verdict
from feedback_service.domain.vocabulary import MtaEventKind
from mta_bridge.mail.replies import codes_in


def verdict(text: str) -> Verdict:
    code, enhanced = codes_in(text)
    return qualify(MtaEventKind.BOUNCE, code, enhanced, text, "", "")


@pytest.mark.parametrize(
    "text",
    [
        # What is no longer so: connections, a certificate; not the recipient.
        "550-EXAMPLE no longer accepts connections from dynamically assigned 550 IP addresses",
        "550 the certificate of your server is no longer valid",
        # Whoever is not found is the sender, or its server.
        "554 5.7.1 client host not found in DNS",
        "550 5.7.1 the From address does not exist",
        "554 5.7.1 Return address does not exist",
        "550 envelope from <news@example.com> unknown user",
        "550 reply-to address is invalid",
        "550 HELO name does not exist",
        "550 reverse DNS lookup failed, name not found",
        "550 relay: not a local recipient, relaying denied",
        "550-Verification failed for <news@example.com>",
        # Our own relay does not know us.
        "535 5.7.8 authentication failed: user not found",
        "550 unknown user or wrong password",
        # The next server can't spell the address.
        "local part contains utf8 but the remote server did not offer SMTPUTF8",
    ],
)
def test_what_is_about_the_sender_is_refused_and_never_hard(text: str) -> None:
    assert verdict(text) == REFUSED


@pytest.mark.parametrize(
    "text",
    [
        "500 5.5.1 Command not recognized",
        "503 5.5.1 Bad sequence of commands, command not recognized",
        "550 5.7.1 an unusually high number of invalid recipients came from you",
        "554 5.3.5 Local configuration error: alias database not found",
        "The recipient server did not accept our requests to connect. [mx.example.org 25: socket error]",
        "Duplicated Message-ID in <list@example.org>",
        "x-unix; 127",
    ],
)
def test_what_is_about_the_dialogue_or_the_server_is_unreachable_and_never_hard(text: str) -> None:
    assert verdict(text) == UNREACHABLE


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 this address no longer accepts mail",
        "550 the mailbox is no longer available",
        "550 <anna@example.org> is no longer valid",
        "550 5.1.1 <anna@example.org>... User unknown >>> DATA <<< 503 5.5.1 Bad sequence of commands",
        "anna@example.org <bert@example.org>: malformed address: <bert@example.org> may not follow",
        "551 User not local; please try <anna@example.net>",
    ],
)
def test_what_is_about_the_recipient_stays_hard(text: str) -> None:
    assert verdict(text) == USER_UNKNOWN
