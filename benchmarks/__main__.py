"""Command line: ``core``, ``regression``, ``linear``, ``scale`` and ``stream`` measure, ``kills``, ``faults``, ``fuzz``
and ``soak`` try what may happen, ``report`` writes tables and plots."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    core = commands.add_parser(
        "core", help="every record against its peers: time, memory, shares of the machine's rates"
    )
    core.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: the first device that JAX finds")
    core.add_argument("--out", type=pathlib.Path, help="folder for core.jsonl (default: benchmarks/results/<device>)")
    core.add_argument("--only", metavar="NAME", help="one record, or a regular expression of names")
    core.add_argument("--quick", action="store_true", help="an eighth of the elements, two shapes, few rounds")
    core.add_argument("--elements", type=int, help="size of the largest argument (default: fills the memory bandwidth)")
    core.add_argument("--seconds", type=float, default=1.0, help="time for each row's rounds (default: 1)")
    regression = commands.add_parser(
        "regression", help="logistic regressions, one or thousands, by every solver of ours and of the peers"
    )
    regression.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: the first device that JAX finds")
    regression.add_argument("--out", type=pathlib.Path, help="folder for regression.jsonl (default: as for core)")
    regression.add_argument("--only", metavar="NAME", help="one problem, or a regular expression of names")
    regression.add_argument("--quick", action="store_true", help="small problems of every kind, in seconds")
    linear = commands.add_parser("linear", help="linear cross-entropy by every method: time, memory, errors")
    linear.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: the first device that JAX finds")
    linear.add_argument("--out", type=pathlib.Path, help="folder for linear.jsonl (default: as for core)")
    only = "a regular expression of 'N,D,V dtype mode' (a processor's); rows of other places stay in OUT"
    linear.add_argument("--only", metavar="PLACE", help=only)
    linear.add_argument("--quick", action="store_true", help="two small shapes (a processor's)")
    linear.add_argument(
        "--seconds", type=float, default=6.0, help="time for each row's rounds (a processor's; default: 6)"
    )
    linear.add_argument("--tiny", action="store_true", help="an accelerator's stages at toy sizes, on any device")
    blocks = commands.add_parser(
        "blocks", help="the table of block sizes of linear cross-entropy, swept on this device"
    )
    blocks.add_argument("--device", choices=("cpu", "gpu", "tpu"), help="default: the first device that JAX finds")
    blocks.add_argument("--measured", type=pathlib.Path, help="a linear.jsonl that holds a sweep: none is made here")
    blocks.add_argument("--table", type=pathlib.Path, help="default: the table that the library reads")
    blocks.add_argument("--tiny", action="store_true", help="toy sizes")
    scale = commands.add_parser("scale", help="a Newton step and a head's step over host devices and processes")
    scale.add_argument("--out", type=pathlib.Path, help="folder for scale.jsonl (default: as for core)")
    scale.add_argument("--quick", action="store_true", help="small problems, in a minute")
    scale.add_argument("--seconds", type=float, default=2.0, help="time for each row's rounds (default: 2)")
    kills = commands.add_parser("kills", help="runs that are killed at random moments until they are complete")
    kills.add_argument("--count", type=int, default=100, help="kills of each kind of run (default: 100)")
    kills.add_argument("--minutes", type=float, default=10.0, help="the most time for each kind (default: 10)")
    faults = commands.add_parser(
        "faults", help="runs that are stopped, and damaged files, full disks, locks, overflows"
    )
    faults.add_argument("--times", type=int, default=3, help="how often each is tried (default: 3)")
    for command, of in ((kills, "kind of run (gd, minibatch, language, grid)"), (faults, "fault")):
        command.add_argument("--seed", type=int, default=0, help="draws what is drawn (default: 0)")
        command.add_argument("--only", metavar="NAME", help=f"one {of}, or a regular expression of names")
        command.add_argument("--out", type=pathlib.Path, help="folder for faults.jsonl (default: as for core)")
    stream = commands.add_parser("stream", help="fits of a table that is read from a file beside those in memory")
    stream.add_argument("--rows", type=int, default=10_000_000, help="default: 10 million, 4 GB twice over")
    stream.add_argument("--columns", type=int, default=100)
    stream.add_argument("--repeats", type=int, default=2, help="fits of which the fastest counts (default: 2)")
    stream.add_argument("--folder", type=pathlib.Path, help="where the table is made (default: TMPDIR or /var/tmp)")
    stream.add_argument("--cold", action="store_true", help="and a fit of a file that is not in the system's cache")
    stream.add_argument("--out", type=pathlib.Path, help="folder for stream.jsonl (default: as for core, if all rows)")
    fuzz = commands.add_parser("fuzz", help="damaged and forged files through every reader: errors, time, memory")
    fuzz.add_argument("--count", type=int, default=20_000, help="inputs of all readers together (default: 20000)")
    fuzz.add_argument("--seed", type=int, default=0, help="the same seed draws the same inputs (default: 0)")
    fuzz.add_argument("--only", metavar="NAME", action="append", help="this reader only (repeatable)")
    fuzz.add_argument("--engine", choices=("hypothesis", "atheris"), default="hypothesis", help="who draws them")
    fuzz.add_argument("--out", type=pathlib.Path, help="folder for fuzz.jsonl (default: as for core)")
    soak = commands.add_parser("soak", help="thousands of fits of changing sizes in one process: memory, programs")
    soak.add_argument("--fits", type=int, default=10_000, help="how many (default: 10000)")
    soak.add_argument("--seed", type=int, default=0, help="the same seed draws the same fits (default: 0)")
    soak.add_argument("--out", type=pathlib.Path, help="folder for soak.jsonl (default: as for core)")
    report = commands.add_parser("report", help="tables and plots from the results, and the README's generated parts")
    report.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder that holds <device>/*.jsonl")
    arguments = parser.parse_args(argv)
    if arguments.command == "report":
        from benchmarks import report as reporting

        return reporting.main(arguments.results)
    runs = {"core": run_core, "regression": run_regression, "linear": run_linear, "blocks": run_blocks}
    runs |= {"scale": run_scale, "stream": run_stream, "kills": run_kills, "faults": run_faults}
    runs |= {"fuzz": run_fuzz, "soak": run_soak}
    return runs[arguments.command](arguments)


def settle(device: str | None) -> None:
    """What must be settled before JAX or torch load: the device, its memory, and torch's threads, which would spin for
    a while after each of its calls, on the cores that the next in turn needs."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if device:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(device, device)


