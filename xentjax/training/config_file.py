"""Config files: TOML read and validated, ``--set`` overrides, errors that name the key, and TOML written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from xentjax.training.config import FitConfig, RunConfig
from xentjax.training.config_table import Table
from xentjax.training.errors import UserError, did_you_mean, listed
from xentjax.training.files import contents
from xentjax.training.language_config import LanguageConfig
from xentjax.training.regression_config import REGRESSION_SOLVERS, RegressionConfig
from xentjax.training.solver import SOLVER_NAMES

Config = TypeVar("Config", bound=Table)

#: The solvers of each kind of run on examples.
_SOLVERS: dict[type[Table], tuple[str, ...]] = {FitConfig: SOLVER_NAMES, RegressionConfig: REGRESSION_SOLVERS}
#: Tables with the path of what is learnt from.
_WITH_PATH = ("data", "text")

#: The largest config in bytes, and how deep its tables and arrays may be.
_MOST_BYTES, _DEEPEST = 2**22, 32
#: A key of more parts than that, for which tomllib takes a time and a memory that grow with the square of their number.
_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DEEP_KEY = re.compile(rf"""(?<![\w"'-])(?>{_PART}[ \t]*\.[ \t]*){{{_DEEPEST}}}""", re.ASCII)

# -- reading -----------------------------------------------------------------------------------------------------------


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> FitConfig | RegressionConfig | LanguageConfig:
    """The config of a run, as :func:`read_config`: with a table ``text`` it is a language model, otherwise the solver's
    name says which kind of run it is.

    Without a solver it is a regression.
    """
    raw = _read(path, overrides)
    if "text" in raw:
        return validate(raw, LanguageConfig, str(path), overrides)
    if _solver_name(raw) in REGRESSION_SOLVERS:
        return validate(raw, RegressionConfig, str(path), overrides)
    return validate(raw, FitConfig, str(path), overrides)


def _solver_name(raw: Mapping[str, Any]) -> Any:
    """The name of a run's solver; None where it has none."""
    solver = raw.get("solver", {"name": "auto"})
    return solver.get("name") if isinstance(solver, dict) else None


def read_config(path: str | Path | None, overrides: Sequence[str] = (), kind: type[Config] = FitConfig) -> Config:  # type: ignore[assignment]
    """The config in a TOML file (or, without a file, the defaults) with ``key.path=value`` overrides, or UserError.

    For a run, a ``name`` that is missing is the file's; a relative ``data.path`` or ``text.path`` is made absolute from
    where the file is.
    """
    if path is not None and issubclass(kind, RunConfig):
        return validate(_read(path, overrides), kind, str(path), overrides)
    raw = {} if path is None else _read_toml(Path(path))
    return validate(override(raw, overrides), kind, str(path or "defaults"), overrides)


def _read(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The raw config of a run."""
    raw = _read_toml(Path(path))
    raw.setdefault("name", Path(path).stem)
    for name in _WITH_PATH:
        table = raw.get(name)
        if isinstance(table, dict) and isinstance(table.get("path"), str):
            table["path"] = _absolute(Path(path).parent / table["path"], f"{path}: {name}.path")
    return override(raw, overrides)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return _parsed(contents(path, _MOST_BYTES).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from error


def _parsed(text: str) -> dict[str, Any]:
    """The tables of a TOML text; ValueError where it is none, or too deep, or where an integer needs more than 64 bits.

    What comes out of it may be shown and written as it is.
    """
    if _DEEP_KEY.search(text):
        raise ValueError(f"a key has more than {_DEEPEST} parts")
    try:
        raw = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"arrays or tables are more than {_DEEPEST} deep") from error
    inner: list[Any] = [raw]
    for _ in range(_DEEPEST):
        inner = [value for values in inner for value in (values.values() if isinstance(values, dict) else values)]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in inner):
            raise ValueError("an integer needs more than 64 bits")
        inner = [value for value in inner if isinstance(value, (dict, list))]
    if inner:
        raise ValueError(f"arrays or tables are more than {_DEEPEST} deep")
    return raw


def _absolute(path: Path, key: str) -> str:
    """The path from the root of the file system, links followed."""
    try:
        return str(path.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, a NUL
        raise UserError(f"{key} cannot be found: {getattr(error, 'strerror', None) or error}") from error


def override(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config with each ``key.path=value`` put in; the value is TOML, or a string where it is none."""
    for item in overrides:
        key, equals, text = item.partition("=")
        keys = [part.strip() for part in key.split(".")]
        if not equals or not all(keys):
            raise UserError(f"--set {item}: needs key=value, such as solver.step_size=0.5")
        inner: Any = raw
        for depth, part in enumerate(keys[:-1]):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {item}: {'.'.join(keys[: depth + 1])} is a value, not a table")
        inner[keys[-1]] = _toml_value(text.strip())
        if keys[:-1] in ([name] for name in _WITH_PATH) and keys[-1] == "path" and isinstance(inner["path"], str):
            inner["path"] = _absolute(Path(inner["path"]), f"--set {item}:")
    return raw


def _toml_value(text: str) -> Any:
    try:
        parsed = _parsed(f"value = {text}")
    except ValueError:
        return text
    return parsed["value"] if list(parsed) == ["value"] else text


def validate(raw: Mapping[str, Any], kind: type[Config], place: str, overrides: Sequence[str] = ()) -> Config:
    """The raw config as ``kind``, or a UserError that names the first key that is wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        first = _key(problems[0], raw)
        alternatives = dict.fromkeys(_problem(p, kind, first, raw) for p in problems if _key(p, raw) == first)
        message = " or ".join(alternatives) + _got(problems[0])
        place = _place(first, place, [item.partition("=")[0].strip() for item in overrides])
        raise UserError(f"{place}: {first}{' ' if first else ''}{message}") from error


def _place(key: str, file: str, overridden: Sequence[str]) -> str:
    """The file, or ``--set`` where that brought the key, or both where they brought parts of one table."""
    if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in overridden):
        return "--set"
    return f"{file} with --set" if any(other.split(".")[0] == key.split(".")[0] for other in overridden) else file


def _key(problem: Any, raw: Any) -> str:
    """The key as the user wrote it: without the names that pydantic gives to the members of a union."""
    key = ""
    for depth, part in enumerate(problem["loc"], 1):
        if isinstance(part, int):
            key += f"[{part}]"
            raw = raw[part] if isinstance(raw, list) and part < len(raw) else None
        elif isinstance(raw, dict) and (part in raw or (depth == len(problem["loc"]) and problem["type"] == "missing")):
            key += f".{part}" if key else part
            raw = raw.get(part)
    return key


def _problem(problem: Any, kind: type[Table], key: str, raw: Mapping[str, Any]) -> str:
    message, name = problem["msg"], key.rpartition(".")[2]
    match problem["type"]:
        case "extra_forbidden":
            parent = re.sub(r"\[\d+\]", "", key).rpartition(".")[0]
            siblings, elsewhere = _keys(kind, parent)
            if kind is LanguageConfig and any(name in _keys(other, parent)[0] for other in _SOLVERS):
                return "does not go with a table text: a language model has no such key"
            for other, solvers in _SOLVERS.items():
                if kind in _SOLVERS and kind is not other and name in _keys(other, parent)[0]:
                    return f"does not go with solver.name {_solver_name(raw)!r}, only with {listed(solvers)}"
            if kind in _SOLVERS and name in _keys(LanguageConfig, parent)[0]:
                return "only goes with a table text: it is for language models"
            return f"is an unknown key{did_you_mean(name, siblings) or did_you_mean(name, elsewhere)}"
        case "missing":
            return "is missing, but required"
        case "union_tag_not_found":
            return f"needs a name: {_solvers(kind)}"
        case "union_tag_invalid":
            return f"must have the name {_solvers(kind)}, got {problem['input'].get('name')!r}"
        case "string_pattern_mismatch":
            return "must be made of letters, digits and . _ + -"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table"
        case "value_error":
            return message.removeprefix("Value error, ")
    message = message.replace("Input should be", "must be").replace("List should have", "must have")
    return re.sub(r" after validation, not \d+$", "", message)


def _solvers(kind: type[Table]) -> str:
    """The names that the table of a solver may have: of all tables, only that is known by its name."""
    return listed((*SOLVER_NAMES, *REGRESSION_SOLVERS) if issubclass(kind, RunConfig) else SOLVER_NAMES)


def _got(problem: Any) -> str:
    silent = ("extra_forbidden", "missing", "value_error", "union_tag_invalid", "union_tag_not_found")
    return "" if problem["type"] in silent else f", got {problem['input']!r}"


def _keys(kind: type[Table], parent: str) -> tuple[list[str], dict[str, str]]:
    """The keys that exist in the table ``parent``, and all keys of the config: last part to full name."""
    siblings: list[str] = []
    everywhere: dict[str, str] = {}

    def walk(table: type[Table], prefix: str) -> None:
        for name, field in table.model_fields.items():
            everywhere.setdefault(name, prefix + name)
            if prefix.removesuffix(".") == parent:
                siblings.append(name)
            for inner in _tables(field.annotation):
                walk(inner, f"{prefix}{name}.")

    walk(kind, "")
    return siblings, everywhere


def _tables(annotation: Any) -> list[type[Table]]:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for argument in get_args(annotation) for table in _tables(argument)]


# -- writing -----------------------------------------------------------------------------------------------------------


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A nested mapping as TOML: first the plain keys, then the tables; a value of None is left out."""
    plain = [f"{_named(k)} = {_value(v)}" for k, v in table.items() if v is not None and not isinstance(v, Mapping)]
    text = "".join(line + "\n" for line in plain)
    for key, inner in table.items():
        if isinstance(inner, Mapping):
            text += f"\n[{prefix}{_named(key)}]\n" + to_toml(inner, f"{prefix}{_named(key)}.")
    return text


def _named(key: str) -> str:
    """A key as it stands: in quotes where it has other signs than those of words."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _quoted(key)


def _quoted(text: str) -> str:
    # TOML takes what JSON writes, but for one sign.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_named(k)} = {_value(v)}' for k, v in value.items() if v is not None)}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return _quoted(value) if isinstance(value, str) else repr(value)
