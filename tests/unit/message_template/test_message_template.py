"""Templates: what they can do, and above all what they can't."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_template.message import (
    ATTRIBUTES_CHARACTERS_MAX,
    BODY_CHARACTERS_MAX,
    SUBJECT_CHARACTERS_MAX,
    MessageTemplate,
    NotRendered,
    RenderedMessage,
    compiled,
)
from message_template.sandbox import SOURCE_CHARACTERS_MAX, InvalidTemplate, check


def text(source: str, **attributes: str) -> str:
    return MessageTemplate("", "", source).render(attributes).text


def test_a_message_is_rendered_with_the_attributes_of_its_recipient() -> None:
    template = MessageTemplate(
        "Hi {{ name }}", "<b>{{ name|upper }}</b>\n", "{% if gold %}Gold{% else %}Dear{% endif %}"
    )
    assert template.render({"name": "Anna", "gold": ""}) == RenderedMessage("Hi Anna", "<b>ANNA</b>\n", "Dear")


def test_html_alone_escapes_attributes() -> None:
    rendered = MessageTemplate("{{ a }}", "<i>{{ a }}</i>", "{{ a }}").render({"a": "<&>"})
    assert rendered == RenderedMessage("<&>", "<i>&lt;&amp;&gt;</i>", "<&>")


def test_a_template_without_expressions_is_taken_as_it_is() -> None:
    assert MessageTemplate("a", "<a & b>", "}} %}").render({}) == RenderedMessage("a", "<a & b>", "}} %}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("[{{ x }}]", "[]"),
        ("[{{ x|upper|title|trim|truncate(3) }}]", "[]"),
        ("{{ x|int + 1 }} {{ x|float }} {{ x|length }}", "1 0.0 0"),
        ("{{ x == '' }} {{ x ~ 'a' }} {{ 'a' + x }} {{ x + 'a' }} {{ x[0] }}{{ x[1:] }}", "True a a a "),
        ("{{ x|default('none') }}{% for c in x %}{{ c }}{% endfor %}{% if x %}yes{% endif %}", "none"),
    ],
)
def test_a_missing_attribute_is_empty(source: str, expected: str) -> None:
    assert text(source) == expected


def test_loops_run_over_ranges_lists_and_characters() -> None:
    assert text("{% for n in range(3) %}{{ loop.index }}{{ ',' if not loop.last }}{% endfor %}") == "1,2,3"
    assert text("{% for c in x %}{{ c }}-{% endfor %}", x="ab") == "a-b-"
    assert text("{% for n in [5, 6] if n > 5 %}{{ n }}{% else %}none{% endfor %}") == "6"


@given(st.text(max_size=200))
def test_a_subject_is_always_one_line_without_controls(value: str) -> None:
    subject = MessageTemplate("Re: {{ a }}\r\nBcc: all@mail.test", "", "").render({"a": value}).subject
    assert len(subject.splitlines()) == 1
    assert all(character >= " " and character != "\x7f" for character in subject)


@pytest.mark.parametrize(
    "source",
    [
        "{{ x.__class__ }}",
        "{{ x.__class__.__mro__[1].__subclasses__() }}",
        "{{ x['__class__'] }}",
        "{{ x|attr('__class__') }}",
        "{{ ''.join.__globals__ }}",
        "{{ range.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self }}",
        "{{ range }}",
        "{{ __builtins__ }}",
        "{{ _x }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum(n=10000000) }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ x|format(x) }}",
        "{{ x|map(attribute='__class__')|list }}",
        "{{ loop.__class__ }}",
        "{% for a in [1] %}{{ loop.cycle(1) }}{% endfor %}",
        "{{ x() }}",
        "{{ range(*x) }}",
        "{{ 2 ** 100000000 }}",
        "{{ x|center(1000000000) }}",
        "{{ 1|round(999999999, 'ceil') }}",
        "{{ x|safe }}",
        "{% set a = x ~ x %}",
        "{% with a = x ~ x %}{% endwith %}",
        "{% macro f() %}{{ f() }}{% endmacro %}",
        "{% include 'other' %}",
        "{% import 'other' as o %}",
        "{% extends 'other' %}",
        "{% block a %}{% endblock %}",
        "{% filter upper %}a{% endfilter %}",
        "{% autoescape false %}{{ x }}{% endautoescape %}",
        "{% for a in x recursive %}{% endfor %}",
        "{{ {'a': x} }}",
        "{{ " + "~".join(["x"] * 101) + " }}",
        "{{ " + "9" * 5_000 + " }}",
    ],
)
def test_what_could_escape_or_explode_does_not_compile(source: str) -> None:
    assert check(source)
    with pytest.raises(InvalidTemplate):
        MessageTemplate("", source, "")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ '%0999999999d' % 1 }}",
        "{% for a in range(1001) %}{% endfor %}",
        "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}",
        "{% for a in range(1000) if a < 0 %}{% endfor %}" * 11,
        "{% for a in range(999) %}{{ x }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ x > 3 }}",
    ],
)
def test_what_explodes_when_rendered_is_stopped(source: str) -> None:
    assert check(source) == []
    started = time.monotonic()
    with pytest.raises(NotRendered, match="text: "):
        text(source, x="y" * 20_000)
    assert time.monotonic() - started < 2.0


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5_000,
        "{{ " + "[" * 200 + "]" * 200 + " }}",
        "{{ x" + "|upper" * 5_000 + " }}",
        "{{ " + "-" * 500 + "1 }}",
        "{{ 1" + "+1" * 5_000 + " }}",
        "{% if x %}" * 100 + "{% endif %}" * 100,
        "{% for a in x %}" * 22 + "{% endfor %}" * 22,
    ],
)
def test_deep_nesting_is_a_problem_and_not_a_crash(source: str) -> None:
    assert "nested" in check(source)[0].message


def test_a_template_has_limits_of_size_and_parts() -> None:
    assert "longer" in check(" " * (SOURCE_CHARACTERS_MAX + 1))[0].message
    assert "parts" in check("{{ x }}" * 10_001)[0].message


def test_a_rendered_message_has_limits_of_size() -> None:
    assert len(text("{{ x }}", x="y" * ATTRIBUTES_CHARACTERS_MAX)) < BODY_CHARACTERS_MAX
    with pytest.raises(NotRendered, match="attributes"):
        text("{{ x }}", x="y" * ATTRIBUTES_CHARACTERS_MAX, y="z")
    with pytest.raises(NotRendered, match="subject"):
        MessageTemplate("{{ x }}", "", "").render({"x": "y" * (SUBJECT_CHARACTERS_MAX + 1)})


def test_no_attribute_can_lift_the_limit_of_loops() -> None:
    with pytest.raises(NotRendered):
        text("{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}", **{"loop budget": "9"})


def test_what_is_said_about_a_failure_holds_no_attribute() -> None:
    with pytest.raises(NotRendered) as failure:
        text("{{ secret * 2 }}", secret="4111-1111")
    assert "4111" not in str(failure.value)


def test_check_names_the_line_of_each_problem() -> None:
    found = [(problem.line, problem.message.partition(":")[0]) for problem in check("a\n{{ x.y }}\n\n{{ z|nothing }}")]
    assert [line for line, _ in found] == [2, 4]
    assert check("a\nb {% if %}")[0].line == 2
    assert check("Hi {{ name }") != []
    assert check("Hi {{ name }}") == []


def test_problems_of_a_message_name_their_field() -> None:
    with pytest.raises(InvalidTemplate, match="line 2: html: "):
        MessageTemplate("fine", "a\n{{ x.y }}", "")


def test_a_content_is_compiled_once() -> None:
    assert compiled("{{ a }}", "", "") is compiled("{{ a }}", "", "")
