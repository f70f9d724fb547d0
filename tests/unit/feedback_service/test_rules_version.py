"""A change of the rules has a version of its own: what older rules have read must be known by it."""

import hashlib
import json
from dataclasses import asdict
from typing import Final

from feedback_service.domain.rules import RULES, RULES_VERSION

DIGESTS: Final = {3: "d2e5615c39a1fc7a", 4: "5885f943546d3291", 5: "33cee3e99a37a04f", 6: "3f92240e04f63df3"}
"""Of the rules of each version, from the first one that was kept. Add a line, never change one that was released."""


def _digest() -> str:
    rules = [{**asdict(rule), "smtp_codes": list(map(str, rule.smtp_codes)), "source": ""} for rule in RULES]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]


def test_rules_that_changed_have_a_new_version() -> None:
    assert DIGESTS.get(RULES_VERSION) == _digest(), (
        f"the rules changed: raise RULES_VERSION in rules.py, and add {RULES_VERSION + 1}: {_digest()!r} to DIGESTS"
    )
