"""`asr serve` as its clients meet it: OpenAI's own client, a browser, a live stream, and those who mean no good. The server is a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import soundfile

from asr.audio import load_audio

openai = pytest.importorskip("openai", reason="install the extra: pip install 'asr[test]'")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
from websockets.sync.client import connect  # noqa: E402

EXAMPLE = Path(__file__).parent / "data" / "sense_and_sensibility.wav"
KEY = "a secret"
LIMITS = ("--max-megabytes", "2", "--max-minutes", "0.5", "--timeout", "20", "--threads", "1", "--precision", "float32")


@contextmanager
def serving(*options: str, api_key: str = "") -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start `asr serve` on a free port; yield its address and its process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]), "ASR_API_KEY": api_key, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "asr.cli", "serve", "--port", "0", *LIMITS, *options]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        log = ""
        while not (found := re.search(r"on (http://\S+)", log)):
            line = process.stderr.readline()
            assert line, log
            log += line
        yield found[1], process
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(api_key=KEY) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(server: str) -> Any:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0)


def _post(server: str, data: bytes = EXAMPLE.read_bytes(), *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    return httpx.post(
        f"{server}/v1/audio/transcriptions", files={"file": ("a.wav", data)}, data=fields, timeout=60,
        headers={"Authorization": f"Bearer {KEY}", **(headers or {})},
    )  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    import asr

    return asr.load_model("english", num_threads=1).transcribe(EXAMPLE).text


# --- OpenAI's client ----------------------------------------------------------------------------------------------------


def test_openais_client_gets_the_text(client: Any, text: str) -> None:
    with EXAMPLE.open("rb") as file:
        assert client.audio.transcriptions.create(model="whisper-1", file=file).text == text
        assert client.audio.transcriptions.create(model="english", file=file, language="en", response_format="text").strip() == text


def test_openais_client_gets_words_and_segments_with_times(client: Any, text: str) -> None:
    with EXAMPLE.open("rb") as file:
        found = client.audio.transcriptions.create(
            model="whisper-1", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"], temperature=0, prompt="x"
        )
    assert found.text == text == " ".join(word.word for word in found.words) == " ".join(segment.text for segment in found.segments)
    assert float(found.duration) == pytest.approx(5.3, abs=1e-3)
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 5.3
    assert found.segments[0].avg_logprob < 0


@pytest.mark.parametrize(("name", "first"), [("srt", r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n"), ("vtt", r"WEBVTT\n\n")])
def test_openais_client_gets_subtitles(client: Any, name: str, first: str) -> None:
    with EXAMPLE.open("rb") as file:
        found = client.audio.transcriptions.create(model="whisper-1", file=file, response_format=name)
    assert re.match(first, found) and "00:00:0" in found


def test_openais_client_lists_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["english", "whisper-1"]
    assert client.models.retrieve("english").id == "english"


@pytest.mark.parametrize(
    ("arguments", "error", "param"),
    [
        ({"model": "nothing"}, "NotFoundError", "model"),
        ({"language": "de"}, "BadRequestError", "language"),
        ({"response_format": "docx"}, "BadRequestError", "response_format"),
        ({"temperature": 7}, "BadRequestError", "temperature"),
        ({"timestamp_granularities": ["word"]}, "BadRequestError", "timestamp_granularities[]"),
        ({"file": b"no audio"}, "BadRequestError", None),
        ({"file": b""}, "BadRequestError", None),
    ],
)
def test_openais_client_is_told_what_is_wrong(client: Any, arguments: dict[str, Any], error: str, param: str | None) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        client.audio.transcriptions.create(**{"model": "whisper-1", "file": EXAMPLE.read_bytes(), **arguments})
    assert caught.value.type == "invalid_request_error" and caught.value.param == param and caught.value.code
    assert "Traceback" not in caught.value.message and "/" not in caught.value.message


def test_a_wrong_key_is_refused(server: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server}/v1", api_key="a secreT", max_retries=0).models.list()
    assert httpx.get(f"{server}/v1/models").status_code == 401
    assert httpx.get(f"{server}/health").json()["status"] == "ok"  # is for monitors, which have none


# --- limits and isolation -------------------------------------------------------------------------------------------------


def test_a_large_upload_is_refused_whether_it_tells_its_size_or_not(server: str) -> None:
    def unannounced() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(30):
            yield bytes(100_000)

    assert _post(server, bytes(3_000_000)).status_code == 413
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{server}/v1/audio/transcriptions", content=unannounced(), headers=headers)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "file_too_large"


def test_long_audio_in_a_small_file_is_refused(server: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16_000 * 60, np.int16), 16_000, format="FLAC")
    answer = _post(server, buffer.getvalue())
    assert len(buffer.getvalue()) < 100_000 and answer.status_code == 413 and answer.json()["error"]["code"] == "audio_too_long"


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Host": "evil.example:80"}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "[::1"}]
)
def test_pages_of_other_sites_are_refused(server: str, headers: dict[str, str]) -> None:
    answer = _post(server, headers=headers)
    assert answer.status_code == 403 and "not_allowed" in answer.json()["error"]["code"]


def test_a_page_of_another_site_cannot_listen(server: str) -> None:
    with pytest.raises(Exception, match="403"), connect(f"{server.replace('http', 'ws')}/v1/audio/stream", origin="https://evil.example"):  # type: ignore[arg-type]
        pass


def test_answers_are_in_openais_shape_and_tell_nothing_of_the_machine(server: str) -> None:
    for answer in (httpx.get(f"{server}/nothing"), httpx.delete(f"{server}/health"), httpx.post(f"{server}/v1/audio/transcriptions"), _post(server, b"x")):
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert not re.search(r"Traceback|\.py|/tmp|/home|/usr", answer.text)
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and "server" not in answer.headers


def test_the_page_may_run_its_own_script_and_load_nothing(server: str) -> None:
    answer = httpx.get(server)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"""(src|href)=["'](?!data:,)""", answer.text)


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[str, int]]:
    """A server that takes one request at a time and gives it five seconds; its address and process number."""
    with serving("--queue", "1", "--timeout", "5") as (address, process):
        yield address, process.pid


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(small: tuple[str, int], sent: signal.Signals, text: str) -> None:
    address, pid = small
    (worker,) = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(worker, sent)
    failed, good = _post(address), _post(address)
    assert failed.status_code == 422 and failed.json()["error"]["code"] == "unprocessable_audio"
    assert good.status_code == 200 and good.json()["text"] == text
    assert not Path(f"/proc/{worker}").exists()