def run_core(arguments: argparse.Namespace) -> int:
    settle(arguments.device)
    import jax

    from benchmarks import core
    from benchmarks.harness import measure
    from benchmarks.machine import measure_machine

    device = jax.devices()[0]
    machine = measure_machine(device, arguments.quick)
    print(
        f"{machine.name} ({machine.device}): copies {machine.copy_bytes_per_s / 1e9:.1f} GB/s, matrix products", end=" "
    )
    print(", ".join(f"{n} {rate / 1e9:.0f} GFLOP/s" for n, rate in machine.matmul_flop_per_s.items()), flush=True)
    is_part = arguments.only or arguments.quick or arguments.elements
    folder = arguments.out or (None if is_part else RESULTS / machine.device)
    seconds = arguments.seconds / 4 if arguments.quick else arguments.seconds
    elements = arguments.elements or core.elements_for(machine.platform, arguments.quick)
    start, rows = time.perf_counter(), 0
    with results_file(folder) as write:
        write(machine.to_json())
        for task in core.tasks(elements, arguments.only, arguments.quick):
            row = measure(task, machine, seconds=seconds)
            write(row)
            print(one_line(row), flush=True)
            rows += 1
    print(f"{rows} rows in {time.perf_counter() - start:.0f} s")
    if folder is not None:
        print(f"written to {folder / 'core.jsonl'}")
    return 0


def run_regression(arguments: argparse.Namespace) -> int:
    """On a processor the process is pinned to one core before anything with threads is loaded."""
    settle(arguments.device)
    pin_to_one_core()
    import jax

    jax.config.update("jax_enable_x64", True)
    from benchmarks import regression
    from benchmarks.machine import REGRESSION_PACKAGES, measure_machine

    machine = measure_machine(jax.devices()[0], quick=True, packages=REGRESSION_PACKAGES)
    is_part = arguments.only or arguments.quick
    folder = arguments.out or (None if is_part else RESULTS / machine.device)
    start = time.perf_counter()
    with results_file(folder, "regression") as write:
        write(machine.to_json())
        for row in regression.rows(arguments.only, arguments.quick):
            write(row)
            print(regression.one_line(row), flush=True)
    print(f"all in {time.perf_counter() - start:.0f} s")
    if folder is not None:
        print(f"written to {folder / 'regression.jsonl'}")
    return 0


