"""Facts about tiles: they multiply, in floats and in bytes, on processors of all kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asr import tiles

MULTIPLY = """
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

features = dict(llvm.get_host_cpu_features())
if missing := [name for name in sys.argv[2:4] if name != "none" and not features.get(name)]:
    sys.exit(f"no {missing[0]}")
lacking = tuple(sys.argv[4:])
fewer = llvm.FeatureMap({name: there and not name.startswith(lacking) for name, there in features.items()})
llvm.get_host_cpu_features = lambda: fewer
from asr import native, tiles

native._folders = lambda: [Path(sys.argv[1])]
rng = np.random.default_rng(0)
for num_rows, depth, num_columns in ((1, 1, 1), (7, 10, 7), (70, 131, 200)):
    a, matrix, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((num_rows, depth), (depth, num_columns), num_columns))
    for as_bytes in (False, True):
        weights = tiles.pack(matrix, bias, as_bytes=as_bytes)
        out = tiles.aligned((num_rows, len(weights.bias)))
        tiles.multiply(a.reshape(-1), depth, weights, out)
        expected = a @ matrix + bias
        if as_bytes:
            step, scale = (np.abs(x).max(axis=axis, keepdims=True) / 127 for x, axis in ((a, 1), (matrix, 0)))
            expected = (np.floor(a / step + 0.5) @ np.rint(matrix / scale)) * step * scale + bias
        np.testing.assert_allclose(out[:, :num_columns], expected, rtol=1e-4, atol=1e-4)
print(tiles.LANES, tiles.GROUP, tiles.FAST_BYTES)
"""


@pytest.mark.parametrize(
    ("needed", "lacking", "expected"),
    [
        (["avx512vnni", "none"], ["none"], "16 4 True"),
        (["avx512bw", "none"], ["avx512vnni"], "16 2 True"),
        (["avxvnni", "avx2"], ["avx512"], "8 4 True"),
        (["avx2", "none"], ["avx512", "avxvnni"], "8 2 True"),
        (["none", "none"], ["avx", "f16c", "fma"], "4 2 False"),
    ],
)
def test_products_are_right_on_processors_with_and_without_each_instruction(
    needed: list[str], lacking: list[str], expected: str, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", MULTIPLY, str(tmp_path), *needed, *lacking], capture_output=True, text=True)
    if done.stderr.startswith("no "):
        pytest.skip(f"this processor has {done.stderr.strip()}")
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr


def test_packed_weights_are_the_matrix() -> None:
    matrix = np.random.default_rng(0).standard_normal((10, 7)).astype(np.float32)
    exact, rounded = (tiles.pack(matrix, np.zeros(7), as_bytes=as_bytes) for as_bytes in (False, True))
    assert np.array_equal(exact.floats[0, :, :7], matrix) and not exact.floats[0, :, 7:].any()
    bytes_in_order = rounded.bytes[0].transpose(0, 2, 1).reshape(-1, tiles.WIDTH)[:10, :7]
    np.testing.assert_allclose(bytes_in_order * rounded.scales[:7], matrix, atol=np.abs(matrix).max() / 127 / 2 + 1e-6)
    assert np.array_equal(rounded.offsets[:7], -128 * bytes_in_order.sum(axis=0, dtype=np.int32))
