#!/usr/bin/env bash
# What CI runs, in the environment that is active: style, types, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
mypy
pytest -q
