"""Values are bound to statements, never written into them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
SOURCES = [path for folder in ("ml", "dags", "plugins") for path in (REPOSITORY / folder).rglob("*.py")]  # fmt: skip
# What takes a statement, by the name of its last part; sa.text and sqlalchemy.text are both `text`.
TAKES_SQL = {
    "text", "execute", "exec_driver_sql", "executemany", "copy_expert", "scalar", "scalars",
    "search_runs", "search_model_versions",
}  # fmt: skip
# File and function → why its statement may be what it is.
ALLOWED = {
    ("ml/cli/database.py", "_run_query"): "the analyst's own query, run as the analyst",
    (
        "ml/database/migrations/indexes.py",
        "_execute",
    ): "a migration's own file, or what partitions_to_index.sql makes, which quotes names",
    ("ml/database/roles.py", "_ensure_database"): "privileges named in DATABASES; names are quoted",
    (
        "ml/registry/versions.py",
        "name_filter",
    ): "MLflow binds nothing: the name is checked by a pattern first",
    (
        "ml/registry/library_api.py",
        "search_versions",
    ): "handed over by ml/registry/versions.py, whose `name_filter` makes it",
    (
        "ml/registry/tracking.py",
        "_search_runs",
    ): "MLflow binds nothing: quotes are taken out of the value",
}


def _called(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        if function.attr == "text" and ast.unparse(function.value) not in ("sa", "sqlalchemy"):
            return ""  # of a figure, for instance
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _composes(node: ast.expr) -> bool:
    """Whether text is put together here: an f-string, `%`, `+`, `.format` or `.join`."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Mod | ast.Add)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        inner = node.func.value
        # psycopg2's own composition quotes identifiers and literals.
        quoting = isinstance(inner, ast.Call) and _called(inner) == "SQL"
        if quoting and node.func.attr in ("format", "join"):
            return any(_is_raw(part) for argument in node.args for part in ast.walk(argument))
        # Not the join of two tables.
        return node.func.attr == "format" or (
            node.func.attr == "join" and isinstance(inner, ast.Constant)
        )
    return False


def _is_raw(node: ast.AST) -> bool:
    """`sql.SQL(x)` of anything but a text in the source."""
    return (
        isinstance(node, ast.Call)
        and _called(node) == "SQL"
        and not all(isinstance(argument, ast.Constant) for argument in node.args)
    )


def _unsafe(node: ast.expr, function: ast.AST, seen: frozenset[str] = frozenset()) -> bool:
    """Whether an expression holds composed text, or a name that does or that a caller gives."""
    parts = [part for part in ast.walk(node) if isinstance(part, ast.expr)]
    if any(_composes(part) or _is_raw(part) for part in parts):
        return True
    if not isinstance(node, ast.Name) or node.id in seen:
        return False
    if isinstance(function, ast.FunctionDef):
        arguments = function.args
        parameters = {
            a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        }
        if node.id in parameters:
            return True
    values = [
        assigned.value
        for assigned in ast.walk(function)
        if isinstance(assigned, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == node.id for t in assigned.targets)
    ]
    return any(_unsafe(value, function, seen | {node.id}) for value in values)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Each function with its name, and what is outside of all of them."""
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        yield function.name, function, function
    outside = ast.Module([n for n in tree.body if n not in functions], [])
    yield "", outside, tree


def faults(source: str) -> set[str]:
    """The functions that put a statement together from values, `` for the module itself."""
    names = set()
    for name, body, scope in _functions(ast.parse(source)):
        for call in ast.walk(body):
            if not isinstance(call, ast.Call) or _called(call) not in TAKES_SQL:
                continue
            statements = [
                *call.args[:2],
                *(k.value for k in call.keywords if k.arg == "filter_string"),
            ]
            if any(_unsafe(statement, scope) for statement in statements[:2]):
                names.add(name)
    # A filter of MLflow that a function makes for another.
    if re.search(r"f\"name = '\{", source):
        names |= {
            n
            for n, body, _ in _functions(ast.parse(source))
            if n and "name = '" in ast.unparse(body)
        }
    return names


def test_no_statement_is_put_together_from_values():
    assert len(SOURCES) > 60
    composing = {
        (str(path.relative_to(REPOSITORY)), function)
        for path in SOURCES
        for function in faults(path.read_text(encoding="utf-8"))
    }
    assert composing == set(ALLOWED)


@pytest.mark.parametrize(
    "statement",
    [
        "sa.text(f'SELECT {x}')",
        "sa.text('SELECT %s' % x)",
        "sa.text('SELECT ' + x)",
        "sa.text('SELECT {}'.format(x))",
        "cursor.execute(f'SELECT {x}')",
        "connection.exec_driver_sql(''.join(x))",
        "cursor.copy_expert(f'COPY {x} FROM STDIN', file)",
        "cursor.execute(sql.SQL(x))",
        "cursor.execute(sql.SQL('SELECT {}').format(sql.SQL(x)))",
        "cursor.execute(x)",
        "client.search_runs([1], filter_string=f'tags.x = {x}')",
    ],
)
def test_the_check_finds_it(statement):
    assert faults(f"def f(x):\n    {statement}") == {"f"}
    assert faults(f"def f(x):\n    y = {statement.replace('(x)', '(str(x) + x)')}\n") == {"f"}


@pytest.mark.parametrize(
    "statement",
    [
        "sa.text('SELECT :x')",
        "cursor.execute('SELECT %s', [x])",
        "current.execute(statement('merge'), {'x': x})",
        "cursor.execute(sql.SQL('DROP TABLE {}').format(sql.Identifier(x)))",
        "current.execute(sa.select(Run).where(Run.x == x))",
    ],
)
def test_the_check_lets_it_pass(statement):
    assert faults(f"def f(x):\n    {statement}") == set()


def test_statements_that_sql_puts_together_quote_what_they_put_in():
    files = [*(REPOSITORY / "ml").rglob("*.sql")]
    assert len(files) > 20
    executed = [
        (path.name, statement)
        for path in files
        # `EXECUTE` of PL/pgSQL is at the beginning of a line; that of GRANT and REVOKE is not.
        for statement in re.findall(
            r"^\s*EXECUTE (?!FUNCTION)(.*?);", path.read_text(encoding="utf-8"), re.M | re.S
        )
    ]
    assert executed
    for name, statement in executed:
        assert statement.startswith("format("), (name, statement)
        assert "||" not in statement, (name, statement)
        # regclass and regprocedure are written as quoted names; other values need %I or %L.
        if "%s" in statement:
            assert re.search(r"(relation|function)\)$", statement), (name, statement)
