"""Run folders: written beside their place and renamed, so that they appear whole or not at all, and read again.

A run folder holds

- ``config.toml``: the config as used, overrides included; ``xentjax fit`` takes it again;
- ``model.json``: the columns with their means, scales and categories, and the classes: what ``predict`` needs;
- ``params.safetensors``: the parameters, ``weights`` and ``bias``;
- ``metrics.jsonl``: one line a step with the objective's value and the largest gradient component;
- ``summary.json``: the folder's kind (``fit``, ``grid`` or ``language``), status, metrics on the training and test
  examples, times, device and versions, of a regression each coefficient with its error and intervals;
- ``not_finite.json``, only of a run whose loss has become NaN or infinite: the step and the examples;
- pictures.

That of a regression also ``summary.txt``, the tables that were printed, with a path ``path.jsonl`` and
``path.safetensors``, one line and one set of parameters for each penalty, and with a bootstrap
``bootstrap.safetensors``, the parameters of each resample that was solved.  That of a language model has a
``summary.txt``, and ``vocabulary.json`` in the place of ``model.json``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic import field_validator as check_field
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xentjax.models.logistic import LogisticParams
from xentjax.training.config import RunConfig
from xentjax.training.config_file import to_toml
from xentjax.training.config_table import Table
from xentjax.training.data import Encoder
from xentjax.training.errors import UserError
from xentjax.training.files import contents, require_file, unreadable

Array = np.ndarray[Any, Any]

#: What tells a run folder from any other: without it, ``force`` replaces nothing.
MARK = "summary.json"

#: What ``summary.json`` calls a folder: that of one fit, of a grid of fits, or of a language model.
FIT, GRID, LANGUAGE = "fit", "grid", "language"

#: The largest file of JSON that is read, and the largest header of a file of parameters.
_MOST_BYTES, _MOST_OF_HEADER = 2**28, 2**16


def reserve(out: Path, force: bool) -> None:
    """Say before any work is done what would prevent the folder from being written, as UserError."""
    _may_appear(out, force)
    parent = next(p for p in out.absolute().parents if p.exists())
    try:
        Path(tempfile.mkdtemp(prefix=_prefix(out.name), dir=parent)).rmdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error


def _may_appear(out: Path, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UserError(f"{out}: exists and is not a folder")
    if any(out.iterdir()):
        if not (out / MARK).is_file():
            raise UserError(f"{out}: exists and is not a run folder; it is never replaced, choose another --out")
        if not force:
            raise UserError(f"{out}: exists; --force replaces it, --out chooses another folder")


@contextmanager
def whole_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well, and vanishes otherwise."""
    # A link to a run folder stays, and what it leads to is replaced.
    out = out.resolve() if out.is_dir() else out.absolute()
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(out.parent, out.name)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(out.name), dir=out.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _may_appear(out, force)
        if out.is_dir() and any(out.iterdir()):
            previous = Path(tempfile.mkdtemp(prefix=f".{out.name}-previous-", dir=out.parent))
            out.rename(previous)  # onto the empty folder
            temporary.rename(out)
            shutil.rmtree(previous)
        else:
            temporary.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """A temporary file beside ``out`` that takes its place when the block ends well, and vanishes otherwise."""
    temporary: Path | None = None
    try:
        _clear_stale(out.absolute().parent, out.stem)
        handle, name = tempfile.mkstemp(prefix=_prefix(out.stem), suffix=out.suffix, dir=out.absolute().parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _prefix(name: str) -> str:
    """How the names of temporary files and folders begin: with the machine and the process whose they are."""
    return f".{name}-{platform.node()}-{os.getpid()}-"


def _clear_stale(parent: Path, name: str) -> None:
    """Remove what processes of this machine that are no more have left half-written."""
    of_this_machine = re.compile(re.escape(f".{name}-{platform.node()}-") + r"(\d{1,9})-\w+(\.\w+)?")
    for path in parent.iterdir():
        left = of_this_machine.fullmatch(path.name)
        if left is None or _is_running(int(left[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- writing -----------------------------------------------------------------------------------------------------------


def write_config(folder: Path, config: RunConfig) -> None:
    text = to_toml(config.model_dump(exclude_none=True))
    (folder / "config.toml").write_text(text, encoding="utf-8")


def write_params(folder: Path, params: LogisticParams) -> None:
    arrays = {name: np.asarray(array, order="C") for name, array in params._asdict().items()}
    save_file(arrays, folder / "params.safetensors")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """What JSON can say: numpy's numbers and arrays as Python's, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """What is needed to predict: the encoder of the columns, the classes, and the parameters."""

    encoder: Encoder
    classes: tuple[str, ...]
    params: LogisticParams

    def write(self, folder: Path) -> None:
        write_json(folder / "model.json", {"classes": self.classes, **asdict(self.encoder)})
        write_params(folder, self.params)


class _Description(Table):
    """What ``model.json`` holds, the columns as they are."""

    classes: tuple[str, ...] = Field(min_length=2)
    columns: list[Any]
    dtype: Any
    delimiter: Any

    @check_field("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise ValueError("must be distinct")
        return classes


def read_model(folder: Path) -> Model:
    """The model in a run folder, or UserError."""
    if not (folder / MARK).is_file():
        raise UserError(f"{folder}: {'is not a run folder' if folder.exists() else 'no such folder'}")
    path = _own(folder, "model.json")
    if not path.exists():
        if (kind := _kind(folder)) == GRID:
            raise UserError(f"{folder}: is a grid of many fits, but one fit is needed to predict")
        if kind == LANGUAGE:
            raise UserError(f"{folder}: is a language model of text, but a fit to a table is needed to predict")
    text = contents(path, _MOST_BYTES)
    try:
        described = _Description.model_validate_json(text)
        rest = described.model_dump(exclude={"classes"})
        encoder = TypeAdapter(Encoder).validate_json(json.dumps(rest))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: is damaged: {key}{': ' if key else ''}{message}") from error
    shape = (len(encoder.feature_names), *(() if len(described.classes) == 2 else (len(described.classes),)))
    return Model(encoder, described.classes, _read_params(_own(folder, "params.safetensors"), shape, encoder.dtype))


def _own(folder: Path, name: str) -> Path:
    """A file of a run folder, which may come from others: what is a link out of it is refused."""
    path = folder / name
    if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path}: is a link that leads out of the run folder")
    return path


def _read_params(path: Path, shape: tuple[int, ...], dtype: str) -> LogisticParams:
    """The parameters in a file, weights of this shape, or UserError. What has another shape is not read at all."""
    kind, size = {"float32": ("F32", 4), "float64": ("F64", 8)}[dtype]
    if require_file(path) > size * (math.prod(shape) + math.prod(shape[1:])) + _MOST_OF_HEADER:
        raise UserError(f"{path.parent}: {path.name} and model.json are not of one model")
    try:
        with safe_open(path, "numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            if {name: tuple(part.get_shape()) for name, part in parts.items()} != {"weights": shape, "bias": shape[1:]}:
                raise UserError(f"{path.parent}: {path.name} and model.json are not of one model")
            arrays = {name: file.get_tensor(name) if part.get_dtype() == kind else None for name, part in parts.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise unreadable(path, error) from error
    for name, array in arrays.items():
        if array is None or not np.all(np.isfinite(array)):
            raise UserError(f"{path.parent}: {path.name}: {name} must hold finite numbers of {dtype}")
    return LogisticParams(**arrays)


def _kind(folder: Path) -> Any:
    path = _own(folder, MARK)
    try:
        summary = from_json(contents(path, _MOST_BYTES))
    except ValueError as error:
        raise unreadable(path, error) from error
    return summary.get("kind") if isinstance(summary, dict) else None


def status_of(folder: Path) -> str | None:
    """The status of the run that wrote a folder; None where it is no run folder."""
    try:
        return str(from_json(contents(_own(folder, MARK), _MOST_BYTES))["status"])
    except (UserError, ValueError, KeyError, TypeError):
        return None
