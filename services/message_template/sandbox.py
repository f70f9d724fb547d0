"""The language of campaign templates: a small, bounded part of Jinja2, run in its sandbox.

Templates come from people who may not run code here, and one hostile template must not stop a sender that serves many.
A sandbox alone prevents neither `"x" * 10**9` nor a thousand nested loops. So the syntax tree is checked against a list
of what is allowed, before anything runs: values, conditions, a few filters, loops over `range` and lists. There are no
calls, no assignments and no access to attributes of objects; what remains can grow only with the size of its source
and of its input, and loops draw on a budget.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from jinja2 import ChainableUndefined, Environment, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

SOURCE_CHARACTERS_MAX: Final = 512 * 1_024
NODES_MAX: Final = 10_000
"""Compiling takes some 60 microseconds per node: this bounds it to less than a second."""
DEPTH_MAX: Final = 50
OPERANDS_MAX: Final = 100
"""Of one `{{ … }}` or one `~`: each could stand for the longest attribute."""
RANGE_MAX: Final = 1_000
LOOP_STEPS_MAX: Final = 10_000
"""Of all loops of one rendering together, nested ones included."""

FILTERS: Final = frozenset(
    (
        *("abs", "capitalize", "d", "default", "e", "escape", "first", "float", "int", "last", "length", "lower"),
        *("title", "trim", "truncate", "upper", "urlencode", "wordcount"),
    )
)
"""Filters whose result is no longer than a small multiple of their input."""

_LOOP_FACTS: Final = frozenset(("first", "index", "index0", "last", "length", "revindex", "revindex0"))
_ALLOWED: Final[tuple[type[nodes.Node], ...]] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.List, nodes.Tuple),
    *(nodes.If, nodes.CondExpr, nodes.For, nodes.Filter, nodes.Test, nodes.Keyword, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div),
    *(nodes.FloorDiv, nodes.Mod, nodes.Concat, nodes.Getitem, nodes.Slice),
)
_LOOP_BUDGET: Final = "loop budget"
"""A name that no template can write."""


@dataclass(frozen=True, slots=True)
class TemplateProblem:
    """What is wrong with a template, for the person who wrote it, and in which line."""

    line: int
    message: str


class InvalidTemplate(Exception):
    """The template can't be compiled."""

    def __init__(self, problems: Iterable[TemplateProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"line {problem.line}: {problem.message}" for problem in self.problems))


class LimitExceeded(Exception):
    """Rendering would go beyond a limit."""


class _Empty(ChainableUndefined):
    """An attribute that the recipient lacks: an empty text wherever it stands, and zero as a number."""

    def __int__(self) -> int:  # type: ignore[override]
        return 0

    def __float__(self) -> float:  # type: ignore[override]
        return 0.0

    def __add__(self, other: str) -> str:  # type: ignore[override]
        return "" + other

    def __radd__(self, other: str) -> str:  # type: ignore[override]
        return other + ""

    def __eq__(self, other: object) -> bool:
        return str(self) == other or isinstance(other, _Empty)

    def __hash__(self) -> int:
        return hash("")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        # For text, these two mean repetition and formatting: a short way to a gigabyte.
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError(f"{operator} works on numbers only: convert attributes with |int or |float")
        return super().call_binop(context, operator, left, right)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:  # noqa: ARG002 - the engine's signature
        raise SecurityError(f"{attribute!r} is not accessible")


def _bounded_range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > RANGE_MAX:
        raise LimitExceeded(f"a range has at most {RANGE_MAX:,} numbers")
    return numbers


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    """What every `for` really runs over."""
    budget = context[_LOOP_BUDGET]
    for item in items:
        budget[0] -= 1
        if budget[0] < 0:
            raise LimitExceeded(f"the loops make more than {LOOP_STEPS_MAX:,} steps")
        yield item


def _environment(autoescape: bool) -> Environment:
    environment = _Sandbox(autoescape=autoescape, undefined=_Empty, keep_trailing_newline=True, cache_size=0)
    environment.globals = {"range": _bounded_range}
    environment.filters = {name: environment.filters[name] for name in FILTERS} | {"counted": _counted}
    return environment


_ESCAPING = _environment(autoescape=True)
_PLAIN = _environment(autoescape=False)


