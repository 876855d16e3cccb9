"""Programs whose compiled form is kept for other processes, which then neither trace nor compile them.

JAX's own cache keeps what comes out of the compiler, under a key that is made of the program: a process has to trace
and to lower all of it before it knows what to look for. Here the key is what the program is made from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import stat
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable
from jaxlib import lapack

from xentjax.solvers import room

#: What a file begins with, before the digest of the rest.
_MARK = b"xentjax program 1\n"

#: The most bytes that the files of a folder have, after one was written.
_MOST_BYTES = 2**28

#: Packages whose types and functions a key may have by their names: it has their versions, and the sources of this one.
_KNOWN = ("xentjax", "optax", "jax", "builtins")

#: When this module was loaded, and the package's others about then or later.
_IMPORTED = time.time()

#: With these each operation is a program of its own, or is looked at: nothing is kept then.
_INSPECTING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs")


#: In the place of a program that was not asked for before.
_UNKNOWN: Any = object()


def kept(*static: int) -> Callable[[Callable[..., Any]], KeptProgram]:
    """``jax.jit`` with static arguments of these numbers, for a function that only takes positional ones.

    Where JAX has a folder for its persistent compilation cache, the compiled program is kept in a folder inside, and
    the next process takes it from there. That is so for arrays on the first CPU of a single process, and for static
    arguments made of strings, numbers, and types and functions of this package and optax; everything else is left to
    ``jax.jit``.
    """
    return lambda function: KeptProgram(function, static)


class KeptProgram:
    """A jitted function, and what was compiled for it here or in another process, as far as there is room."""

    def __init__(self, function: Callable[..., Any], static: tuple[int, ...]):
        self._function: Any = functools.wraps(function)(lambda *args: self._traced(function, *args))
        self.jitted: Any = jax.jit(self._function, static_argnums=static)
        self._static = static
        self._compiled: dict[Any, Callable[..., Any] | None] = {}  # None: left to the jitted function
        self._is_new = False
        functools.update_wrapper(self, function)
        room.hold(self)

    def forget(self) -> None:
        """Let go of all programs: they are made again, or read again, when they are called."""
        self.jitted.clear_cache()
        self._compiled.clear()

    def __call__(self, *args: Any) -> Any:
        result = self._result(*args)
        if self._is_new:
            self._is_new = False
            room.another()
        return result

    def _traced(self, function: Callable[..., Any], *args: Any) -> Any:
        # Each trace is that of another program.
        self._is_new = True
        return function(*args)

    def _result(self, *args: Any) -> Any:
        folder = _folder()
        if folder is None:
            return self.jitted(*args)
        settings = jax.config.values
        data = [arg for i, arg in enumerate(args) if i not in self._static]
        leaves, structure = jax.tree.flatten(data)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self.jitted(*args)
        static = tuple(args[i] for i in self._static)
        signature = static, structure, tuple(map(_like, leaves)), tuple(settings.values())
        compiled = self._compiled.get(signature, _UNKNOWN)
        if compiled is _UNKNOWN:
            return self._first_call(folder, signature, settings, args, data)
        return self.jitted(*args) if compiled is None else compiled(*data)

    def _first_call(self, folder: pathlib.Path, signature: Any, settings: Any, args: Any, data: Any) -> Any:
        name = self._name(signature, settings) if _on_first_cpu(data, settings) else None
        if name is None:
            self._compiled[signature] = None
            return self.jitted(*args)
        loaded = read_program(folder / name)
        if loaded is not None:
            # Whatever keeps it from running here: it is made anew.
            with contextlib.suppress(Exception):
                result = jax.block_until_ready(loaded(*data))
                self._compiled[signature], self._is_new = loaded, True
                return result
        self._compiled[signature] = made = self._anew().lower(*args).compile()
        write_program(folder / name, made)
        return made(*data)

    def _anew(self) -> Any:
        """The jitted function by another name, which JAX's own cache cannot know.

        What is loaded from that cache cannot be written again: some of its functions are missing then.
        """
        another = functools.wraps(self._function)(lambda *args: self._function(*args))
        another.__name__ = f"{self._function.__name__}_{os.urandom(4).hex()}"
        return jax.jit(another, static_argnums=self._static)

    def _name(self, signature: Any, settings: dict[str, Any]) -> str | None:
        """The name of the file, which tells all that the program depends on; None where that cannot be told."""
        static, structure, like, _ = signature
        machine = _machine()
        try:
            what = described((static, structure)), repr(like), repr(sorted(settings.items()))
        except _NotTold:
            return None
        if machine is None:
            return None
        text = "\n".join((self._function.__module__, self._function.__qualname__, *what, *machine))
        return f"{self._function.__name__.strip('_')}-{hashlib.sha256(text.encode()).hexdigest()}"


# -- keys --------------------------------------------------------------------------------------------------------------


class _NotTold(ValueError):
    """A static argument may be something else in another process though it looks the same."""


def described(value: Any) -> str:
    """A text that is the same in every process for what is equal, and else another.

    Raises:
      ValueError: it cannot tell: a type or a function from elsewhere, or an object without a form of its own.
    """
    if value is None or type(value) in (bool, int, float, str):
        return repr(value)
    if isinstance(value, type):
        if not _is_known(value) or "<" in value.__qualname__:
            raise _NotTold(value)
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, jax.tree_util.PyTreeDef):
        structure: Any = value
        node = structure.node_data()
        return "*" if node is None else f"{described(node)}{described(structure.children())}"
    if isinstance(value, (tuple, list)):
        return f"{described(type(value))}({', '.join(map(described, value))})"
    if isinstance(value, types.FunctionType) and _is_known(value):
        # Functions of one name may stand in one line; what they close over decides what they do.
        code, cells = value.__code__, [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = sorted((value.__kwdefaults__ or {}).items())
        where = f"{value.__module__}.{value.__qualname__} {tuple(code.co_positions())} {code.co_code.hex()}"
        return where + described((cells, value.__defaults__, defaults))
    raise _NotTold(value)


def _is_known(named: Any) -> bool:
    return named.__module__.partition(".")[0] in _KNOWN


def _like(leaf: Any) -> Any:
    """What a program knows of an argument. (Equality of shardings is that of the devices.)"""
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding, leaf.committed
    return type(leaf).__name__, np.shape(leaf), getattr(leaf, "dtype", None)


def _on_first_cpu(data: Any, settings: dict[str, Any]) -> bool:
    if settings["jax_default_device"] is not None or any(settings[name] for name in _INSPECTING):
        return False
    if jax.default_backend() != "cpu" or jax.process_count() > 1:
        return False
    first = {jax.devices()[0]}
    return all(leaf.devices() == first for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array))


@functools.cache
def _machine() -> tuple[str, ...] | None:
    """What a compiled program depends on beside its arguments and settings; None where the sources cannot be read."""
    root = pathlib.Path(__file__).resolve().parent.parent
    sources, paths = hashlib.sha256(), sorted(root.rglob("*.py"))
    # What was changed since is not what runs here.
    if not paths or max(path.stat().st_mtime for path in paths) > _IMPORTED:
        return None
    for path in paths:
        content = path.read_bytes()
        sources.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    device = jax.devices()[0]
    return (
        sources.hexdigest(),
        *(package.__version__ for package in (jax, jaxlib, np, optax)),
        *(platform.python_version(), sys.platform, platform.machine(), _processor()),
        *(device.device_kind, device.client.platform_version),
        # How a program shares its work among threads is compiled into it.
        *(str(_cores()), os.environ.get("NPROC", ""), os.environ.get("XLA_FLAGS", "")),
    )


def _processor() -> str:
    """The model of the processor and the instructions that it has, as far as the system says so.

    XLA refuses a program whose instructions the processor lacks, too.
    """
    try:
        with open("/proc/cpuinfo") as file:
            told = dict(line.partition(":")[::2] for line in file.read(2**14).partition("\n\n")[0].splitlines())
    except OSError:
        return platform.processor()
    changing = ("cpu MHz", "bogomips", "BogoMIPS", "processor", "apicid", "initial apicid", "core id", "physical id")
    return repr(sorted((name.strip(), value.strip()) for name, value in told.items() if name.strip() not in changing))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- files -------------------------------------------------------------------------------------------------------------


def _folder() -> pathlib.Path | None:
    """Where compiled programs are kept; None where nothing is kept."""
    config: Any = jax.config
    where = config.jax_compilation_cache_dir
    if not where or not config.jax_enable_compilation_cache or "://" in where:
        return None
    return _private(where)


@functools.cache
def _private(where: str) -> pathlib.Path | None:
    """A folder that nobody else can write to, for what is in it is run."""
    folder = pathlib.Path(where, "xentjax-programs")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        return None
    return folder


def read_program(path: pathlib.Path) -> Callable[..., Any] | None:
    """The program in a file; None where there is none, or none that is whole, the user's own, and can be loaded here.

    What is in it is run: a digest tells damage, but not who wrote it. The system does.
    """
    content = _own_content(path)
    if content is None:
        return None
    start = len(_MARK) + 32
    if content[:start] != _MARK + hashlib.sha256(memoryview(content)[start:]).digest():
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the files used last stay longest
    if b"lapack_" in content:
        # JAX looks LAPACK's functions up when it lowers a program that calls them; without, they are null pointers.
        lapack.prepare_lapack_call("potrf", np.dtype(np.float64))
    try:
        program, arguments, results = pickle.loads(memoryview(content)[start:])
        first = jax.devices()[:1]
        return serialize_executable.deserialize_and_load(program, arguments, results, execution_devices=first)
    except Exception:  # whatever is wrong with it: it is made anew
        return None


def _own_content(path: pathlib.Path) -> bytes | None:
    """The bytes of a file that this user has made, and that no other can have changed or put there by a link."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except OSError:
        return None
    try:
        found = os.fstat(handle)
        is_own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or not is_own or found.st_size > _MOST_BYTES:
            return None
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    except OSError:
        return None
    finally:
        os.close(handle)


def write_program(path: pathlib.Path, compiled: Any) -> None:
    """Keep a program, at once and whole. What cannot be kept is not: the next process compiles it again."""
    try:
        content = pickle.dumps(serialize_executable.serialize(compiled))
    except (ValueError, NotImplementedError, pickle.PicklingError, jax.errors.JaxRuntimeError):
        return
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(_MARK + hashlib.sha256(content).digest() + content)
                file.flush()
            except OSError:  # a full disk does not keep its part, either
                os.unlink(file.name)
                raise
        os.replace(file.name, path)
        make_room(path.parent)
    except OSError:
        return


def make_room(folder: pathlib.Path) -> None:
    """Remove the files in a folder that were not used for longest, until the others have few enough bytes."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            files.append((path.stat(), path))
    total = sum(found.st_size for found, _ in files)
    for found, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= _MOST_BYTES:
            return
        if path.is_file():
            path.unlink(missing_ok=True)
            total -= found.st_size
