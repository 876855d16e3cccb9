"""The text of a language model: files, split into those to train on and those held out."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from xentjax.training.errors import UserError
from xentjax.training.files import contents, require_file
from xentjax.training.language_config import TextConfig

#: Folders of the standard library that some installations of Python lack, or that are not of it.
_NOT_EVERYWHERE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """The contents of files, in the order of their names."""

    train: tuple[bytes, ...]
    test: tuple[bytes, ...]
    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    left_out: int
    """How many files were too much for ``max_bytes``."""
    digest: str
    """SHA-256 of names and contents, the split included: two corpora with the same are the same."""


def read_corpus(config: TextConfig, seed: int) -> Corpus:
    """Read the files that the config names, and hold some out.

    The files are put in an order that the seed draws, which does not change where other files are added: that of a hash
    of the seed and the file's name. In this order files are held out until they are ``test_fraction`` of all bytes, and
    taken as long as there are no more than ``max_bytes``. Empty files do not count.

    Raises:
      UserError: there is no such folder, it has no such file, a file cannot be read, or there is nothing to train on.
    """
    files = _files(config)
    taken, left_out, total = {}, 0, 0
    for name in sorted(files, key=lambda name: _draw(seed, name)):
        # What is too much is not read at all.
        if total + require_file(files[name]) > config.max_bytes:
            left_out += 1
        elif content := contents(files[name], config.max_bytes):
            taken[name] = content
            total += len(content)
    held_out, test_bytes = set(), 0
    for name, content in taken.items():
        if test_bytes >= config.test_fraction * total:
            break
        held_out.add(name)
        test_bytes += len(content)
    if len(held_out) == len(taken):
        raise UserError(
            f"text: holding out text.test_fraction {config.test_fraction} of {len(taken)} files leaves none "
            f"to train on{'; raise text.max_bytes' if left_out else ''}"
        )
    digest = hashlib.sha256()
    for name in sorted(taken):
        digest.update(os.fsencode(f"{name}\0{name in held_out}\0{len(taken[name])}\0") + taken[name])
    part = lambda test: tuple(name for name in sorted(taken) if (name in held_out) == test)
    train, test = part(False), part(True)
    texts = lambda names: tuple(taken[name] for name in names)
    return Corpus(texts(train), texts(test), train, test, left_out, digest.hexdigest())


def _files(config: TextConfig) -> dict[str, Path]:
    """The files of the text by their names below its folder, with / between the parts on every system."""
    folder = Path(sysconfig.get_path("stdlib") if config.path is None else config.path)
    key = "text.source" if config.path is None else "text.path"
    if not folder.is_dir():
        raise UserError(f"{key}: {folder} is not a folder")
    try:
        named = [path for path in folder.rglob("*") if path.name.endswith(config.suffix)]  # the suffix is no pattern
        found = {path.relative_to(folder): path for path in named if path.is_file()}
    except (OSError, RecursionError) as error:
        raise UserError(f"{key}: {folder} cannot be searched: {getattr(error, 'strerror', None) or error}") from error
    if config.path is None:
        found = {name: path for name, path in found.items() if not _NOT_EVERYWHERE & set(name.parts)}
    if not found:
        raise UserError(f"{key}: {folder} has no file whose name ends in {config.suffix!r} (text.suffix)")
    return {name.as_posix(): path for name, path in found.items()}


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(str(seed).encode() + b"\0" + os.fsencode(name)).digest()
