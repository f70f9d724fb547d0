"""Misspelt settings are told, not ignored."""

from service_runtime.environment import unknown_variables


def test_a_variable_with_the_prefix_that_is_no_setting_is_told() -> None:
    environment = {"DELIVERY_LISTEN": "", "delivery_listne": "", "DELIVERY_PORT": "", "HOME": "", "DELIVER": ""}

    assert unknown_variables(environment, "DELIVERY_", ["listen", "database_url"]) == [
        "DELIVERY_PORT",
        "delivery_listne",
    ]
