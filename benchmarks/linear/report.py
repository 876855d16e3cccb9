"""What is made of linear.jsonl: a Markdown page with every method, a plot, and the README's tables."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.aims import LINEAR_AIMS, LinearAim
from benchmarks.linear.plot import plot
from benchmarks.linear.reading import Results, Row, joined, load, methods, place, result_files, sizes
from benchmarks.tables import machine_line, mebibytes, milliseconds, table

__all__ = ["Results", "joined", "load", "missed", "readme_section", "result_files", "sections", "write"]

#: Columns of errors, as the rows name them.
ERRORS = {
    "loss_error": "loss",
    "dx_max_error": "by x, entry",
    "dx_error": "by x, norm",
    "dw_max_error": "by w, entry",
    "dw_error": "by w, norm",
    "class_error": "by w, class",
}

EXPLANATION = (
    "Time: median (20th to 80th percentile) over interleaved rounds, and in brackets the first method's over it (below "
    "1: the first is faster). Memory: temporary, beside arguments and results. Floor: the share that the least FLOP or "
    "bytes at the machine's rates have of the time. `products alone` is no method: the products of x and w, without a "
    "softmax between them. Errors against float64: of the loss, relative; of each gradient, the largest of an entry "
    "over the largest entry, and in the Euclidean norm; of the worst class, the norm of its column of w's gradient, "
    "relative. How they are counted and drawn: benchmarks/linear/__init__.py."
)


def write(path: pathlib.Path) -> list[str]:
    """The page and the plot beside a result; their names."""
    results = load(path)
    (path.parent / "linear.md").write_text(document(results))
    plot(joined(results), path.parent)
    return ["linear.md", "linear.png"]


# -- aims -------------------------------------------------------------------------------------------------------------


def figure(row: Row, aim: LinearAim) -> float | None:
    """What an aim is about, where the row says it."""
    wanted_at = (aim.sizes, aim.dtype, aim.mode)
    if any(wanted not in (None, got) for wanted, got in zip(wanted_at, place(row), strict=True)):
        return None
    of, against = (row["implementations"].get(name, {}) for name in (aim.method, aim.against))
    if aim.against == "MiB":
        return of["temp_bytes"] / 2**20 if "temp_bytes" in of else None
    if aim.against == "copies":
        return 1 / of["copy_share"]
    if aim.method == next(iter(row["implementations"])):
        return against.get("ours_over_this")
    return of["run_s"] / against["run_s"] if "run_s" in of and "run_s" in against else None


def missed(results: Results) -> Iterator[str]:
    """A line for each aim that is missed by more than its last digit, and what stands in its way."""
    for row in (*joined(results), *results.of("row", "given logits")):
        for aim in LINEAR_AIMS:
            found = figure(row, aim)
            if found is not None and round(found, 2) > round(aim.at_most, 2):
                unit = " MiB" if aim.against == "MiB" else f" of {aim.against}"
                yield (
                    f"- {sizes(row)}, {row['dtype']}, {row['mode']}, {aim.method}: {found:.2f}{unit}, "
                    f"aim {aim.at_most:.2f}: {aim.obstacle}"
                )


# -- Markdown ----------------------------------------------------------------------------------------------------------


def document(results: Results) -> str:
    """Everything that was measured on one device."""
    parts = [f"# Linear cross-entropy on {results.folder}", machine_line(results.machine), EXPLANATION]
    for row in joined(results):
        parts += [f"## {sizes(row)}, {row['dtype']}, {row['mode']}", methods_table(row, results.machine)]
    parts.append("![time and memory](linear.png)")
    if results.of("row", "given logits"):
        parts += ["## Softmax cross-entropy on given logits", given_table(results.of("row", "given logits"))]
    if results.of("check"):
        parts += ["## Checks before timing", CHECKS, checks_table(results.of("check"))]
    if results.of("block"):
        parts += ["## Block sizes, value and gradients", blocks_table(results.of("block"))]
    skipped = [f"- {row['name']}: {row['why']}" for row in results.of("skipped")]
    if skipped:
        parts += ["## Left out", "\n".join(skipped)]
    return "\n\n".join(parts) + "\n"


def methods_table(row: Row, machine: dict[str, Any]) -> str:
    has_errors = any("loss_error" in method for method in row["implementations"].values())
    columns = list(ERRORS) if row["mode"] == "value_and_grad" else list(ERRORS)[:1]
    columns = columns if has_errors else []
    lines = []
    for name, method in row["implementations"].items():
        if "failed" in method:
            why = method["failed"].replace("|", "\\|")
            lines.append([name, f"failed: {why}", *["–"] * (2 + len(columns))])
            continue
        spread = f" ({milliseconds(method['p20_s'])}–{milliseconds(method['p80_s'])})"
        ratio = f" ({method['ours_over_this']:.2f})" if "ours_over_this" in method else ""
        floor = max(method["matmul_share"], method["copy_share"])
        lines.append(
            [name, milliseconds(method["run_s"]) + spread + ratio, memory(method), f"{floor:.0%}"]
            + [f"{method[column]:.1e}" if column in method else "–" for column in columns]
        )
    return table(["method", "time, ms", "memory, MiB", "floor", *(ERRORS[column] for column in columns)], lines)


def memory(method: Row) -> str:
    return mebibytes(method["temp_bytes"]) if "temp_bytes" in method else "–"


def given_table(rows: list[Row]) -> str:
    """The share of copies: the bytes that must move over the time."""
    lines = [
        [sizes(row), row["dtype"], row["mode"], name, milliseconds(m["run_s"]), f"{m['copy_share']:.0%}", memory(m)]
        for row in rows
        for name, m in methods(row).items()
    ]
    return table(["sizes", "dtype", "mode", "method", "time, ms", "of copies", "memory, MiB"], lines)


#: What :func:`checks_table` shows.
CHECKS = (
    "Errors of value and gradients against float64 beside those of the dense formula in the same dtype, which they may "
    "exceed by a factor of 2 and one rounding; and the largest difference between runs on the same arguments, which "
    "must be 0."
)


def checks_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        pairs = [f"{row['errors'][key]:.1e} ({row['errors_of_dense'][key]:.1e})" for key in ERRORS]
        lines.append([row["name"], "yes" if row["passed"] else "**no**", *pairs, f"{row['moving']:g}"])
    return table(["case", "passed", *ERRORS.values(), "between runs"], lines)


def blocks_table(rows: list[Row]) -> str:
    size = lambda number: "–" if number is None else f"{number:,}"
    lines = []
    for row in rows:
        shape, blocks = ([size(row[name]) for name in names] for names in (("n", "d", "v"), ("block", "chunk")))
        kernels = ", kernels" if row.get("kernels") == "mosaic" else ""
        lines.append(
            [*shape, row["dtype"], row["strategy"] + kernels, *blocks, f"{row['milliseconds']:g}", memory(row)]
        )
    header = ["N", "D", "V", "dtype", "strategy", "classes at a time", "tokens at a time", "time, ms", "memory, MiB"]
    return table(header, lines)


def readme_section(results: Results) -> str:
    """One line for each shape and dtype, ours beside the dense formula and the fastest peer; then the aims missed."""
    lines = [_readme_line(list(group)) for group in _by_place(joined(results))]
    header = ["N, D, V", "dtype", "ours, ms", "optax, ms", "ours over optax", "fastest other, ours over it"]
    header += ["MiB, ours", "MiB, optax", "error by w, ours", "optax"]
    not_reached = list(missed(results))
    page = f"benchmarks/results/{results.folder}"
    parts = [
        f"**{results.folder}**: {machine_line(results.machine)}",
        "The mean loss / with the gradients by x and w; the error of w's gradient against float64, in the norm.",
        table(header, lines),
        *(["Where an aim is missed, and why:\n\n" + "\n".join(not_reached)] if not_reached else []),
        f"Every method, with errors, floors and memory: [{page}/linear.md]({page}/linear.md).",
        f"![time and memory of every method]({page}/linear.png)",
    ]
    return "\n\n".join(parts)


#: The modes that the README shows, in the order of its cells.
README_MODES = ("value", "value_and_grad")


def _by_place(rows: Iterable[Row]) -> Iterator[Iterable[Row]]:
    """The rows of each shape and dtype that the README shows, in the order of its modes."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted((row for row in rows if row["mode"] in README_MODES), key=lambda row: row["mode"]):
        groups.setdefault(place(row)[:2], []).append(row)
    order = list(dict.fromkeys(place(row)[:2] for row in rows))
    return (groups[at] for at in order if at in groups)


