"""What proves who we are to the mail server and to receivers: TLS, AUTH, and DKIM."""

import asyncio
import base64
import datetime
import email
import ipaddress
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dkim
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from campaign.mta.v1 import relay_service_pb2 as relay_pb
from tests.integration.mta_bridge.conftest import RunBridge
from tests.support.scripted_smtp import ScriptedSmtp

KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
KEY_PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)


class SubmissionServer:
    """Takes mail over TLS from who knows the password, as a provider's submission port does."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, bool, bool]] = []
        """Recipient; whether it came over TLS; whether somebody had logged in."""
        self.port = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        del server
        self.taken += [(rcpt, session.ssl is not None, bool(session.authenticated)) for rcpt in envelope.rcpt_tos]
        return "250 2.0.0 Ok: queued as Q1"

    def authenticate(self, *arguments: Any) -> AuthResult:
        given = arguments[-1]
        knows = isinstance(given, LoginPassword) and (given.login, given.password) == (b"bridge", b"secret")
        return AuthResult(success=knows, handled=False)


@asynccontextmanager
async def submission_server(folder: Path, *, starttls: bool) -> AsyncIterator[SubmissionServer]:
    certificate(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    handler = SubmissionServer()

    def protocol() -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of AUTH without TLS: under implicit TLS it sees none
            return _smtp()

    def _smtp() -> SMTP:
        return SMTP(
            handler,
            hostname="mx.test",
            tls_context=context if starttls else None,
            require_starttls=starttls,
            authenticator=handler.authenticate,
            auth_required=True,
            auth_require_tls=starttls,
        )

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=None if starttls else context)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        server.close()


def certificate(folder: Path) -> None:
    """For 127.0.0.1, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mx.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(KEY, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(KEY_PEM)


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_mail_leaves_over_tls_and_logged_in(run: RunBridge, tmp_path: Path, tls: str) -> None:
    async with submission_server(tmp_path, starttls=tls == "starttls") as server:
        settings = {"smtp_port": server.port, "smtp_tls": tls, "smtp_ca_file": tmp_path / "certificate.pem"}
        async with run(**settings, smtp_user="bridge", smtp_password="secret") as bridge:
            response = await bridge.relay(["anna@a.test", "bert@a.test"])
    assert list(response.verdicts) == [relay_pb.RELAY_VERDICT_ACCEPTED] * 2
    assert sorted(recipient for recipient, _, _ in server.taken) == ["anna@a.test", "bert@a.test"]
    assert all(logged_in and (over_tls or tls == "tls") for _, over_tls, logged_in in server.taken)


@pytest.mark.expects_errors  # of the server's, whose handshake is broken off
@pytest.mark.parametrize("fault", ["another certificate", "another password", "no TLS there"])
async def test_nothing_leaves_to_a_server_that_is_not_the_right_one_or_does_not_know_us(
    run: RunBridge, smtp: ScriptedSmtp, tmp_path: Path, fault: str
) -> None:
    async with submission_server(tmp_path, starttls=True) as server:
        settings = {"smtp_port": server.port, "smtp_tls": "starttls", "smtp_user": "bridge", "smtp_password": "secret"}
        if fault == "no TLS there":
            settings["smtp_port"] = smtp.port
        if fault != "another certificate":
            settings["smtp_ca_file"] = tmp_path / "certificate.pem"
        if fault == "another password":
            settings["smtp_password"] = "guessed"
        async with run(**settings) as bridge:
            response = await bridge.relay(["anna@a.test"])
            assert bridge.app.journal.counts() == {}
    assert list(response.verdicts) == [relay_pb.RELAY_VERDICT_TRY_LATER]
    assert server.taken == []
    assert smtp.mails == []


async def test_the_signature_is_good_and_covers_the_headers_of_the_one_click_unsubscribe(
    run: RunBridge, smtp: ScriptedSmtp, tmp_path: Path
) -> None:
    (tmp_path / "dkim.pem").write_bytes(KEY_PEM)
    public = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    asked: list[bytes] = []

    def look_up(name: bytes, timeout: int = 5) -> bytes:
        del timeout
        asked.append(name)
        return record

    settings = {"dkim_key_file": tmp_path / "dkim.pem", "dkim_selector": "s1", "dkim_domain": "fair.example"}
    async with run(unsubscribe_url="https://u.fair.example/{token}", **settings) as bridge:
        await bridge.relay(["anna@mail.test"])
    (mail,) = smtp.mails
    assert dkim.verify(mail.content, dnsfunc=look_up)
    assert asked == [b"s1._domainkey.fair.example."]
    signature = "".join(str(email.message_from_bytes(mail.content)["DKIM-Signature"]).split())
    covered = next(field for field in signature.split(";") if field.startswith("h=")).removeprefix("h=").split(":")
    assert {"from", "to", "subject", "list-unsubscribe", "list-unsubscribe-post"} <= set(covered)
    assert not dkim.verify(mail.content.replace(b"u.fair.example", b"u.elsewhere.example"), dnsfunc=look_up)
