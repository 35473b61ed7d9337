"""Worker processes, asked one thing at a time. One that dies or takes too long is replaced, and whoever asked is told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asr

START_S = 120.0  # a worker has so long to load its model
RETRY_S = 5.0  # between attempts to start one
PATIENCE_S = 10.0  # a worker whose client has gone may finish for so long before it is killed

logger = logging.getLogger(__name__)


class WorkerError(ValueError):
    """A worker that did not start, died, or took too long."""


class Pool:
    """`size` worker processes of one model."""

    def __init__(self, model: str, *, size: int, num_threads: int, precision: str, timeout_s: float) -> None:
        arguments = {"model": model, "threads": num_threads, "precision": precision, "timeout": timeout_s}
        self._command = [sys.executable, "-P", "-m", "asr.server.worker", *(f"--{name}={value}" for name, value in arguments.items())]
        self._size = size
        self._timeout_s = timeout_s
        self._idle: asyncio.Queue[Process] = asyncio.Queue()
        self._processes: set[Process] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting = asyncio.Lock()

    @property
    def num_alive(self) -> int:
        return len(self._processes)

    async def start(self) -> None:
        """Start the workers and wait until they have loaded the model; where that is done, do nothing. Raises WorkerError."""
        async with self._starting:
            if not self._processes:
                await asyncio.gather(*(self._add() for _ in range(self._size)))

    async def close(self) -> None:
        """Kill the workers."""
        for task in self._tasks:
            task.cancel()
        for process in tuple(self._processes):
            await self._remove(process)

    async def ask(self, request: dict[str, Any], payload: AsyncIterator[bytes], size: int) -> tuple[dict[str, Any], bytes]:
        """Return the answer, header and body, of the first worker that is free. Raises WorkerError.

        When the caller is cancelled, its worker may finish for a while, as starting another costs more.
        """
        process = await self._idle.get()
        answer = self._spawn(self._attend(process, request, payload, size))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(PATIENCE_S, answer.cancel)
            raise

    def tell(self, request: dict[str, Any]) -> None:
        """Ask, and wait for no answer."""
        self._spawn(self.ask(request, once(b""), 0))

    async def _attend(self, process: Process, request: dict[str, Any], payload: AsyncIterator[bytes], size: int) -> tuple[dict[str, Any], bytes]:
        done = False
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await _exchange(process, request, payload, size)
            done = True
        except TimeoutError as error:
            raise WorkerError(f"recognition took longer than {self._timeout_s:g} seconds") from error
        except (OSError, EOFError, ValueError) as error:
            raise WorkerError("the audio could not be processed") from error
        finally:
            if done:
                self._idle.put_nowait(process)
            else:
                await self._remove(process)
                self._spawn(self._replace())
        return answer

    async def _add(self) -> None:
        process = await asyncio.create_subprocess_exec(*self._command, env=_environment(), stdin=PIPE, stdout=PIPE)
        self._processes.add(process)
        try:
            async with asyncio.timeout(START_S):
                await _read(process)
        except (TimeoutError, EOFError) as error:
            await self._remove(process)
            raise WorkerError("a worker process did not start; the reason stands above") from error
        self._idle.put_nowait(process)

    async def _remove(self, process: Process) -> None:
        self._processes.discard(process)
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def _replace(self) -> None:
        while True:
            try:
                return await self._add()
            except WorkerError as error:
                logger.error("%s; the next attempt is in %g s", error, RETRY_S)
                await asyncio.sleep(RETRY_S)

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("%s", error)


def _environment() -> dict[str, str]:
    """Return a worker's environment: it finds this package, whatever the working folder holds, and has no use for the key."""
    paths = str(Path(asr.__file__).parents[1]), os.environ.get("PYTHONPATH", "")
    others = {name: value for name, value in os.environ.items() if name != "ASR_API_KEY"}
    return {**others, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _exchange(process: Process, request: dict[str, Any], payload: AsyncIterator[bytes], size: int) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None
    process.stdin.write(json.dumps({**request, "size": size}).encode() + b"\n")
    async for chunk in payload:
        process.stdin.write(chunk)
        await process.stdin.drain()
    await process.stdin.drain()
    return await _read(process)


async def _read(process: Process) -> tuple[dict[str, Any], bytes]:
    """Raises EOFError when the process is gone."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    return header, await process.stdout.readexactly(header["size"])  # IncompleteReadError is an EOFError
