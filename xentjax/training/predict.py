"""Predictions of a run for a file: the probability of each class, by the run's own columns, scales and categories."""

from __future__ import annotations

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from xentjax.training.config import delimits
from xentjax.training.errors import UserError
from xentjax.training.evaluation import class_probabilities
from xentjax.training.run_folder import Model, read_model, whole_file
from xentjax.training.table import open_table

_ENDINGS = (".csv", ".parquet")


def write_predictions(
    run: Path, data: Path, out: Path | None, *, force: bool = False, delimiter: str | None = None
) -> int:
    """Write a column ``p_<class>`` for each class and ``prediction`` to ``out``, or as CSV to stdout.

    Returns the number of rows.
    """
    if out is not None:
        if out.suffix not in _ENDINGS:
            raise UserError(f"{out}: must end in .csv or .parquet")
        if out.exists() and not force:
            raise UserError(f"{out}: exists; --force replaces it")
    blocks = predictions(read_model(run), data, delimiter)
    if out is None:
        return _printed(blocks)
    with whole_file(out) as temporary:
        first = next(blocks)
        kind: Any = pyarrow.csv.CSVWriter if out.suffix == ".csv" else pyarrow.parquet.ParquetWriter
        with kind(temporary, first.schema) as writer:
            rows = 0
            for block in itertools.chain([first], blocks):
                writer.write_table(block)
                rows += block.num_rows
    return rows


def _printed(blocks: Iterator[pa.Table]) -> int:
    rows = 0
    for block in blocks:
        text = io.BytesIO()
        pyarrow.csv.write_csv(block, text, pyarrow.csv.WriteOptions(include_header=rows == 0))
        sys.stdout.write(text.getvalue().decode())
        rows += block.num_rows
    return rows


def predictions(model: Model, data: Path, delimiter: str | None = None) -> Iterator[pa.Table]:
    """The predictions for the rows of a file, a block of them at a time, or UserError that names line and column."""
    if delimiter is not None:
        try:
            delimits(delimiter)
        except ValueError as error:
            raise UserError(f"--delimiter {error}") from error
    source = open_table(data, delimiter or model.encoder.delimiter)
    for examples in model.encoder.blocks(source):
        with jax.enable_x64(model.encoder.dtype == "float64"):
            features = model.encoder.matrix(examples)
            probabilities: np.ndarray[Any, Any] = np.asarray(class_probabilities(model.params, features))
        columns = {f"p_{name}": probabilities[:, i] for i, name in enumerate(model.classes)}
        yield pa.table({**columns, "prediction": np.asarray(model.classes)[probabilities.argmax(axis=1)]})
