"""How the package is built, read from its syntax trees: imports, signatures, docstrings, names at the top level.

Each check takes the folder of a package and returns what it finds wrong; each is tried on a small package with the
fault in it.
"""

import ast
import graphlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "spml_fast"

MOST_PARAMETERS = 10
MOST_NAMES = 45
UNCLEAR_STARTS = {"Of", "Those", "That", "And"}
FREE_SIGNATURES = [
    r"^spml_fast\.losses\.\w+:\w+_loss$",  # hyper-parameters of published losses
    r"^spml_fast\.reference:",  # the same, and the arguments of the ops
    r":SinglePositiveClassifier\.__init__$",  # scikit-learn wants its parameters flat
]
"""Callables (module:qualified name) that may have any number of parameters."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(package: Path) -> dict[str, tuple[ast.Module, bool]]:
    """{module name: (syntax tree, whether it is an __init__.py)}"""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = ast.parse(path.read_text(), str(path)), is_package
    return found


# --- imports --------------------------------------------------------------------------------------


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those inside functions, which run later."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.Lambda):
            yield child
            yield from outside_functions(child)


def imported(node: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, str]]:
    """(module, name or "") of each import of a statement, absolute."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package]
            base = ".".join([*above, base] if base else above)
        yield from ((base, alias.name) for alias in node.names)


def import_graph(package: Path) -> dict[str, set[str]]:
    """{module: modules of the package that it imports}, imports under ``if TYPE_CHECKING`` included."""
    modules = trees(package)
    graph = {}
    for module, (tree, is_package) in modules.items():
        graph[module] = set()
        for node in outside_functions(tree):
            for base, name in imported(node, module, is_package):
                # "from a import b": the module a.b, or something that a defines.
                target = next((m for m in (f"{base}.{name}", base) if m in modules), None)
                if target not in (None, module):
                    graph[module].add(target)
    return graph


def import_circle(package: Path) -> list[str]:
    """Modules that import each other, each the next, the first again at the end; empty where there are none."""
    try:
        graphlib.TopologicalSorter(import_graph(package)).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


# --- signatures -----------------------------------------------------------------------------------


