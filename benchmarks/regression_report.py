"""What is made of regression.jsonl: a Markdown page with every method, a plot, and the README's table."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from benchmarks.aims import AIMS
from benchmarks.certificate import SOLVED
from benchmarks.tables import made_with, mebibytes, milliseconds, table

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Results:
    """One device's results: the machine's line, then fits, many fits, growth, starts, and what was skipped."""

    machine: dict[str, Any]
    rows: tuple[Row, ...]

    def of(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]


def result_files(results: pathlib.Path) -> list[pathlib.Path]:
    return sorted(results.glob("*/regression.jsonl"))


def load(path: pathlib.Path) -> Results:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return Results(lines[0], tuple(lines[1:]))


def write(path: pathlib.Path) -> list[str]:
    """The page and the plot beside a result; their names."""
    results = load(path)
    (path.parent / "regression.md").write_text(document(results))
    plot(results, path.parent)
    return ["regression.md", "regression.png"]


# -- reading rows ------------------------------------------------------------------------------------------------------


def solved(row: Row) -> dict[str, Row]:
    return {name: method for name, method in row["methods"].items() if method.get("solved")}


def ours(row: Row) -> Row | None:
    """What a user gets by default."""
    return solved(row).get("xentjax")


def best_peer(row: Row) -> tuple[str, Row] | None:
    """The fastest of the others that solve the problem."""
    others = [(name, method) for name, method in solved(row).items() if not method["ours"]]
    return min(others, key=lambda item: item[1]["run_s"], default=None)


def speedup(row: Row) -> float | None:
    """The best peer's time over ours."""
    mine, other = ours(row), best_peer(row)
    return None if mine is None or other is None else other[1]["run_s"] / mine["run_s"]


# -- Markdown ----------------------------------------------------------------------------------------------------------


def machine_line(machine: dict[str, Any]) -> str:
    cores = f", one core of {machine['cores']}" if machine["platform"] == "cpu" else ""
    return f"{machine['name']}{cores}. {made_with(machine)}"


def document(results: Results) -> str:
    """Everything that was measured on one device."""
    parts = [
        f"# Logistic regression on {results.machine['device']}",
        machine_line(results.machine),
        "One process, pinned to one core; every library has one thread; float64, columns standardized, data placed "
        "beforehand. Each method at the loosest tolerance at which the largest component of the gradient (with an L1 "
        f"penalty: of the least subgradient) comes to {SOLVED:g}, which one NumPy function checks for all; ours is "
        "never asked for less. Time: median (20th to 80th percentile) over interleaved rounds, in random order. A "
        "method that takes longer than 20 s, or does not get there, has run once. First call: what it takes "
        "longer than a later one, to compile or to load.",
    ]
    for row in (*results.of("fit"), *results.of("many")):
        count = f", {row['fits']:,} fits" if "fits" in row else ""
        parts += [f"## {row['name']} ({sizes(row)}{count})", methods_table(row)]
    if results.of("growing"):
        parts += ["## Growth with n and d", growth_table(results.of("growing")), "![growth](regression.png)"]
    if results.of("start"):
        parts += ["## The first fit of a process", STARTS, starts_table(results.of("start"))]
    skipped = [f"- {row['name']}: {row['why']}" for row in results.of("skipped")]
    if skipped:
        parts += ["## Skipped", "\n".join(skipped)]
    return "\n\n".join(parts) + "\n"


def sizes(row: Row) -> str:
    return ", ".join(f"{letter} = {size:,}" for letter, size in row["sizes"].items())


def methods_table(row: Row) -> str:
    """Every method, the fastest first; those that did not get there after them."""
    lines = []
    order = lambda item: (not item[1].get("solved", False), item[1].get("run_s", float("inf")))
    for name, method in sorted(row["methods"].items(), key=order):
        if "failed" in method:
            lines.append([name, "failed: " + method["failed"].splitlines()[0].replace("|", "\\|"), *["–"] * 3])
            continue
        spread = f" ({milliseconds(method['p20_s'])}–{milliseconds(method['p80_s'])})" if method["rounds"] > 1 else ""
        end = f"{method['norm']:.0e}" + ("" if method["solved"] else ", not reached")
        lines.append(
            [name, milliseconds(method["run_s"]) + spread, end, f"{method['tolerance']:g}", f"{method['first_s']:.2f}"]
        )
    return table(["method", "time, ms", "gradient", "tolerance", "first call, s"], lines)


#: What :func:`starts_table` shows.
STARTS = (
    "Seconds from the call to the result, without imports: in the first process, which compiles, and the median over "
    "later ones, which find its programs in the cache folder; and of a further fit in the same process."
)


def starts_table(rows: list[Row]) -> str:
    columns = ("first_s", "later_s", "run_s")
    seconds = lambda row: [f"{row[column]:.2g}" for column in columns]
    lines = [[row["name"].removeprefix("start: "), sizes(row), *seconds(row)] for row in rows]
    return table(["call", "sizes", "first process", "later ones", "a further fit"], lines)


def growth_table(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["methods"]))
    ours_names = [name for name in names if name.startswith("xentjax")]
    header = ["n", "d", *(f"{name}, ms" for name in names), *(f"{name}, MiB" for name in ours_names)]
    lines = []
    for row in rows:
        times = [cell(row["methods"].get(name, {})) for name in names]
        memory = [row["methods"].get(name, {}).get("temp_bytes") for name in ours_names]
        lines.append(
            [f"{row['sizes']['n']:,}", str(row["sizes"]["d"]), *times]
            + ["–" if m is None else mebibytes(m) for m in memory]
        )
    return table(header, lines)