def test_a_full_queue_says_when_to_come_again(small: tuple[str, int]) -> None:
    address, _ = small
    host, port = re.match(r"http://(.+):(\d+)", address).groups()  # type: ignore[union-attr]
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\n".encode())
        assert _until(lambda: httpx.get(f"{address}/health").json()["requests"] == 1)
        answer = _post(address)
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
    assert _until(lambda: httpx.get(f"{address}/health").json()["requests"] == 0)  # the client has gone
    assert _post(address).status_code == 200


def _until(condition: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Wait until a condition holds; return whether it did."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds)


def test_without_the_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from asr.cli import main; main(['serve'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "pip install 'asr[server]'" in done.stderr and "Traceback" not in done.stderr


# --- live ------------------------------------------------------------------------------------------------------------------


@contextmanager
def _stream(server: str, **first: Any) -> Iterator[Any]:
    with connect(f"{server.replace('http', 'ws')}/v1/audio/stream") as live:
        live.send(json.dumps(first))
        yield live


def _results(live: Any) -> list[dict[str, Any]]:
    found = []
    while not found or found[-1]["type"] not in ("done", "error"):
        found.append(json.loads(live.recv(60)))
    return found


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_live_audio_gives_partial_and_final_words(server: str, text: str, rate: int) -> None:
    samples = np.round(32767 * load_audio(EXAMPLE, rate)).astype("<i2")
    with _stream(server, sample_rate=rate, api_key=KEY) as live:
        assert json.loads(live.recv(60)) == {"type": "ready", "model": "english"}
        for start in range(0, len(samples), 1600):
            live.send(samples[start : start + 1600].tobytes())
        live.send('{"type": "end"}')
        results = _results(live)
    finals = [result for result in results if result["type"] == "final"]
    assert {result["type"] for result in results} == {"partial", "final", "done"}
    words = " ".join(result["text"] for result in finals).split()
    assert len(set(words) & set(text.split())) > len(set(text.split())) / 2  # the pieces are others than the file's
    times = [time for result in finals for word in result["words"] for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= 5.31


@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        ({"sample_rate": 16_000}, None, "invalid_api_key"),
        ({"sample_rate": 16_000, "api_key": "x"}, None, "invalid_api_key"),
        ({"sample_rate": 3, "api_key": KEY}, None, "invalid_value"),
        ({"sample_rate": "16000", "api_key": KEY}, None, "invalid_value"),
        ({"sample_rate": 16_000, "api_key": KEY}, b"odd", "invalid_message"),
        ({"sample_rate": 16_000, "api_key": KEY}, "what", "invalid_message"),
    ],
)
def test_a_stream_is_told_what_is_wrong(server: str, first: dict[str, Any], then: Any, code: str) -> None:
    with _stream(server, **first) as live:
        if then is not None:
            live.send(then)
        assert _results(live)[-1]["error"]["code"] == code


# --- a browser ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(server: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs a browser's driver: pip install playwright")
    chromium = which("chromium") or which("chromium-browser") or which("google-chrome")
    if not chromium:
        pytest.skip("needs a browser: apt-get install chromium")
    options = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={EXAMPLE}"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page()
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: page.faults.append(message.text) if "Content Security Policy" in message.text else None)
        page.goto(server)
        yield page
        assert page.faults == []
        browser.close()


def test_a_browser_shows_the_words_of_an_uploaded_file(page: Any, text: str) -> None:
    page.set_input_files("#file", EXAMPLE)
    page.wait_for_selector("#key-form:not([hidden])")
    page.fill("#key", KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".word", timeout=60_000)
    assert page.inner_text("#words").split() == text.split()
    pixels = "new Uint32Array(document.getElementById('detail').getContext('2d').getImageData(0, 64, 600, 130).data.buffer)"
    assert page.evaluate(f"new Set({pixels}).size") > 50  # a spectrogram is drawn


def test_in_a_browser_a_word_can_be_heard_and_the_subtitles_saved(page: Any, text: str) -> None:
    page.focus(".word")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert _until(lambda: page.evaluate("audio.paused && audio.currentTime > words[1].end"))
    assert page.evaluate("audio.currentTime < words[1].end + 1 && document.activeElement.textContent === words[1].word")
    with page.expect_download() as download:
        page.click("[data-format=vtt]")
    assert download.value.suggested_filename == f"{EXAMPLE.stem}.vtt"
    assert Path(download.value.path()).read_text().startswith("WEBVTT")


def test_a_browser_shows_words_while_they_are_recorded(page: Any) -> None:
    page.click("#record")
    assert _until(lambda: len(page.inner_text("#live p").split()) >= 3)
    page.click("#stop")
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)
    assert page.evaluate("duration") > 1
