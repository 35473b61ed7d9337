"""Who may import whom: a module imports only modules of a lower rank, and heavy packages load only where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asr

PACKAGE = Path(asr.__file__).parent
RANKS = {
    "malloc": -1, "media": -1, "storage": -1,
    "text": 0, "audio": 0, "logmel": 0, "gru": 0, "muon": 0, "wer": 0, "transcript": 0, "lm": 0, "native": -1, "tiles": 0, "layers": 1,
    "manifest": 1, "model": 1, "features": 1, "ctc": 1, "mmi": 1, "rnnlm": 1, "lexicon": 1, "search": 1, "formats": 1, "vad": 1,
    "augment": 2, "voices": 2, "teacher": 2, "decoder": 2, "checkpoint": 2, "g2p": 2,
    "data": 3, "corpora": 3, "evaluate": 3, "encoder": 3, "export": 3, "average": 3,
    "transcribe": 4, "report": 4,
    "tune": 5, "cut": 5, "stream": 5, "jobs": 5, "plot": 5,
    "train": 5, "rnnlm_train": 5,
    "server": 6,
    "cli": 7,
}  # fmt: skip
TORCH_FREE = ("text", "media", "audio", "logmel", "wer", "transcript", "ctc", "lm", "rnnlm", "formats", "vad", "manifest", "evaluate", "decoder", "checkpoint", "encoder", "transcribe", "cli")


def _imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asr."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("asr."))
    return names


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_lower_ranks(path: Path) -> None:
    module = _module(path)
    for name in _imported_modules(path):
        assert RANKS[name] < RANKS[module] or name == module in ("corpora", "server"), f"{module} imports {name}"


def test_the_table_names_every_module() -> None:
    assert {_module(path) for path in SOURCES} == set(RANKS)


def test_the_recognition_half_imports_no_torch() -> None:
    modules = "; ".join(f"import asr.{name}" for name in TORCH_FREE)
    heavy = "{'torch', 'torchaudio', 'librosa', 'matplotlib', 'numba'}"
    code = f"import sys; {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").glob("*/*.py")), ids=lambda path: path.parent.name)
def test_recipes_import_asr_and_never_one_another(path: Path) -> None:
    imports = [node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imports if name and name.startswith("recipes")]