def _readme_line(rows: list[Row]) -> list[str]:
    first, last = rows[0], rows[-1]
    cells = lambda name, key, form: " / ".join(_cell(row, name, key, form) for row in rows)
    return [
        ", ".join(f"{size:,}" for size in first["sizes"].values()),
        first["dtype"],
        cells("xentjax", "run_s", milliseconds),
        cells("optax", "run_s", milliseconds),
        cells("optax", "ours_over_this", "{:.2f}".format),
        " / ".join(map(_fastest, rows)),
        cells("xentjax", "temp_bytes", mebibytes),
        cells("optax", "temp_bytes", mebibytes),
        *(_cell(last, name, "dw_error", "{:.1e}".format) for name in ("xentjax", "optax")),
    ]


def _cell(row: Row, name: str, key: str, form: Callable[[float], str]) -> str:
    found = row["implementations"].get(name, {})
    return form(found[key]) if key in found else "–"


def _fastest(row: Row) -> str:
    """The fastest peer but for the dense formula of optax, and our time over its."""
    others = {n: m for n, m in methods(row).items() if not n.startswith(("xentjax", "optax"))}
    name = min(others, key=lambda name: others[name]["run_s"], default=None)
    return "–" if name is None else f"{name} {_cell(row, name, 'ours_over_this', '{:.2f}'.format)}"


def sections(paths: Iterable[pathlib.Path]) -> str:
    """The README's part, one section for each device."""
    return "\n\n".join(readme_section(load(path)) for path in paths)