def is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def public_functions(body: list[ast.stmt], path: str = "") -> Iterator[tuple[str, Function, bool]]:
    """(qualified name, function, whether a first argument is passed by itself); none inside functions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            yield from public_functions(node.body, path)
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from public_functions(node.body, f"{path}{node.name}.")
        elif isinstance(node, Function) and is_public(node.name):
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
            yield path + node.name, node, bool(path) and not static


def long_signatures(package: Path) -> list[str]:
    """Public callables of public modules with too many parameters, and how many they have."""
    found = []
    for module, (tree, _) in trees(package).items():
        if not all(map(is_public, module.split("."))):
            continue
        for name, function, bound in public_functions(tree.body):
            a = function.args
            n = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) - bound
            where = f"{module}:{name}"
            if n > MOST_PARAMETERS and not any(re.search(free, where) for free in FREE_SIGNATURES):
                found.append(f"{where} has {n} parameters")
    return found


# --- docstrings -----------------------------------------------------------------------------------


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of the module, its classes, functions and documented values."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        documented = isinstance(node, ast.Module | ast.ClassDef | Function)
        for before, statement in zip([None, *body], body, strict=False):
            first = before is None and documented
            if (first or isinstance(before, ast.Assign | ast.AnnAssign)) and isinstance(statement, ast.Expr):
                value = statement.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield statement.lineno, value.value


def unclear_docstrings(package: Path) -> list[str]:
    """Docstrings that begin in the middle of a sentence, where a summary should name its subject."""
    found = []
    for module, (tree, _) in trees(package).items():
        for line, text in docstrings(tree):
            words = re.findall(r"\w+", text)
            if words and words[0] in UNCLEAR_STARTS:
                found.append(f"{module}, line {line}: {text.strip().splitlines()[0]}")
    return found


# --- names ----------------------------------------------------------------------------------------


def names_at_the_top(package: Path) -> list[str]:
    """``__all__`` of the package, which has to be a plain list for readers and type checkers."""
    tree, _ = trees(package)[package.name]
    for node in tree.body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{package.name} has no __all__")


# --- the package ----------------------------------------------------------------------------------


def test_no_files_import_each_other():
    assert not import_circle(PACKAGE)


@pytest.mark.slow
def test_no_public_callable_has_too_many_parameters():
    assert not long_signatures(PACKAGE)


@pytest.mark.slow
def test_docstrings_name_their_subject():
    assert not unclear_docstrings(PACKAGE)


def test_the_top_level_is_short():
    names = names_at_the_top(PACKAGE)
    assert len(names) == len(set(names)) <= MOST_NAMES


# --- the checks find what they look for -----------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """``package(**sources)``: a package spml_fast of these modules; ``a__b`` is the module b of a folder a."""

    def write(**sources):
        folder = tmp_path / "spml_fast"
        for name, source in {"__init__": "", **sources}.items():
            path = folder.joinpath(*name.replace("__init__", "@").split("__")).with_suffix(".py")
            path = path.with_name(path.name.replace("@", "__init__"))
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(source)
        return folder

    return write


TYPE_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import A\n"
CIRCLES = {
    "of two": (dict(a="from .b import B", b="from . import a"), {"a", "b"}),
    "type-only": (dict(a="from .b import B", b=TYPE_ONLY), {"a", "b"}),
    "of three": (
        dict(a="import spml_fast.b", b="from spml_fast.c import C", c="from .a import A"),
        {"a", "b", "c"},
    ),
    "across folders": (
        dict(x__a="from ..y.b import B", y__b="from .. import x\nfrom ..x import a"),
        {"x.a", "y.b"},
    ),
    "with the folder's own names": (dict(x____init__="from .a import A", x__a="from . import A"), {"x", "x.a"}),
    "in a class": (dict(a="class A:\n    from .b import B", b="from .a import A"), {"a", "b"}),
    "in a try": (dict(a="try:\n    from .b import B\nexcept ImportError: pass", b="from .a import A"), {"a", "b"}),
}


@pytest.mark.parametrize(("sources", "circle"), CIRCLES.values(), ids=CIRCLES.keys())
def test_a_circle_is_found(package, sources, circle):
    found = import_circle(package(**sources))
    assert set(found) == {f"spml_fast.{name}" for name in circle}
    assert found[0] == found[-1]


def test_the_circle_is_told_in_the_order_of_the_imports(package):
    folder = package(a="from .b import B", b="from .c import C", c="from .a import A")
    found = import_circle(folder)
    graph = import_graph(folder)
    assert all(second in graph[first] for first, second in itertools.pairwise(found))


def test_no_circle_where_there_is_none(package):
    later = "def f():\n    from .a import A\n    return A\n"
    folder = package(
        a="from .b import B\nfrom .x import c", b=later, x____init__="from .c import C", x__c="import torch"
    )
    assert import_graph(folder)["spml_fast.a"] == {"spml_fast.b", "spml_fast.x.c"}
    assert import_circle(folder) == []


def arguments(n):
    return ", ".join(f"p{i}=0" for i in range(n))


LONG = {
    "function": (f"def f({arguments(11)}): ...", "m:f has 11"),
    "keyword-only": (f"def f(*, {arguments(11)}): ...", "m:f has 11"),
    "of all kinds": ("def f(a, b, c, d, /, e, f, g, *args, h, i, j, k, **options): ...", "m:f has 11"),
    "async": (f"async def f({arguments(11)}): ...", "m:f has 11"),
    "constructor": (f"class C:\n    def __init__(self, {arguments(11)}): ...", "m:C.__init__ has 11"),
    "method": (f"class C:\n    def run(self, {arguments(12)}): ...", "m:C.run has 12"),
    "static method": (f"class C:\n    @staticmethod\n    def run({arguments(11)}): ...", "m:C.run has 11"),
    "inner class": (f"class C:\n    class D:\n        def f(self, {arguments(11)}): ...", "m:C.D.f has 11"),
    "under a condition": (f"if True:\n    def f({arguments(11)}): ...", "m:f has 11"),
}


@pytest.mark.parametrize(("source", "message"), LONG.values(), ids=LONG.keys())
def test_a_long_signature_is_found(package, source, message):
    found = long_signatures(package(m=source))
    assert len(found) == 1
    assert message in found[0]


def test_signatures_that_may_be_long(package):
    long = arguments(14)
    assert not long_signatures(
        package(
            m=f"def f({arguments(10)}): ...\ndef _f({long}): ...\nclass _C:\n    def f(self, {long}): ...\n"
            f"class C:\n    def f(self, {arguments(10)}): ...\ndef g():\n    def f({long}): ...",
            _m=f"def f({long}): ...",
            reference=f"def gr({long}): ...",
            losses__batch=f"def gr_loss({long}): ...",
            training__estimator=f"class SinglePositiveClassifier:\n    def __init__(self, {long}): ...",
        )
    )
    assert (
        len(long_signatures(package(losses__base=f"def make({long}): ...\nclass Loss:\n    def _f(self): ...")))
        == 1
    )


UNCLEAR = {
    "module": '"""Of Langevin chains."""',
    "function": 'def f():\n    """That all stages took together."""',
    "async function": 'async def f():\n    """And more."""',
    "private method": 'class C:\n    def _f(self):\n        """Those of its samples."""',
    "class": 'class C:\n    """\n    Of a run.\n    """',
    "function inside a function": 'def f():\n    def g():\n        """Of f."""',
    "value": 'LIMIT = 3\n"""Of a run."""',
    "field": 'class C:\n    x: int\n    """That of the run."""',
}


@pytest.mark.parametrize("source", UNCLEAR.values(), ids=UNCLEAR.keys())
def test_an_unclear_docstring_is_found(package, source):
    assert len(unclear_docstrings(package(m=source))) == 1


def test_clear_docstrings(package):
    source = (
        '"""Offers of a run, and those that stay."""\nx = "Of"\ndef f():\n    """Andes."""\n    return "That"\n'
    )
    assert not unclear_docstrings(package(m=source, n="", o='def f():\n    """"""'))


def test_names_at_the_top(package):
    assert names_at_the_top(package(__init__='__all__ = ["a", "b"]')) == ["a", "b"]
    with pytest.raises(ValueError, match="malformed"):
        names_at_the_top(package(__init__="__all__ = [*other]"))
    with pytest.raises(AssertionError, match="no __all__"):
        names_at_the_top(package(__init__=""))
