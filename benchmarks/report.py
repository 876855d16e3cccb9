"""Tables and plots from the results: Markdown and PNG beside each ``core.jsonl``, and the README's generated parts.

Those of ``regression.jsonl`` are made in :mod:`benchmarks.regression_report`, those of ``linear.jsonl`` in
:mod:`benchmarks.linear.report`, those of ``scale.jsonl`` in :mod:`benchmarks.scale.report`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks import language_report, readme, regression_report, stream_report
from benchmarks.linear import report as linear_report
from benchmarks.machine import ROOT
from benchmarks.scale import report as scale_report
from benchmarks.survival import results as survival_results
from benchmarks.tables import machine_line, mebibytes, milliseconds, table
from xentjax.core.op import ops

Row = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results"

#: Implementations that are not peers: ours, and the definition that our value is checked against.
NOT_PEERS = ("xentjax", "plain formula")
MODES = ("value", "value_and_grad")


@dataclasses.dataclass(frozen=True)
class Results:
    """One device's results: the machine's line and the rows."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]


def main(results: pathlib.Path) -> int:
    """Reports every device's results under the folder, and refreshes the README from all of them."""
    found = result_files(results)
    for path in found:
        loaded = load(path)
        (path.parent / "core.md").write_text(document(loaded))
        plot(loaded, path.parent)
        print(f"written: {path.parent}/core.md, speed.png, bandwidth.png")
    if not found:
        print(f"no <device>/core.jsonl under {results}: run `python -m benchmarks core` first")
    parts = {"speed": "\n\n".join(readme_section(load(path)) for path in found)} if found else {}
    for part, reporting in (("regression", regression_report), ("linear", linear_report), ("scale", scale_report)):
        paths = reporting.result_files(results)
        for path in paths:
            for made in reporting.write(path):
                print(f"written: {path.parent}/{made}")
        if paths:
            parts[part] = reporting.sections(paths)
    if of_stream := stream_report.result_files(results):
        parts["stream"] = stream_report.sections(of_stream)
    if of_faults := survival_results.result_files(results):
        parts["faults"] = survival_results.sections(of_faults)
    if of_language := language_report.result_files(results):
        parts["language"] = language_report.sections(of_language)
    readme.refresh(readme.README, parts)
    print(f"refreshed: {readme.README.name}")
    return 0


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/core.jsonl"))


def load(path: pathlib.Path) -> Results:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Results(lines[0], tuple(line for line in lines[1:] if line["kind"] == "row"))


# -- reading rows ------------------------------------------------------------------------------------------------------


def name(row: Row) -> str:
    return f"{row['record']}, {row['variant']}" if row["variant"] else row["record"]


def peer(row: Row) -> str:
    """What ours replaces: the first of the JAX peers, else the plain formula (torch is a bystander)."""
    return next((n for n in row["implementations"] if n not in (*NOT_PEERS, "torch")), NOT_PEERS[1])


def ratio(row: Row) -> float:
    """Our time over the peer's, the median over rounds."""
    return row["implementations"][peer(row)]["ours_over_this"]


def shown(row: Row) -> str:
    """The function as code, its variant as text."""
    return f"`{row['record']}`" + (f", {row['variant']}" if row["variant"] else "")


def split(results: Results) -> tuple[list[Row], list[Row]]:
    """The rows of the functions that are measured on both kinds of batches, which replace others', and the rest."""
    both = {name(row) for row in results.rows if row["batch"] == "dominated"}
    return [row for row in results.rows if name(row) in both], [row for row in results.rows if name(row) not in both]


def width(row: Row) -> int | None:
    return row["sizes"].get("K")


