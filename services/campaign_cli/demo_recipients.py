"""Made-up people for the demo: the same seed makes the same file. Every name and domain is invented or reserved."""

import csv
import random
import unicodedata
from collections.abc import Mapping
from pathlib import Path

FIRST_NAMES = (
    "Anna", "Adrien", "Beatriz", "Chloé", "Dmitri", "Elif", "Femi", "Grace", "Hiro", "Inès", "Jonas", "Käthe",
    "Louis", "Maja", "Noor", "Oskar", "Priya", "Quentin", "Rosa", "Sören", "Tomás", "Ursula", "Valérie", "Wei", "Zoë",
)  # fmt: skip
LAST_NAMES = (
    "Almeida", "Bakker", "Castel", "Dupont", "Eriksen", "Fontaine", "Garnier", "Hoffmann", "Ivanova", "Jansen", "Kaya",
    "Lefèvre", "Müller", "Novak", "Okafor", "Petit", "Rossi", "Sato", "Tanaka", "Ueda", "Vasquez", "Weber", "Yilmaz",
)  # fmt: skip
CITIES = ("Amsterdam", "Barcelona", "Dakar", "Göteborg", "İzmir", "Lyon", "München", "Osaka", "Porto", "Toronto")
DOMAINS = ("inbox.example", "post.example", "mail.example", "courrier.example", "firma.example")
MALFORMED = ("no-at-sign.example", "two@@signs.example", "spaces in@the.example", "nobody@", "@nowhere.example")

DUPLICATE_SHARE = 0.01
EMPTY_SHARE = 0.005
MALFORMED_SHARE = 0.005


def write_recipients(path: Path, count: int, seed: int) -> None:
    """Writes a CSV file of `count` recipients: a few have no address, a malformed one, or someone else's."""
    draw = random.Random(seed)
    addresses: list[str] = []
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("profile_id", "email", "first_name", "last_name", "city"))
        for number in range(1, count + 1):
            first, last = draw.choice(FIRST_NAMES), draw.choice(LAST_NAMES)
            own = f"{_plain(first)}.{_plain(last)}{number}@{draw.choice(DOMAINS)}"
            writer.writerow((f"P{number:06}", _address(draw, own, addresses), first, last, draw.choice(CITIES)))


def write_tagged_recipients(path: Path, count: int, seed: int, shares: Mapping[str, float]) -> None:
    """Writes a CSV file of `count` good recipients; a share of them has each of these tags in the address."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("profile_id", "email", "first_name", "last_name", "city"))
        for number in range(1, count + 1):
            first, last = draw.choice(FIRST_NAMES), draw.choice(LAST_NAMES)
            fortune, tag = draw.random(), ""
            for name, share in shares.items():
                if 0 <= fortune < share:
                    tag = f"+{name}"
                fortune -= share
            address = f"{_plain(first)}.{_plain(last)}{number}{tag}@{draw.choice(DOMAINS)}"
            writer.writerow((f"P{number:06}", address, first, last, draw.choice(CITIES)))


def _address(draw: random.Random, own: str, addresses: list[str]) -> str:
    fortune = draw.random()
    if fortune < EMPTY_SHARE:
        return ""
    if (fortune := fortune - EMPTY_SHARE) < MALFORMED_SHARE:
        return draw.choice(MALFORMED)
    if (fortune := fortune - MALFORMED_SHARE) < DUPLICATE_SHARE and addresses:
        return draw.choice(addresses).replace(".example", ".EXAMPLE")  # the same mailbox all the same
    addresses.append(own)
    return own


def _plain(name: str) -> str:
    """Without accents: `Chloé` is `chloe` in an address."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