def cell(method: Row) -> str:
    return milliseconds(method["run_s"]) if method.get("solved") else "–"


def readme_section(results: Results) -> str:
    """One line for each problem: ours beside the fastest peer that solves it."""
    lines, missed = [], []
    for row in (*results.of("fit"), *results.of("many")):
        mine, other, ratio, aim = ours(row), best_peer(row), speedup(row), AIMS.get(row["name"])
        lines.append(
            [
                row["name"],
                sizes(row),
                "–" if mine is None else milliseconds(mine["run_s"]),
                "–" if other is None else f"{other[0]}, {milliseconds(other[1]['run_s'])}",
                "–" if ratio is None else f"{ratio:.2g}×",
                "–" if aim is None else f"{aim.times:g}×",
            ]
        )
        if aim is not None and (ratio is None or ratio < aim.times):
            missed.append(f"- {row['name']}: {aim.obstacle}")
    folder = f"benchmarks/results/{results.machine['device']}"
    parts = [
        f"**{results.machine['device']}**: {machine_line(results.machine)}",
        table(["problem", "sizes", "xentjax, ms", "best peer, ms", "faster by", "aim"], lines),
        *(["Where the aim is missed, why, and what was tried:\n\n" + "\n".join(missed)] if missed else []),
        f"Every method, every problem: [{folder}/regression.md]({folder}/regression.md).",
    ]
    if results.of("growing"):
        parts.append(f"![time and memory over rows and features]({folder}/regression.png)")
    if results.of("start"):
        parts += ["The first fit of a process. " + STARTS, starts_table(results.of("start"))]
    return "\n\n".join(parts)


# -- the plot ----------------------------------------------------------------------------------------------------------


def plot(results: Results, folder: pathlib.Path) -> None:
    """``regression.png``: each method's time by problem; time and memory over n and over d."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = [*results.of("fit"), *results.of("many")]
    growing = results.of("growing")
    letters = list(dict.fromkeys(row["letter"] for row in growing))
    figure = pyplot.figure(figsize=(11, 0.42 * len(compared) + 1 + 5.5 * bool(letters)), layout="constrained")
    heights = [max(len(compared), 1) * 0.42 + 1, *([2.75, 2.75] if letters else [])]
    grid = figure.add_gridspec(len(heights), max(len(letters), 1), height_ratios=heights)
    draw_problems(figure.add_subplot(grid[0, :]), compared)
    for column, letter in enumerate(letters):
        rows = [row for row in growing if row["letter"] == letter]
        time, memory = (figure.add_subplot(grid[line, column]) for line in (1, 2))
        draw_growth(time, memory, rows, letter)
    figure.savefig(folder / "regression.png", dpi=110)
    pyplot.close(figure)


def draw_problems(axis: Any, rows: list[Row]) -> None:
    """A line for each problem, a mark for each method, its time over that of ours."""
    names = dict.fromkeys(n for row in rows for n, m in row["methods"].items() if not m.get("ours", False))
    marks = "os^vDPX*<>hp"
    style = {name: (f"C{1 + i % 9}", marks[i % len(marks)]) for i, name in enumerate(names)}
    for place, row in enumerate(rows):
        mine = ours(row)
        for name, method in solved(row).items():
            if mine is not None and not method["ours"]:
                color, mark = style[name]
                axis.plot(method["run_s"] / mine["run_s"], place, mark, color=color, label=name)
    axis.axvline(1, color="C0")
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("time over that of xentjax (right of the line: slower), to a gradient of 1e-8")
    axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axis.legend(unique.values(), unique.keys(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def draw_growth(time: Any, memory: Any, rows: list[Row], letter: str) -> None:
    """Times of all methods, and our memory beside the data's."""
    over = [row["sizes"][letter] for row in rows]
    fixed = ", ".join(f"{name} = {size:,}" for name, size in rows[0]["sizes"].items() if name != letter)
    for name in dict.fromkeys(n for row in rows for n in row["methods"]):
        found = [(at, row["methods"][name]) for at, row in zip(over, rows, strict=True) if name in solved(row)]
        style = "-" if name.startswith("xentjax") else ":"
        if found:
            time.plot([at for at, _ in found], [m["run_s"] for _, m in found], style, marker=".", label=name)
        stored = [(at, m["temp_bytes"]) for at, m in found if "temp_bytes" in m]
        if stored:
            memory.plot([at for at, _ in stored], [b / 2**20 for _, b in stored], marker=".", label=name)
    data = [8 * row["sizes"]["n"] * row["sizes"]["d"] / 2**20 for row in rows]
    memory.plot(over, data, "--", color="0.5", label="the features themselves")
    time.set_ylabel("seconds")
    memory.set_ylabel("MiB beside the data")
    memory.set_xlabel(letter)
    time.set_title(fixed, fontsize=9)
    for axis in (time, memory):
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)


def sections(paths: Iterable[pathlib.Path]) -> str:
    """The README's part, one section for each device."""
    return "\n\n".join(readme_section(load(path)) for path in paths)
