"""Who calls, and what they may do: bearer tokens to callers, callers and methods to yes or no.

A token is a JWT signed with EdDSA (Ed25519) that has `sub`, `exp`, `aud` and `roles`, a list of role names. Which role
a method needs stands in its proto, as a method option; a method that declares none stops the process from starting.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service_runtime.clock import Clock, from_microseconds
from service_runtime.problems import Problem

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

AUDIENCE = "campaign-delivery"
ALGORITHM = "EdDSA"
TOKEN_BYTES_MAX = 8_192
_EXPIRE_SECONDS_MAX = 253_402_300_799  # the last second of the year 9999, where datetime ends

ANY_CALLER_SERVICES = frozenset(
    {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
)
"""Services whose methods need a valid token, whatever its roles."""


class Unauthenticated(Problem):
    """No token, or one that proves nothing."""


class TokenExpired(Unauthenticated):
    """The token was good once. Also ends a stream that outlives its token."""


class PermissionDenied(Problem):
    """The caller is known, and lacks the role."""


class UndeclaredAccess(Exception):
    """A served method does not say who may call it: an error of the contract, found at start-up."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the current call."""

    subject: str
    roles: frozenset[str]
    expire_time: datetime | None = None


current_caller: ContextVar[Caller] = ContextVar("current_caller")


def caller() -> Caller:
    """The authenticated caller of the call being served; LookupError outside of one."""
    return current_caller.get()