def by(rows: Iterable[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows grouped by keys, in the order of first rows; ``"name"`` stands for record and variant."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    named = {"name": name, "shown": shown}
    for row in rows:
        groups.setdefault(tuple(named[k](row) if k in named else row[k] for k in keys), []).append(row)
    yield from groups.items()


# -- Markdown ----------------------------------------------------------------------------------------------------------


def document(results: Results) -> str:
    """Everything that was measured on one device."""
    parts = [
        f"# Core suite on {results.machine['device']}",
        machine_line(results.machine),
        "Time: median (20th to 80th percentile) over interleaved rounds. Each other column: its time, and in brackets "
        "ours over its (below 1: ours is faster). Bytes: every input read once and every result written once, "
        "over our time, as a share of the rate of copies. FLOP: as the compiler states it, exp and log count one, "
        "as a share of the rate of matrix products. Memory: the compiled program's temporary buffers, ours and each "
        "other's in the order of the columns. The functions of a batch of probabilities or logits are measured at the "
        "same number of elements for every V; in a dominated batch every other row's right class leads by 25.",
    ]
    for (record, variant), rows in by(results.rows, "record", "variant"):
        parts.append(f"## {record}" + (f", {variant}" if variant else ""))
        parts.append(full_table(rows))
    return "\n\n".join(parts) + "\n"


def full_table(rows: list[Row]) -> str:
    others = [n for n in rows[0]["implementations"] if n != "xentjax"]
    shares = ["bytes", "FLOP", "memory, MiB", "compile, s"]
    header = ["batch", "sizes", "dtype", "mode", "ours, ms", *(f"{n}, ms" for n in others), *shares]
    return table(header, (full_row(row, others) for row in rows))


def full_row(row: Row, others: list[str]) -> list[str]:
    implementations = row["implementations"]
    ours = implementations["xentjax"]
    cells = [row["batch"], " ".join(f"{n}={size}" for n, size in row["sizes"].items()), row["dtype"], row["mode"]]
    cells.append(f"{milliseconds(ours['run_s'])} ({milliseconds(ours['p20_s'])}–{milliseconds(ours['p80_s'])})")
    theirs = [implementations[other] for other in others]
    cells += [f"{milliseconds(other['run_s'])} ({other['ours_over_this']:.2f})" for other in theirs]
    memory = [i["temp_bytes"] for i in implementations.values() if "temp_bytes" in i]
    cells += [f"{ours['copy_share']:.0%}", f"{ours['matmul_share']:.1%}", " / ".join(mebibytes(b) for b in memory)]
    return [*cells, f"{ours['compile_s']:.2f}"]


def readme_section(results: Results) -> str:
    """The README's part for one device: what exactness costs against the function that it replaces."""
    compared, others = split(results)
    parts = [f"**{results.machine['device']}**: {machine_line(results.machine)} {extent(results)}"]
    for batch, rows in by(compared, "batch"):
        parts.append(f"{batch[0].capitalize()} batches, our time over the peer's, value / value_and_grad:")
        parts.append(ratio_table(rows))
    if compared:
        parts += [cost_of_exactness(compared), memory_sentence(compared)]
    if others:
        parts.append("The other functions, our time over the peer's, value / value_and_grad:")
        parts.append(others_table(others))
    folder = f"benchmarks/results/{results.machine['device']}"
    parts.append(
        f"All rows, with times, shares of the machine's rates and memory: [{folder}/core.md]({folder}/core.md)."
    )
    return "\n\n".join(parts)


def extent(results: Results) -> str:
    """How many of the public functions there are rows of."""
    public = {record.name for record in ops() if record.public and not record.is_whole}
    measured = public & {row["record"] for row in results.rows}
    return f"{len(measured)} of {len(public)} functions."


def ratio_table(rows: list[Row]) -> str:
    """One line for each function and dtype, one column for each number of classes."""
    widths = sorted({w for row in rows if (w := width(row)) is not None})
    lines = []
    for (function, dtype), group in by(rows, "shown", "dtype"):
        cells = [both_modes([row for row in group if width(row) == one]) for one in widths]
        if widths and not any(width(row) for row in group):  # elementwise: one size stands for all
            cells[0] = both_modes(group)
        lines.append([function, peer(group[0]), dtype, *cells])
    return table(["function", "peer", "dtype", *(f"V = {w:,}" for w in widths)], lines)


def others_table(rows: list[Row]) -> str:
    """One line for each function, at 1,024 classes where the number varies."""
    lines = []
    for (function,), group in by(rows, "shown"):
        chosen = [row for row in group if width(row) == 1024] or group
        cells = [both_modes([row for row in chosen if row["dtype"] == dtype]) for dtype in ("float32", "bfloat16")]
        sizes = " ".join(f"{n}={size}" for n, size in chosen[0]["sizes"].items())
        lines.append([function, peer(chosen[0]), sizes, *cells])
    return table(["function", "peer", "sizes", "float32", "bfloat16"], lines)


def both_modes(rows: list[Row]) -> str:
    found = {row["mode"]: ratio(row) for row in rows}
    return " / ".join(f"{found[mode]:.2f}" for mode in MODES if mode in found) or "–"


def cost_of_exactness(rows: list[Row]) -> str:
    """What exactness costs, in one sentence: the geometric mean of our time over the peer's, and the worst."""
    sentences = []
    for (batch, mode), group in by(rows, "batch", "mode"):
        worst = max(group, key=ratio)
        mean = statistics.geometric_mean([ratio(row) for row in group])
        sentences.append(f"{batch}, {mode}: {mean:.2f}× on average, {ratio(worst):.2f}× at worst ({place(worst)})")
    return "What exactness costs in time: " + "; ".join(sentences) + "."


def place(row: Row) -> str:
    return f"{name(row)}, {row['dtype']}" + (f", V = {width(row)}" if width(row) else "")


def memory_sentence(rows: list[Row]) -> str:
    """The largest temporary memory that ours takes beyond the peer's."""
    extra = {}
    for row in rows:
        taken = {n: i["temp_bytes"] for n, i in row["implementations"].items() if "temp_bytes" in i}
        extra[taken["xentjax"] - taken[peer(row)]] = row
    most, least = max(extra), min(extra)
    return (
        f"In temporary memory, beside the peer: from {mebibytes(least)} MiB "
        f"({place(extra[least])}, {extra[least]['mode']}) to {mebibytes(most)} MiB "
        f"({place(extra[most])}, {extra[most]['mode']})."
    )


# -- plots -------------------------------------------------------------------------------------------------------------


def plot(results: Results, folder: pathlib.Path) -> None:
    """``speed.png``: our time over the peer's, against the number of classes. ``bandwidth.png``: shares of copies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = [row for row in split(results)[0] if width(row)]
    if compared:
        groups = list(by(compared, "name"))
        figure, axes = pyplot.subplots(
            2,
            len(groups),
            figsize=(2.6 * len(groups), 5.2),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for column, ((function,), rows) in enumerate(groups):
            for line, mode in enumerate(MODES):
                draw_ratios(axes[line][column], [row for row in rows if row["mode"] == mode])
                axes[line][0].set_ylabel(f"{mode}\nour time / peer's")
            axes[0][column].set_title(f"{function.replace(', ', chr(10))}\n(peer: {peer(rows[0])})", fontsize=8)
            axes[1][column].set_xlabel("classes V")
        legend_above(figure, [axis for line in axes for axis in line])
        figure.savefig(folder / "speed.png", dpi=110)
        pyplot.close(figure)
    groups = list(by((row for row in results.rows if row["batch"] == "plain"), "name"))
    figure, axis = pyplot.subplots(figsize=(8, 1.2 + 0.26 * len(groups)), layout="constrained")
    markers = {("float32", MODES[0]): "C0o", ("float32", MODES[1]): "C0s", ("bfloat16", MODES[0]): "C1o"}
    markers |= {("bfloat16", MODES[1]): "C1s"}
    for place, (_, rows) in enumerate(groups):
        for row in rows:
            share = row["implementations"]["xentjax"]["copy_share"]
            label = f"{row['dtype']}, {row['mode']}"
            axis.plot(share, place, markers[row["dtype"], row["mode"]], markersize=4, alpha=0.6, label=label)
    axis.set_yticks(range(len(groups)), [key[0] for key, _ in groups], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xticks([0.01, 0.03, 0.1, 0.3, 1], ["1%", "3%", "10%", "30%", "100%"])
    axis.set_xlabel("share of the rate of copies, one mark for each shape")
    axis.grid(alpha=0.3)
    legend_above(figure, [axis])
    figure.savefig(folder / "bandwidth.png", dpi=110)
    pyplot.close(figure)


def legend_above(figure: Any, axes: list[Any]) -> None:
    """One legend for all axes, each label once."""
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8)


def draw_ratios(axis: Any, rows: list[Row]) -> None:
    for (dtype, batch), group in by(rows, "dtype", "batch"):
        color, style = ("C0" if dtype == "float32" else "C1"), ("-" if batch == "plain" else ":")
        points = sorted((width(row), ratio(row)) for row in group)
        axis.plot(*zip(*points, strict=True), style, color=color, marker=".", label=f"{dtype}, {batch}")
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yscale("log", base=2)
    axis.set_yticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
