"""What holds for the repository as a whole: what an import costs, who may import whom, and what the texts say."""

import ast
import graphlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import xentjax
from xentjax.core.op import ops

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "xentjax"

#: Who may import whom: a module imports from its own layer and from those above it in this list.
LAYERS = (
    ("core",),
    ("pairs",),
    ("care",),
    ("numerics",),
    ("logit_rows", "logit_pairs"),
    ("activations",),
    ("measures",),
    ("losses",),
    ("models",),
    ("solvers",),
    ("training",),
    ("sklearn",),
    ("peers",),
    ("sweep",),
    ("accuracy", "plots", "figures"),
    ("cli",),
    ("__main__",),
)

#: What may use the front page of the package, which is above all layers.
AT_THE_EDGE = ("accuracy", "plots", "figures", "cli", "__main__")

#: What a plain installation lacks; only these, and our own modules at the edge that need them, load inside functions.
OPTIONAL = {"matplotlib", "mpmath", "optax", "orbax", "pandas", "pyarrow", "pydantic"}
OPTIONAL |= {"rich", "safetensors", "scipy", "sklearn", "torch", "typer"}
#: Part of jax, and slow to import: it loads all of Pallas; and what is written in that.
SLOW = {"jax.extend.core", *(f"xentjax.losses.linear.{device}_kernels" for device in ("gpu", "tpu"))}
EDGE = ("xentjax.accuracy", "xentjax.cli", "xentjax.figures", "xentjax.plots", "xentjax.training")


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name, parsed."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


MODULES = modules()


def test_the_readme_lists_every_module_and_the_direction_of_imports():
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"```\nxentjax/\n(.*?)```", text, re.DOTALL)
    named = set(re.findall(r"\w+\.py", tree))
    files = {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == files | {"_xentjax_main.py"}
    (chain,) = re.findall(r"Imports go one way: (.*?)\. A solver", text, re.DOTALL)
    layers = [tuple(re.split(r",\s+", layer)) for layer in re.split(r"\s+←\s+", chain)]
    assert layers == list(LAYERS[:-1])


def imported(node: ast.AST, package: str) -> list[str]:
    """The dotted names that an import statement asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{package}: relative import on line {node.lineno}"
        base = node.module or ""
        names = [f"{base}.{alias.name}" for alias in node.names]
        return [n if n in MODULES else base for n in names]
    return []


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports as it loads."""
    found: set[str] = set()
    waiting: list[ast.AST] = [MODULES[name]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found |= {n for n in imported(node, name) if n.split(".")[0] == "xentjax"}
        waiting += ast.iter_child_nodes(node)
    return found - {name}


def layer(name: str) -> int:
    part = name.split(".")[1]
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_every_module_has_a_layer():
    known = {part for parts in LAYERS for part in parts}
    assert {name.split(".")[1] for name in MODULES if "." in name} <= known


@pytest.mark.parametrize("name", [n for n in MODULES if "." in n])
def test_imports_go_one_way(name):
    wrong = [other for other in own_imports(name) if other == "xentjax" or layer(other) > layer(name)]
    wrong = [other for other in wrong if not (other == "xentjax" and name.split(".")[1] in AT_THE_EDGE)]
    assert not wrong, f"{name} imports {wrong}, which stand above it"


def test_no_cycles():
    graph = {name: own_imports(name) for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", list(MODULES))
def test_only_optional_dependencies_load_inside_functions(name):
    functions = [n for n in ast.walk(MODULES[name]) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {i for f in functions for node in ast.walk(f) for i in imported(node, name)}
    wrong = [i for i in inside if not (i.split(".")[0] in OPTIONAL or i in SLOW or i.startswith(EDGE))]
    assert not wrong, f"{name} imports {wrong} inside a function"


def test_import_loads_jax_and_nothing_heavy():
    code = "import sys, xentjax; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(run(code).split())
    heavy = (OPTIONAL | {"IPython", "tensorflow", "flax"}) - {"optax", "scipy"}
    assert "jax" in loaded
    assert not loaded & heavy
    # jax loads parts of scipy by itself; we add none.
    ours = set(run("import sys, xentjax; print(*(m for m in sys.modules if m.startswith('scipy')))").split())
    theirs = set(run("import sys, jax, optax; print(*(m for m in sys.modules if m.startswith('scipy')))").split())
    assert ours <= theirs


def test_import_does_not_start_a_device():
    """A program must be able to choose devices, or to initialize a cluster, after it imports the package."""
    code = "import xentjax; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    assert run(code).strip() == "False"


def test_public_names():
    assert list(xentjax.__all__) == sorted(xentjax.__all__)
    for name in xentjax.__all__:
        assert hasattr(xentjax, name), f"__all__ names {name!r}, which does not exist"
    records = {record.name for record in ops() if record.public}
    assert records <= set(xentjax.__all__), f"not exported: {sorted(records - set(xentjax.__all__))}"


@pytest.mark.parametrize("name", [n for n in xentjax.__all__ if not n.startswith("__")])
def test_public_docstrings(name):
    documented = getattr(xentjax, name)
    text = inspect.getdoc(documented) or ""
    assert len(text) > 30, f"{name} has no docstring"
    first = text.splitlines()[0]
    assert len(first) <= 120, f"{name}: the first line of its docstring is longer than 120 characters"
    assert first.rstrip().endswith((".", ":", "?")) or "\n\n" in text, (
        f"{name}: its docstring does not start with a line"
    )


@pytest.mark.parametrize("name", [record.name for record in ops() if record.public])
def test_docstrings_of_functions_show_formula_gradient_and_an_example(name):
    record = next(r for r in ops() if r.name == name)
    text = inspect.getdoc(record.function) or ""
    assert ".. math::" in text or "Formula" in text, f"{name}: no formula in its docstring"
    assert not record.wrt or re.search(r"gradient|derivative|nabla|partial|frac\{d|'\(", text, re.IGNORECASE), (
        f"{name}: its gradient is not stated"
    )
    assert ">>>" in text, f"{name}: no example in its docstring"
    assert record.source, f"{name}: its record has no source"
    assert record.formula_text, f"{name}: its record has no formula"


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", xentjax.__version__)
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "xentjax/__init__.py"


def test_typed():
    assert (PACKAGE / "py.typed").exists()


def tracked_texts() -> list[pathlib.Path]:
    folders = ("xentjax", "benchmarks", "tests", "configs", ".ci")
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    found += [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml")]
    return [p for p in found if p.suffix in {".py", ".md", ".toml", "", ".txt"} and "__pycache__" not in p.parts]


def test_texts_are_finished_and_speak_of_nothing_outside():
    """No notes to oneself, no paths of one machine, no documents that a reader cannot find here."""
    forbidden = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|(?<![\w.])/(?:home|root|work|Users)/")
    outside = re.compile(r"\b(?:THE" + r"ORY|DES" + r"IGN|PE" + r"ERS|STY" + r"LE)(?:\.md|\s+\d|\s+section)\b")
    wrong = []
    for path in tracked_texts():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if forbidden.search(line) or outside.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)
