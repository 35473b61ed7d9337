"""Facts about compiled loops: they compute what Python computes, and are compiled once."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

from asr import native

LOOPS = """
import math

def total(settings, values, table):
    result = settings.offset
    for i in range(len(values)):
        result += term(values[i], settings.scale, table)
    return int(result)

def term(value, scale, table):
    return math.exp(scale * value) + table[1, 2].count

def fill(first, values):
    for i in range(len(values)):
        values[i] = first + i
    return len(values)
"""


class Settings(NamedTuple):
    offset: int
    scale: float


RECORD = np.dtype([("name", np.int32), ("count", np.float64)], align=True)
TABLE = np.zeros((2, 3), RECORD)
TABLE[1, 2] = (7, 2.5)
ARGUMENTS = (Settings(10, 0.5), np.array([1.0, 2.0, 4.0]), TABLE)
EXPECTED = int(10 + sum(math.exp(0.5 * v) + 2.5 for v in (1.0, 2.0, 4.0)))


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of loops, and a folder of its own for machine code."""
    (tmp_path / "loops_for_test.py").write_text(LOOPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "first", tmp_path / "second"])
    import loops_for_test  # type: ignore[import-not-found]

    yield loops_for_test
    del sys.modules["loops_for_test"]


def test_compiled_loops_compute_what_python_computes_and_are_compiled_once(
    loops: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert native.load(loops, "total", ARGUMENTS)(*ARGUMENTS) == EXPECTED
        assert native.load(loops, "total", ARGUMENTS)(*ARGUMENTS) == EXPECTED
    assert len(caplog.records) == 1
    (file,) = (tmp_path / "first").iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # damaged: compiled anew
    with caplog.at_level(logging.WARNING):
        assert native.load(loops, "total", ARGUMENTS)(*ARGUMENTS) == EXPECTED
    assert len(caplog.records) == 2


def test_other_types_than_it_was_compiled_for_are_an_error(loops: ModuleType) -> None:
    total = native.load(loops, "total", ARGUMENTS)
    for values in (np.zeros(3, np.float32), np.zeros((3, 1)), np.zeros(6)[::2]):
        with pytest.raises(TypeError, match="compiled for"):
            total(ARGUMENTS[0], values, TABLE)


def test_a_bound_function_wants_its_first_argument_only(loops: ModuleType) -> None:
    values = np.zeros(3)
    fill = native.load(loops, "fill", (0, values)).bind(values)
    assert [(fill(first), values.tolist()) for first in (5, -2)] == [(3, [5, 6, 7]), (3, [-2, -1, 0])]
    with pytest.raises(TypeError, match="compiled for"):
        native.load(loops, "fill", (0, values)).bind(values[::2])


def test_a_folder_that_cannot_be_written_is_passed_over(loops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "first").write_text("not a folder")
    assert native.load(loops, "total", ARGUMENTS)(*ARGUMENTS) == EXPECTED
    assert len(list((tmp_path / "second").iterdir())) == 1
