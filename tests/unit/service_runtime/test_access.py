from base64 import urlsafe_b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from service_runtime.access import (
    TOKEN_BYTES_MAX,
    AccessPolicy,
    Caller,
    PermissionDenied,
    TokenExpired,
    TokenVerifier,
    Unauthenticated,
    UndeclaredAccess,
    caller,
    required_roles,
)
from service_runtime.development_keys import PRIVATE_KEY_FILE, PUBLIC_KEY_FILE, DevelopmentKeys
from tests.support.clock import START, ManualClock

BRACKETS = urlsafe_b64encode(b"[" * 6_000).decode() + ".e30.e30"
READ, WRITE, UNDECLARED = "/t.v1.Books/Read", "/t.v1.Books/Write", "/t.v1.Books/Burn"
POLICY = AccessPolicy(
    {READ: frozenset({"read"}), WRITE: frozenset({"write", "repair"})},
    {"owner": frozenset({"write"}), "write": frozenset({"read"})},
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(clock: ManualClock) -> DevelopmentKeys:
    return DevelopmentKeys.generate(clock)


@pytest.fixture
def verifier(keys: DevelopmentKeys, clock: ManualClock) -> TokenVerifier:
    return TokenVerifier([keys.public_pem], clock)


def forge(keys: DevelopmentKeys, **claims: object) -> str:
    """A well-signed token with odd claims; a claim of None is left out."""
    usual = {"sub": "alice", "aud": "campaign-delivery", "roles": ["read"], "exp": START.timestamp() + 60}
    complete = {name: value for name, value in {**usual, **claims}.items() if value is not None}
    return jwt.encode(complete, keys.private_key, algorithm="EdDSA")


def test_a_token_proves_its_subject_its_roles_and_its_end(keys: DevelopmentKeys, verifier: TokenVerifier) -> None:
    found = verifier.verify(keys.sign("alice", ["read", "write"], 60.0))
    assert (found.subject, found.roles) == ("alice", frozenset({"read", "write"}))
    assert found.expire_time == START + timedelta(seconds=65)  # the leeway included


async def test_a_token_is_good_until_its_end_plus_the_leeway_also_from_the_cache(
    keys: DevelopmentKeys, verifier: TokenVerifier, clock: ManualClock
) -> None:
    token = keys.sign("alice", ["read"], 60.0)
    verifier.verify(token)
    await clock.advance(64.9)
    verifier.verify(token)
    await clock.advance(0.1)
    with pytest.raises(TokenExpired):
        verifier.verify(token)
    with pytest.raises(TokenExpired):
        verifier.verify(token)


async def test_a_token_that_had_expired_before_it_was_ever_seen_is_refused(
    keys: DevelopmentKeys, verifier: TokenVerifier
) -> None:
    with pytest.raises(TokenExpired):
        verifier.verify(keys.sign("alice", ["read"], -6.0))


async def test_a_token_is_not_valid_before_its_start(
    keys: DevelopmentKeys, verifier: TokenVerifier, clock: ManualClock
) -> None:
    token = forge(keys, nbf=START.timestamp() + 30)
    with pytest.raises(Unauthenticated, match="not valid yet"):
        verifier.verify(token)
    await clock.advance(25.0)
    assert verifier.verify(token).subject == "alice"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another-system"},
        {"aud": None},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"exp": None},
        {"exp": "tomorrow"},
        {"exp": True},
        {"exp": 1e30},
        {"exp": float("nan")},
        {"exp": -1},
        {"nbf": "yesterday"},
        {"roles": None},
        {"roles": "read"},
        {"roles": ["read", 7]},
    ],
)
def test_a_well_signed_token_with_a_wrong_claim_is_refused(
    keys: DevelopmentKeys, verifier: TokenVerifier, claims: dict[str, object]
) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify(forge(keys, **claims))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é.è.ê", "\udcff", "x" * (TOKEN_BYTES_MAX + 1), BRACKETS])
def test_what_is_no_token_is_refused(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


def test_an_unsigned_token_is_refused(keys: DevelopmentKeys, verifier: TokenVerifier) -> None:
    claims = jwt.decode(keys.sign("mallory", ["read"]), options={"verify_signature": False})
    with pytest.raises(Unauthenticated):
        verifier.verify(jwt.encode(claims, "", algorithm="none"))


def test_a_token_changed_after_signing_is_refused(keys: DevelopmentKeys, verifier: TokenVerifier) -> None:
    header, _, signature = keys.sign("alice", ["read"]).split(".")
    payload = keys.sign("alice", ["write"]).split(".")[1]
    with pytest.raises(Unauthenticated):
        verifier.verify(f"{header}.{payload}.{signature}")


def test_while_keys_are_rotated_tokens_of_both_are_good_and_of_a_third_are_not(clock: ManualClock) -> None:
    old, new, foreign = (DevelopmentKeys.generate(clock) for _ in range(3))
    verifier = TokenVerifier([old.public_pem, new.public_pem.decode()], clock)
    assert verifier.verify(old.sign("a", [])).subject == "a"
    assert verifier.verify(new.sign("b", [])).subject == "b"
    with pytest.raises(Unauthenticated):
        verifier.verify(foreign.sign("c", []))


def test_the_cache_is_bounded_and_drops_what_was_used_least_recently(
    keys: DevelopmentKeys, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = TokenVerifier([keys.public_pem], clock, cached_tokens_max=2)
    decoded: list[str] = []
    decode = verifier._decode

    def counting(token: str) -> dict[str, Any]:
        decoded.append(token)
        return decode(token)

    monkeypatch.setattr(verifier, "_decode", counting)
    first, second, third = (keys.sign(name, []) for name in "abc")
    for token in (first, second, first, third, first, second):
        verifier.verify(token)
    assert decoded == [first, second, third, second]


def test_a_verifier_needs_ed25519_keys(clock: ManualClock) -> None:
    with pytest.raises(ValueError, match="no public key"):
        TokenVerifier([], clock)
    other = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="only Ed25519"):
        TokenVerifier([other], clock)


@pytest.mark.parametrize(
    ("role", "method", "admitted"),
    [
        ("read", READ, True),
        ("write", READ, True),
        ("owner", READ, True),  # through write
        ("repair", READ, False),
        ("write", WRITE, True),
        ("repair", WRITE, True),
        ("owner", WRITE, True),
        ("read", WRITE, False),
        ("owner", UNDECLARED, False),
        ("nothing", "/grpc.health.v1.Health/Check", True),
        ("nothing", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", True),
        ("nothing", "/grpc.health.v1.Healthy/Check", False),
    ],
)
def test_a_role_admits_where_it_is_required_or_implied(role: str, method: str, admitted: bool) -> None:
    who = Caller("alice", frozenset({role}))
    if admitted:
        POLICY.authorise(who, method)
    else:
        with pytest.raises(PermissionDenied):
            POLICY.authorise(who, method)


def test_a_denial_says_which_role_is_missing() -> None:
    with pytest.raises(PermissionDenied, match="needs the role repair or write") as caught:
        POLICY.authorise(Caller("alice", frozenset()), WRITE)
    assert caught.value.metadata["required_role"] == "repair or write"


def test_outside_of_a_call_there_is_no_caller() -> None:
    with pytest.raises(LookupError):
        caller()


def test_keys_written_are_read_back_private_to_their_owner_and_never_replaced(
    tmp_path: Path, keys: DevelopmentKeys, clock: ManualClock
) -> None:
    folder = tmp_path / "keys"
    keys.write(folder)
    for name in (PRIVATE_KEY_FILE, PUBLIC_KEY_FILE):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    verifier = TokenVerifier([(folder / PUBLIC_KEY_FILE).read_bytes()], clock)
    assert verifier.verify(DevelopmentKeys.read(folder, clock).sign("alice", [])).subject == "alice"
    with pytest.raises(FileExistsError):
        DevelopmentKeys.generate().write(folder)
    assert (folder / PUBLIC_KEY_FILE).read_bytes() == keys.public_pem


ROLE, ROLES = 50_991, 50_992
ROLE_NAMES = {1: "read", 2: "write"}


def option(number: int, *roles: int) -> bytes:
    """MethodOptions with that field set, as protobuf writes them."""
    options = descriptor_pb2.MethodOptions()
    tag = number << 3
    head = bytes([tag & 127 | 128, tag >> 7 & 127 | 128, tag >> 14])
    options.MergeFromString(b"".join(head + bytes([role]) for role in roles))
    return options.SerializeToString()


SERVICES = {
    "Declared": (option(ROLE, 1), option(ROLE, 2)),
    "Several": (option(ROLES, 1), option(ROLES, 2, 1)),
    "Undeclared": (option(ROLE, 1), b"", option(ROLE, 0)),
}


@pytest.fixture(scope="module")
def contract() -> FileDescriptor:
    """Services with one method per entry above, and two method options: one role, or several of which one is enough."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/access.proto",
        package="tests.access",
        syntax="proto3",
        dependency=["google/protobuf/descriptor.proto"],
    )
    role = file.enum_type.add(name="Role")
    for number, name in enumerate(("ROLE_UNSPECIFIED", "ROLE_READ", "ROLE_WRITE")):
        role.value.add(name=name, number=number)
    for name, number, label in (("role", ROLE, kinds.LABEL_OPTIONAL), ("roles", ROLES, kinds.LABEL_REPEATED)):
        file.extension.add(
            name=name,
            number=number,
            label=label,
            type=kinds.TYPE_ENUM,
            type_name=".tests.access.Role",
            extendee=".google.protobuf.MethodOptions",
        )
    file.message_type.add(name="Empty")
    for service_name, methods in SERVICES.items():
        service = file.service.add(name=service_name)
        for index, options in enumerate(methods):
            empty = ".tests.access.Empty"
            method = service.method.add(name=f"M{index}", input_type=empty, output_type=empty)
            method.options.MergeFromString(options)
    # The pool of the process: options of a descriptor from another one would not know the extensions.
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindFileByName("tests/access.proto")


def roles_of(contract: FileDescriptor, service: str, extension: str) -> dict[str, frozenset[str]]:
    return required_roles(
        contract.services_by_name[service], contract.extensions_by_name[extension], ROLE_NAMES.__getitem__
    )


def test_the_roles_of_a_contract_are_read_from_its_method_options(contract: FileDescriptor) -> None:
    assert roles_of(contract, "Declared", "role") == {
        "/tests.access.Declared/M0": frozenset({"read"}),
        "/tests.access.Declared/M1": frozenset({"write"}),
    }
    assert roles_of(contract, "Several", "roles") == {
        "/tests.access.Several/M0": frozenset({"read"}),
        "/tests.access.Several/M1": frozenset({"read", "write"}),
    }


def test_methods_that_declare_no_role_are_all_named(contract: FileDescriptor) -> None:
    with pytest.raises(UndeclaredAccess, match=r"/tests\.access\.Undeclared/M1, /tests\.access\.Undeclared/M2"):
        roles_of(contract, "Undeclared", "role")
    with pytest.raises(UndeclaredAccess):
        roles_of(contract, "Declared", "roles")
