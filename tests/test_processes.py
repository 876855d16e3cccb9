"""Fits of several real processes, each with rows of its own."""

import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import real_process

PROGRAM = pathlib.Path(real_process.__file__)


def started(count, what, folder):
    """So many processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(PROGRAM)]
    return [
        subprocess.Popen(
            [*command, str(i), str(count), str(port), what, str(folder)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for i in range(count)
    ]


def ended(processes, seconds):
    """Their statuses; none may take longer than so many seconds."""
    try:
        told = [process.communicate(timeout=seconds)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], told


@pytest.fixture(scope="module")
def alone():
    """What one process with all rows on one device finds."""
    with jax.enable_x64(True):
        return real_process.fits(None, slice(None))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_with_uneven_parts_and_one_without_rows_find_what_one_finds(count, alone, tmp_path):
    statuses, told = ended(started(count, "fits", tmp_path), 300)
    assert statuses == [0] * count, told
    for number in range(count):
        found = np.load(tmp_path / f"{number}.npz")
        assert set(found) == set(alone)
        for name, wanted in alone.items():
            if isinstance(wanted, str):
                assert str(found[name]) == wanted, name
            else:
                largest = np.max(np.abs(wanted), where=~np.isnan(wanted), initial=0)
                np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-9 * largest, err_msg=name)


def test_a_mistake_in_the_rows_of_one_is_an_error_in_all(tmp_path):
    statuses, told = ended(started(2, "a mistake", tmp_path), 120)
    assert statuses == [0, 0], told
    message = "fit_logistic: x[3, 0] is nan, but needs to be finite"
    assert str(np.load(tmp_path / "1.npz")["error"]) == message
    assert str(np.load(tmp_path / "0.npz")["error"]) == f"process 1: {message}"


def test_the_others_hear_of_a_death_at_once(tmp_path):
    processes = started(2, "a death", tmp_path)
    processes[1].wait(timeout=120)
    died = time.time()
    statuses, told = ended(processes, 60)
    assert statuses == [3, -9], told
    found = np.load(tmp_path / "0.npz")
    assert float(found["at"]) - died < 10
    assert "Gloo" in str(found["error"])