class TokenVerifier:
    """Turns a bearer token into a `Caller`, or raises `Unauthenticated`.

    Several keys are accepted at once, so that keys can be rotated. A verification costs some 135 microseconds; results
    are kept until the token expires, by digest, so that no bearer token stays readable in memory for long.
    """

    def __init__(
        self,
        public_keys_pem: Sequence[str | bytes],
        clock: Clock,
        *,
        audience: str = AUDIENCE,
        leeway_seconds: float = 5.0,
        cached_tokens_max: int = 10_000,
    ) -> None:
        if not public_keys_pem:
            raise ValueError("no public key given: no token could ever be verified")
        self._keys = tuple(_read_public_key(pem) for pem in public_keys_pem)
        self._clock = clock
        self._audience = audience
        self._leeway_us = round(leeway_seconds * 1_000_000)
        self._cached_tokens_max = cached_tokens_max
        self._cache: OrderedDict[bytes, tuple[Caller, int]] = OrderedDict()

    def verify(self, token: str) -> Caller:
        """The caller that `token` proves."""
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise Unauthenticated(f"a token is ASCII and has at most {TOKEN_BYTES_MAX} bytes: send it as it was issued")
        now_us = self._clock.now_us()
        key = hashlib.sha256(token.encode()).digest()
        if (known := self._cache.get(key)) is not None:
            found, last_us = known
            self._cache.move_to_end(key)
        else:
            claims = self._decode(token)
            found, last_us = self._caller_from(claims, now_us)
        if now_us >= last_us:
            self._cache.pop(key, None)
            raise TokenExpired("the token has expired: get a new one and call again")
        if known is None:
            self._cache[key] = (found, last_us)
            if len(self._cache) > self._cached_tokens_max:
                self._cache.popitem(last=False)
        return found

    def _decode(self, token: str) -> dict[str, Any]:
        # Times are left to us, since PyJWT reads the machine's clock. The list of algorithms is closed: "none" and HMAC
        # with the public key as secret are the classic ways in.
        options: Any = {"require": ["exp", "sub", "aud"], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        failure: Exception | None = None
        for public_key in self._keys:
            try:
                return jwt.decode(token, public_key, algorithms=[ALGORITHM], audience=self._audience, options=options)
            except jwt.InvalidSignatureError as error:
                failure = error
            except (jwt.PyJWTError, ValueError, RecursionError) as error:  # the last two: JSON made to break parsers
                failure = error
                break  # another key would not make the rest of the token right
        raise Unauthenticated(
            f"the token is not valid ({type(failure).__name__}): send one issued for the audience {self._audience!r}"
        ) from failure

    def _caller_from(self, claims: Mapping[str, Any], now_us: int) -> tuple[Caller, int]:
        expire, start = claims["exp"], claims.get("nbf", 0)
        if not _is_time(expire) or not _is_time(start):
            raise Unauthenticated("the token's exp or nbf is not a time in seconds: have a correct one issued")
        if now_us + self._leeway_us < start * 1_000_000:
            raise Unauthenticated("the token is not valid yet: wait, or set the clocks right")
        roles = claims.get("roles")
        if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
            raise Unauthenticated("the token's claim roles is not a list of names: have a correct one issued")
        if not claims["sub"]:
            raise Unauthenticated("the token's claim sub is empty: have one issued that says who calls")
        last_us = round(expire * 1_000_000) + self._leeway_us
        expire_time = from_microseconds(min(last_us, _EXPIRE_SECONDS_MAX * 1_000_000))
        return Caller(claims["sub"], frozenset(roles), expire_time), last_us


class AccessPolicy:
    """Decides whether a caller's roles open a method. A method that it doesn't know is closed to everyone."""

    def __init__(
        self,
        required_role: Mapping[str, frozenset[str]],
        implied: Mapping[str, frozenset[str]],
        *,
        any_caller_services: frozenset[str] = ANY_CALLER_SERVICES,
    ) -> None:
        """`required_role`: full method name to the roles any of which admits. `implied`: role to those it includes."""
        self._admitted = {method: _with_implying(roles, implied) for method, roles in required_role.items()}
        self._required = dict(required_role)
        self._any_caller_services = any_caller_services

    def authorise(self, who: Caller, method: str) -> None:
        """Raises `PermissionDenied` unless `who` may call `method` (written `/package.Service/Method`)."""
        if method.rpartition("/")[0].removeprefix("/") in self._any_caller_services:
            return
        if who.roles.isdisjoint(self._admitted.get(method, frozenset())):
            needed = " or ".join(sorted(self._required.get(method, ()))) or "a role that nobody has"
            raise PermissionDenied(
                f"{method} needs the role {needed}: ask for a token that has it",
                metadata={"method": method, "required_role": needed},
            )


def required_roles(
    service: "ServiceDescriptor", extension: "FieldDescriptor", role_name: Callable[[int], str]
) -> dict[str, frozenset[str]]:
    """Reads who may call each method of `service` from its method option, an enum or a repeated enum.

    `role_name` makes the role's name from the enum's number. Every method must declare a role other than zero: else
    `UndeclaredAccess` names those that don't. The answer is what `AccessPolicy` takes.
    """
    roles: dict[str, frozenset[str]] = {}
    undeclared: list[str] = []
    for method in service.methods:
        options: Any = method.GetOptions()  # which extensions it has is known only at run time
        value = options.Extensions[extension]
        numbers = [value] if isinstance(value, int) else list(value)
        full_name = f"/{service.full_name}/{method.name}"
        if not numbers or 0 in numbers:
            undeclared.append(full_name)
        else:
            roles[full_name] = frozenset(role_name(number) for number in numbers)
    if undeclared:
        raise UndeclaredAccess(
            f"no {extension.full_name} declared by {', '.join(undeclared)}: add the option in the proto; "
            "a method nobody declared is open to nobody"
        )
    return roles


def _with_implying(roles: Iterable[str], implied: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """The given roles and all those that include one of them, directly or through others."""
    admitted = set(roles)
    while more := {role for role, parts in implied.items() if role not in admitted and not admitted.isdisjoint(parts)}:
        admitted |= more
    return frozenset(admitted)


def _is_time(value: object) -> bool:
    # bool is an int, and NaN compares false with everything: neither may pass for a time.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _EXPIRE_SECONDS_MAX


def _read_public_key(pem: str | bytes) -> Ed25519PublicKey:
    key = load_pem_public_key(pem.encode() if isinstance(pem, str) else pem)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(f"the token key is a {type(key).__name__}: only Ed25519 public keys are accepted")
    return key