def run_scale(arguments: argparse.Namespace) -> int:
    """Eight devices of a CPU, and processes of one each."""
    settle("cpu")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    import jax

    from benchmarks.machine import measure_machine
    from benchmarks.scale import run

    machine = measure_machine(jax.devices()[0], quick=True)
    folder = arguments.out or (None if arguments.quick else RESULTS / machine.device)
    with results_file(folder, "scale") as write:
        write(machine.to_json())
        for row in run.rows(arguments.quick, arguments.seconds / 8 if arguments.quick else arguments.seconds):
            write(row)
            print(run.one_line(row), flush=True)
    if folder is not None:
        print(f"written to {folder / 'scale.jsonl'}")
    return 0


def run_linear(arguments: argparse.Namespace) -> int:
    """A processor's suite, or an accelerator's stages; 1 where a check of those failed."""
    settle(arguments.device)
    import jax

    from benchmarks.linear import stages, suite
    from benchmarks.linear.lines import one_line
    from benchmarks.machine import LINEAR_PACKAGES, measure_machine

    start = time.perf_counter()
    is_quick = arguments.quick or arguments.tiny
    machine = measure_machine(jax.devices()[0], quick=is_quick, packages=LINEAR_PACKAGES)
    in_stages = arguments.tiny or machine.platform != "cpu"
    is_part = arguments.only or is_quick
    folder = arguments.out or (None if is_part else RESULTS / machine.device)
    if in_stages:
        found = stages.rows(machine, start, arguments.tiny)
    else:
        found = suite.rows(machine, arguments.seconds, arguments.only, arguments.quick)
    failed = 0
    kept = suite.kept(folder, machine.to_json(), arguments.only) if folder is not None and arguments.only else []
    with results_file(folder, "linear") as write:
        for row in (machine.to_json(), *kept):
            write(row)
        for row in found:
            write(row)
            print(one_line(row), flush=True)
            failed += not row.get("passed", True)
    print(f"all in {time.perf_counter() - start:.0f} s" + (f"; {failed} checks FAILED" if failed else ""))
    if folder is not None:
        print(f"written to {folder / 'linear.jsonl'}")
    else:
        print("not written, as it is a part: --out says where to")
    return 1 if failed else 0


def run_blocks(arguments: argparse.Namespace) -> int:
    settle(arguments.device)
    import jax

    from benchmarks.linear import blocks, problems, sweep
    from benchmarks.linear.lines import one_line

    if arguments.measured:
        found = [json.loads(line) for line in arguments.measured.read_text().splitlines()]
    else:
        on_cpu = jax.default_backend() == "cpu"
        shapes = problems.TINY if arguments.tiny else problems.CPU if on_cpu else problems.GPU
        dtypes = ("float32", "bfloat16") if on_cpu else ("bfloat16",)
        found = []
        for row in sweep.rows(shapes, dtypes, 0.05 if arguments.tiny else 3.0, arguments.tiny):
            print(one_line(row), flush=True)
            found.append(row)
    table = arguments.table or blocks.TABLE
    blocks.write(blocks.merged(blocks.read(table), blocks.of_rows(found)), table)
    print(f"written to {table}")
    return 0


def run_kills(arguments: argparse.Namespace) -> int:
    from benchmarks.survival import results
    from benchmarks.survival.kills import PARTS, kill_row

    parts = [part for part in PARTS if re.fullmatch(arguments.only or ".*", part)]
    say = lambda text: print(text, flush=True)
    found = (kill_row(part, arguments.count, arguments.minutes, arguments.seed, say) for part in parts)
    return results.write(found, arguments.out or RESULTS)


def run_faults(arguments: argparse.Namespace) -> int:
    from benchmarks.survival import faults, results

    found = faults.rows(arguments.only, arguments.seed, arguments.times)
    return results.write(found, arguments.out or RESULTS)


