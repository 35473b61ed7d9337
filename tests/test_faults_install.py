"""What a plain installation says where an extra is missing, that nothing goes to the network at run time, and that memory does not grow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tones
from test_faults_folders import sound_folder

from asr.audio import load_audio, write_wav

ROOT = Path(__file__).parents[1]
CLIP = Path(__file__).parent / "data" / "sense_and_sensibility.wav"

WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from asr.cli import main
main()
"""

OFFLINE = """
import sys
def refuse(event, arguments):
    within = event in ("socket.bind", "socket.connect") and not isinstance(arguments[1], tuple)  # a file: processes of one program
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.connect") and not within:
        sys.stderr.write(f"NETWORK {event} {arguments}\\n")
        raise PermissionError(f"network: {event}")
sys.addaudithook(refuse)
from asr.cli import main
main()
"""


def run(code: str, *arguments: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=environment, timeout=timeout_s)


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("torch,torchaudio", "train", ("train", "--train", "MANIFEST", "--out", "OUT")),
        ("fastapi", "server", ("serve", "--model", "MODEL")),
        ("uvicorn", "server", ("serve", "--model", "MODEL")),
        ("sounddevice", "live", ("listen", "--model", "STREAMING")),
        ("onnx", "onnx", ("export", "onnx", "MODEL", "OUT")),
    ],
)
def test_a_missing_extra_is_one_line_that_says_what_to_install(tmp_path: Path, missing: str, extra: str, arguments: tuple[str, ...]) -> None:
    names = {
        "MANIFEST": str(write_tones(tmp_path, ["a b"])),
        "OUT": str(tmp_path / "out"),
        "MODEL": str(sound_folder(tmp_path / "m")),
        "STREAMING": str(sound_folder(tmp_path / "s", bidirectional=False)),
    }
    done = run(WITHOUT, missing, *(names.get(argument, argument) for argument in arguments))
    assert done.returncode == 1 and not done.stdout, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("Error: ") and f"pip install 'asr[{extra}]'" in line


def test_recognition_needs_no_extra(tmp_path: Path) -> None:
    model = str(sound_folder(tmp_path / "m"))
    missing = "torch,torchaudio,matplotlib,librosa,tensorboard,fastapi,uvicorn,sounddevice,av,onnx,onnxruntime,ray,hypothesis,pytest,pandas"
    done = run(WITHOUT, missing, "transcribe", str(CLIP), "--model", model, "--format", "json")
    assert done.returncode == 0, done.stderr
    assert '"duration"' in done.stdout
    manifest = write_tones(tmp_path, ["a b", "go"])
    assert run(WITHOUT, missing, "evaluate", str(manifest), "--model", model).returncode == 0


def test_every_command_explains_itself_without_any_extra() -> None:
    listed = run(WITHOUT, "torch", "--help")
    commands = re.findall(r"^  (\w+)  ", listed.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"transcribe", "train", "evaluate"} <= set(commands)
    code = WITHOUT.replace("main()", f"""
from click.testing import CliRunner
for command in {commands}:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0, (command, result.output, result.exception)
print("all")
""")
    done = run(code, "torch,torchaudio,matplotlib,librosa,fastapi,uvicorn,sounddevice,av,onnx,onnxruntime,ray")
    assert done.stdout.strip() == "all", done.stderr


def test_nothing_goes_to_the_network(tmp_path: Path) -> None:
    model, manifest = str(sound_folder(tmp_path / "m")), str(write_tones(tmp_path, ["a b", "go", "no"]))
    small = ("--hidden", "4", "--layers", "1", "--epochs", "1", "--threads", "1")
    for arguments in (
        ("transcribe", str(CLIP), "--model", model),
        ("evaluate", manifest, "--model", model),
        ("train", "--train", manifest, "--dev", manifest, "--out", str(tmp_path / "run"), *small),
    ):
        done = run(OFFLINE, *arguments)
        assert done.returncode == 0 and "NETWORK" not in done.stderr, done.stderr


def test_the_network_test_sees_a_connection() -> None:
    done = run(OFFLINE.replace("main()", 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:9/")'))
    assert done.returncode != 0 and "NETWORK" in done.stderr


SOAK = """
import re, sys, time
from pathlib import Path
import numpy as np
from asr.transcribe import Transcriber
def megabytes():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
transcriber = Transcriber("english", num_threads=1)
files = sorted(Path(sys.argv[1]).glob("*.wav"))
end, count, found = time.monotonic() + 60 * float(sys.argv[2]), 0, []
while time.monotonic() < end:
    transcriber.transcribe(files[count % len(files)])
    count += 1
    if count % 50 == 0:
        found.append((count, megabytes()))
half = [(n, mb) for n, mb in found if n >= count // 3]  # what is allocated once, is by then
slope, _ = np.polyfit(*zip(*half), 1)
print(f"{count} {1000 * slope:.3f} {found[-1][1]:.0f}")
"""


@pytest.mark.slow
def test_memory_grows_by_less_than_a_megabyte_a_thousand_files(tmp_path: Path) -> None:
    waveform, rng = load_audio(CLIP), np.random.default_rng(0)
    for number in range(40):
        first, last = sorted(rng.integers(0, len(waveform), 2))
        write_wav(tmp_path / f"{number}.wav", waveform[first : last + 1600])
    minutes = os.environ.get("SOAK_MINUTES", "3")
    done = run(SOAK, str(tmp_path), minutes, timeout_s=60 * float(minutes) + 300)
    assert done.returncode == 0, done.stderr
    count, slope, megabytes = map(float, done.stdout.split())
    print(f"{count:.0f} files, {slope} MB a thousand files, {megabytes} MB in all")
    assert slope < 1.0
