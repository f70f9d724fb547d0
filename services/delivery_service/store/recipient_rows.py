"""Recipients in the binary format of COPY, written here and not by the driver: it takes a row for values of any types,
looks at each of them again, and sends nothing before half a megabyte is ready."""

from collections.abc import AsyncIterator, Sequence
from struct import Struct
from typing import Final

COLUMNS: Final = ("delivery_id", "recipient", "address_problem", "profile_id", "address", "attributes")
_ROWS_PER_PIECE: Final = 500
_BEGIN: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # neither flags nor an extension
_END: Final = b"\xff\xff"
# A row is the number of its fields, and for each its length and its bytes.
_delivery_id = Struct(">hiqi").pack  # with the number of fields before it, and the length of the next one behind it
_address_problem = Struct(">ihi").pack
_length = Struct(">i").pack


def encoded_row(judged: tuple[str, int], profile_id: str, attributes: bytes) -> bytes:
    """One recipient, but for what it gets from the delivery: its id, and a number. `judged`: its address and what is
    wrong with that."""
    address, address_problem = judged
    profile, to = profile_id.encode(), address.encode()
    return b"".join(
        (
            *(_address_problem(2, address_problem, len(profile)), profile),
            *(_length(len(to)), to),
            *(_length(len(attributes)), attributes),
        )
    )


async def copy_source(delivery_id: int, first: int, rows: Sequence[bytes]) -> AsyncIterator[bytes]:
    """These rows as recipients `first`, `first` + 1, … of the delivery, in pieces: Postgres begins with the first."""
    prefix = _delivery_id(len(COLUMNS), 8, delivery_id, 4)
    yield _BEGIN
    for begin in range(0, len(rows), _ROWS_PER_PIECE):
        parts: list[bytes] = []
        for recipient, row in enumerate(rows[begin : begin + _ROWS_PER_PIECE], start=first + begin):
            parts += (prefix, recipient.to_bytes(4, "big"), row)
        yield b"".join(parts)
    yield _END
