"""Strain `asr serve`: many requests at once, slow, broken and vanishing clients, generated requests. Print a Markdown report; exit code 1 on a fault.

The server is a process of its own on a free port. Needs the extras server and test, and Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asr.audio import SAMPLE_RATE, load_audio

CLIP_S = 1.0
WARM_UP = 100  # requests, and as many clients that vanish as later, before memory is first looked at
MAX_GROWTH_MB = 20.0
ROUTE = "/v1/audio/transcriptions"


@contextmanager
def serving(options: list[str], temporary: str) -> Iterator[tuple[str, int]]:
    """Start a server that puts its temporary files into a folder; yield its address and process number."""
    command = [sys.executable, "-m", "asr.cli", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": temporary}, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log = Path(temporary, "log").open("w+")  # noqa: SIM115
    for line in process.stderr:
        if found := re.search(r"on (http://\S+)", line):
            break
    else:
        raise SystemExit("the server did not start")
    reader = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
    process.stderr.close()
    try:
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        reader.wait(30)
        log.seek(0)
        if "Traceback" in (text := log.read()):
            print("\nIn the server's log:\n", text[-3000:], file=sys.stderr)


def processes(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def resources(pid: int, temporary: str) -> dict[str, float]:
    """Return open files and sockets of the server, temporary files, and the memory of it and its workers."""
    memory = [int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{p}/status").read_text())[1]) / 1024 for p in processes(pid)]  # type: ignore[index]
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return {
        "files": sum(not link.startswith("socket:") for link in links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "temporary files": len(os.listdir(temporary)) - 1,  # the log
        "server MB": memory[0],
        "workers MB": sum(memory[1:]),
    }


def wav(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE, format="WAV")
    return buffer.getvalue()


def requests(speech: np.ndarray, seed: int) -> Iterator[tuple[dict[str, Any], set[int]]]:
    """Yield keyword arguments of a request, most of them good, and the statuses that answer it."""
    rng = random.Random(seed)
    while True:
        start = rng.randrange(len(speech) - int(CLIP_S * SAMPLE_RATE))
        clip = wav(speech[start : start + int(CLIP_S * SAMPLE_RATE)])
        kind = rng.random()
        if kind < 0.85:
            format_ = rng.choice(["json", "text", "srt", "vtt", "verbose_json"])
            yield {"files": {"file": ("a.wav", clip)}, "data": {"response_format": format_}}, {200}
        elif kind < 0.9:
            yield {"files": {"file": ("a.wav", rng.randbytes(rng.randrange(3000)))}}, {400}
        elif kind < 0.95:  # a byte or two wrong: audio or not
            broken = bytearray(clip)
            for _ in range(rng.randrange(1, 4)):
                broken[rng.randrange(60)] = rng.randrange(256)
            yield {"files": {"file": ("a.wav", bytes(broken))}}, {200, 400, 413}
        else:
            yield {"files": {"file": ("a.wav", clip)}, "data": {"response_format": "docx"}}, {400}


async def load(address: str, speech: np.ndarray, *, number: int, at_once: int, seed: int) -> tuple[Counter[int], list[str], list[float]]:
    """Return how many answers had which status, what was wrong with some, and the seconds that each took."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    seconds: list[float] = []
    waiting = requests(speech, seed)

    async def client(http: httpx.AsyncClient, count: int) -> None:
        for _ in range(count):
            arguments, expected = next(waiting)
            start = time.monotonic()
            answer = await http.post(address + ROUTE, **arguments)
            seconds.append(time.monotonic() - start)
            statuses[answer.status_code] += 1
            if answer.status_code not in expected | {503}:
                faults.append(f"{answer.status_code} instead of {expected}: {answer.text[:200]}")
            if answer.status_code == 503 and "Retry-After" not in answer.headers:
                faults.append("503 without Retry-After")

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=at_once)) as http:
        await asyncio.gather(*(client(http, number // at_once + (i < number % at_once)) for i in range(at_once)))
    return statuses, faults, seconds


# --- clients that misbehave ------------------------------------------------------------------------------------------


async def raw(address: str, *pieces: bytes, pause_s: float = 0.0, read: bool = False) -> None:
    """Send pieces over a connection, with pauses, and hang up."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if read:
            await asyncio.wait_for(reader.read(), 60)
    except OSError:
        pass  # the server was first
    finally:
        writer.transport.abort()


def post(body: bytes, *, length: int | None = None, boundary: str = "x") -> bytes:
    length = len(body) if length is None else length
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode() + body


def form(data: bytes) -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"


def slow_and_broken(address: str, clip: bytes) -> list[Awaitable[None]]:
    whole = post(form(clip))
    trickle = [bytes([byte]) for byte in whole[:40]]
    return [
        *(raw(address, *trickle, pause_s=0.5) for _ in range(10)),  # headers, a byte at a time
        *(raw(address, post(form(clip))[:-5], pause_s=25.0, read=True) for _ in range(10)),  # the end never comes
        *(raw(address, pause_s=0.0, read=True) for _ in range(5)),  # nothing at all
        *(raw(address, os.urandom(2000), read=True) for _ in range(10)),
        *(raw(address, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", read=True) for _ in range(5)),
        *(raw(address, post(clip), read=True) for _ in range(5)),  # not a form
        *(raw(address, post(form(clip), boundary=""), read=True) for _ in range(5)),
        *(raw(address, post(b"", length=10**12), read=True) for _ in range(5)),
    ]


def vanishing(address: str, clip: bytes, seed: int) -> list[Awaitable[None]]:
    """Clients that go in the middle of their upload, while they wait for the answer, or in the middle of a stream."""
    rng = random.Random(seed)
    whole = post(form(clip))
    large = post(form(bytes(3_000_000)))  # enough to be spooled on disk
    kinds: list[Callable[[], Awaitable[None]]] = [
        lambda: raw(address, whole[: rng.randrange(len(whole))], pause_s=rng.random()),
        lambda: raw(address, large[: rng.randrange(2_000_000, len(large))], pause_s=rng.random()),
        lambda: raw(address, whole, pause_s=0.3 * rng.random()),
        lambda: leave_stream(address, rng.random()),
    ]
    return [kinds[i % len(kinds)]() for i in range(200)]


async def leave_stream(address: str, seconds: float) -> None:
    try:
        async with connect(f"{address.replace('http', 'ws')}/v1/audio/stream") as socket:
            await socket.send(json.dumps({"sample_rate": SAMPLE_RATE}))
            for _ in range(int(10 * seconds)):
                await socket.send(np.random.default_rng(0).integers(-9000, 9000, 1600, dtype="<i2").tobytes())
            socket.transport.abort()
    except (OSError, ConnectionClosed):
        pass  # there is no place for it


async def meanwhile(address: str, clip: bytes, work: list[Awaitable[None]], *, at_once: int) -> tuple[float, list[str]]:
    """Do work, and all the while ask for a transcript; return the longest wait and what was wrong."""
    places = asyncio.Semaphore(at_once)
    faults: list[str] = []
    longest = 0.0

    async def one(job: Awaitable[None]) -> None:
        async with places:
            await job

    task = asyncio.gather(*map(one, work))
    async with httpx.AsyncClient(timeout=120) as http:
        while not task.done():
            start = time.monotonic()
            answer = await http.post(address + ROUTE, files={"file": ("a.wav", clip)})
            longest = max(longest, time.monotonic() - start)
            if answer.status_code not in (200, 503):
                faults.append(f"{answer.status_code} {answer.text[:200]}")
            await asyncio.sleep(0.2)
    await task
    return longest, faults


def generated(address: str, cases: int) -> tuple[str, bool]:
    """Run schemathesis on the server's own description; return its summary and whether it found nothing.

    Two operations take arguments: each gets half of the cases, the others the few that there are.
    """
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,response_headers_conformance"
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{address}/openapi.json", "--checks", checks, "--phases", "fuzzing",
        "--max-examples", str(cases // 2), "--mode", "all", "--seed", "0", "--no-color", "--request-timeout", "60", "--continue-on-failure",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir())
    return done.stdout, done.returncode == 0


# --- the report ---------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", help="real speech, some seconds")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--queue", default="64")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    speech = load_audio(given.audio)
    clip = wav(speech[: int(CLIP_S * SAMPLE_RATE)])
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, serving(["--threads", "1", "--queue", given.queue, "--max-megabytes", "5"], temporary) as (address, pid):

        def settled() -> dict[str, float]:
            time.sleep(12)  # kept-alive connections close after 5 s, abandoned recognitions after 10
            return resources(pid, temporary)

        asyncio.run(load(address, speech, number=WARM_UP, at_once=given.at_once, seed=given.seed))
        asyncio.run(meanwhile(address, clip, vanishing(address, clip, given.seed + 2), at_once=20))
        rows = {"after a warm-up": settled()}
        start = time.monotonic()
        statuses, found, seconds = asyncio.run(load(address, speech, number=given.requests, at_once=given.at_once, seed=given.seed + 1))
        print(f"{sum(statuses.values())} requests of {CLIP_S:g} s, {given.at_once} at once, in {time.monotonic() - start:.0f} s: {dict(sorted(statuses.items()))};", end=" ")
        print(f"answered in {np.median(seconds):.2f} s (median), {max(seconds):.2f} s (longest)")
        faults += found
        rows[f"{given.requests} requests"] = settled()
        longest, found = asyncio.run(meanwhile(address, clip, slow_and_broken(address, clip), at_once=100))
        print(f"55 slow and broken clients: a good one waited {longest:.2f} s at most")
        faults += found
        rows["slow and broken clients"] = settled()
        longest, found = asyncio.run(meanwhile(address, clip, vanishing(address, clip, given.seed), at_once=20))
        print(f"200 clients that vanish, 20 at once: a good one waited {longest:.2f} s at most")
        faults += found
        rows["200 clients that vanish"] = settled()
        if given.cases:
            summary, is_good = generated(address, given.cases)
            print("schemathesis:", *re.findall(r"\d+ generated.*", summary)[-1:])
            faults += [] if is_good else [summary[-6000:]]
            rows["schemathesis"] = settled()
    first = next(iter(rows.values()))
    print("\n| after | " + " | ".join(first) + " |\n|---|" + "---:|" * len(first))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in row.values()) + " |")
        faults += [f"{name}: {row[key]:.0f} {key}, before {first[key]:.0f}" for key in ("files", "sockets", "temporary files") if row[key] > first[key]]
        faults += [f"{name}: {key} grew from {first[key]:.0f} to {row[key]:.0f}" for key in ("server MB", "workers MB") if row[key] > first[key] + MAX_GROWTH_MB]
    print("\n" + "\n".join(["No fault."] if not faults else [f"{len(faults)} faults:", *faults[:20]]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