def check(source: str) -> list[TemplateProblem]:
    """Everything that is wrong with a template; empty if it can be compiled. Never raises."""
    try:
        compile_template(source)
    except InvalidTemplate as invalid:
        return list(invalid.problems)
    return []


class Template:
    """A compiled template."""

    def __init__(self, code: Any, environment: Environment) -> None:
        self._template = environment.template_class.from_code(environment, code, environment.globals)

    def pieces(self, attributes: dict[str, str]) -> Iterator[str]:
        """The rendered text, piece by piece, so that the reader may stop when it gets too long."""
        return self._template.generate({**attributes, _LOOP_BUDGET: [LOOP_STEPS_MAX]})


def compile_template(source: str, *, autoescape: bool = False) -> Template:
    """Compiles a template, or raises `InvalidTemplate` with all that is wrong with it."""
    if len(source) > SOURCE_CHARACTERS_MAX:
        raise _invalid(1, f"the template is longer than {SOURCE_CHARACTERS_MAX:,} characters: shorten it")
    environment = _ESCAPING if autoescape else _PLAIN
    try:
        tree = environment.parse(source)
        if problems := _problems_of(tree):
            raise InvalidTemplate(problems)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, "counted", [], [], None, None, lineno=loop.lineno, environment=environment
            )
        return Template(environment.compile(tree), environment)
    except TemplateSyntaxError as error:
        raise _invalid(error.lineno, error.message or "the syntax is not right") from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise _invalid(1, "parts of the template are nested too deeply: simplify it") from error
    except (TemplateError, ValueError, ArithmeticError, TypeError) as error:
        raise _invalid(1, f"the template can't be compiled ({error}): correct it") from error


def _problems_of(tree: nodes.Template) -> list[TemplateProblem]:
    """Walks the tree with its own stack: a hostile tree may be deeper than Python's."""
    problems: dict[TemplateProblem, None] = {}
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > NODES_MAX:
            return [TemplateProblem(node.lineno, f"the template has more than {NODES_MAX:,} parts: simplify it")]
        if depth > DEPTH_MAX:
            return [TemplateProblem(node.lineno, f"parts are nested more than {DEPTH_MAX} deep: simplify it")]
        children = list(node.iter_child_nodes())
        if isinstance(node, nodes.Call):
            # What is called needs no look: it is `range`, or the call is a problem already.
            children = [child for child in children if child is not node.node]
        if message := _problem_of(node, children):
            problems[TemplateProblem(node.lineno, message)] = None
        waiting.extend((child, depth + 1) for child in children)
    return sorted(problems, key=lambda problem: problem.line)


def _problem_of(node: nodes.Node, children: list[nodes.Node]) -> str | None:
    match node:
        case nodes.Call(node=nodes.Name(name="range")) if not node.dyn_args and not node.dyn_kwargs:
            return None
        case nodes.Call():
            return "only range(…) can be called: use a filter instead, as in {{ name|upper }}"
        case nodes.Getattr(node=nodes.Name(name="loop"), attr=attr) if attr in _LOOP_FACTS:
            return None
        case nodes.Getattr(attr=attr):
            return f"attributes are plain text and have no part {attr!r}: write the attribute's name alone"
        case nodes.Getitem(arg=arg) if not _is_position(arg):
            return "only a number or a slice can stand between brackets, as in {{ name[0] }}"
        case nodes.Filter(name=name) if name not in FILTERS:
            return f"there is no filter {name!r} here: use one of {', '.join(sorted(FILTERS))}"
        case nodes.Name(name=name) if name.startswith("_"):
            return f"the name {name!r} begins with an underscore: rename the attribute"
        case nodes.Name(name="range" | "self" as name):
            return f"{name!r} can't be shown: rename the attribute"
        case nodes.For(recursive=True):
            return "loops can't be recursive"
        case nodes.Concat() if len(children) > OPERANDS_MAX:
            return f"more than {OPERANDS_MAX} parts are joined with ~: write them one after the other"
    if not isinstance(node, _ALLOWED):
        return f"{type(node).__name__.lower()} is not possible in a campaign template: use values, filters, if and for"
    return None


def _is_position(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Neg):
        node = node.node
    return isinstance(node, nodes.Slice) or (isinstance(node, nodes.Const) and isinstance(node.value, int))


def _invalid(line: int, message: str) -> InvalidTemplate:
    return InvalidTemplate([TemplateProblem(line, message)])
