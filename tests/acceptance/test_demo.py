"""`campaign demo`: a whole send through an MTA that misbehaves, by the command alone."""

import json

import pytest

from tests.support.campaign_process import campaign

pytestmark = pytest.mark.timeout(600)


def test_the_demo_is_exact() -> None:
    done = campaign("demo", "--recipients", "2000", "--seed", "7", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["truth"] == result["outcomes"]
    assert sum(result["outcomes"].values()) == result["to_deliver"]
    assert (result["drift"], result["duplicates_sent"]) == (0, 0)
    assert result["opened"] > result["clicked"] > 0
    delivered = result["with_efs"]["delivered"]
    assert delivered == {
        "count": result["outcomes"]["delivered"],
        "base": result["to_deliver"],
        "rate": delivered["count"] / delivered["base"],
    }
    assert result["without_efs"]["processed"] == result["without_efs"]["delivered"]["base"]