def run_stream(arguments: argparse.Namespace) -> int:
    settle("cpu")
    import jax

    from benchmarks import stream
    from benchmarks.machine import STREAM_PACKAGES, measure_machine

    machine = measure_machine(jax.devices()[0], quick=True, packages=STREAM_PACKAGES)
    folder = arguments.out or (RESULTS / machine.device if arguments.rows >= 10_000_000 else None)
    with results_file(folder, "stream") as write:
        write(machine.to_json())
        for row in stream.rows(arguments.rows, arguments.columns, arguments.folder, arguments.repeats, arguments.cold):
            write(row)
            print(stream.one_line(row), flush=True)
    if folder is not None:
        print(f"written to {folder / 'stream.jsonl'}")
    return 0


def run_fuzz(arguments: argparse.Namespace) -> int:
    """1 where an input was neither read nor refused in one line, or took too much."""
    settle("cpu")
    from benchmarks.fuzz import run
    from benchmarks.fuzz.readers import READERS

    for name in arguments.only or ():
        if name not in READERS:
            print(f"--only {name}: no such reader; there are {', '.join(READERS)}", file=sys.stderr)
            return 2
    start, faults, inputs = time.perf_counter(), 0, 0
    machine = named_machine()
    folder = arguments.out or (None if arguments.only else RESULTS / machine["device"])
    print(run.HEADER, flush=True)
    with results_file(folder, "fuzz") as write:
        write(machine)
        for row in run.rows(arguments.only or list(READERS), arguments.count, arguments.seed, arguments.engine):
            write(row)
            print(run.one_line(row), flush=True)
            faults, inputs = faults + row["faults"], inputs + row["inputs"]
    print(f"{inputs:,} inputs in {time.perf_counter() - start:.0f} s, {faults} faults")
    return 1 if faults else 0


def run_soak(arguments: argparse.Namespace) -> int:
    """1 where memory, mappings or programs grew beyond their bounds."""
    settle("cpu")
    from benchmarks import soak

    machine = named_machine()
    with results_file(arguments.out or RESULTS / machine["device"], "soak") as write:
        write(machine)
        for row in soak.rows(arguments.fits, arguments.seed):
            write(row)
            print(soak.one_line(row), flush=True)
    for name, held in row["held"].items():
        print(f"{'held' if held else 'NOT HELD'}: {name}")
    return 0 if all(row["held"].values()) else 1


def named_machine() -> dict[str, Any]:
    """The machine and its versions, without rates."""
    import jax

    from benchmarks import machine
    from xentjax.training.machine import versions

    device = jax.devices()[0]
    named = {"device": machine.device_name(device), "name": machine.processor_name(device), "cores": os.cpu_count()}
    return {"kind": "machine", **named, "versions": versions(*machine.PACKAGES), "commit": machine.commit()}


def pin_to_one_core() -> None:
    """One core for the process and one thread for every library, so that no method gains by threads of its own.

    Which libraries are concerned: NumPy's and SciPy's BLAS, OpenMP (scikit-learn, torch, glum), Numba (skglm), and XLA,
    whose pools have as many threads as the process has cores.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


@contextlib.contextmanager
def results_file(folder: pathlib.Path | None, suite: str = "core") -> Iterator[Callable[[dict], object]]:
    """What writes a line to <suite>.jsonl in the folder, if there is one. It has that name when it is whole; what a run
    that ends early has measured is in <suite>.jsonl.partial."""
    if folder is None:
        yield lambda line: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{suite}.jsonl.partial"
    with partial.open("w") as file:
        yield lambda line: print(json.dumps(line), file=file, flush=True)
    partial.replace(folder / f"{suite}.jsonl")


def one_line(row: dict) -> str:
    """A row for the eye: our time, and ours over each other's; temporary memory, and theirs."""
    ours, *others = row["implementations"].items()
    text = f"{row['record']}{' ' + row['variant'] if row['variant'] else ''}, {row['batch']}, {row['dtype']}, "
    text += " ".join(f"{n}={size}" for n, size in row["sizes"].items()) + f", {row['mode']}: "
    text += f"{ours[1]['run_s'] * 1e3:.2f} ms, {ours[1]['copy_share']:.0%} of copy"
    text += "".join(f", {other['ours_over_this']:.2f}x {name}" for name, other in others)
    memory = {n: i["temp_bytes"] for n, i in row["implementations"].items() if "temp_bytes" in i}
    return text + "; MiB " + "/".join(f"{b / 2**20:.1f}" for b in memory.values())


if __name__ == "__main__":
    sys.exit(main())
