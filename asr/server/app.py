"""The routes: OpenAI's transcription and models, a WebSocket for live audio, health, and the page. Recognition is the pools' business."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import uuid
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, File, Form, Request, UploadFile, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketDisconnect

from asr import __version__
from asr.server.guard import ApiError, Guard, Places, PromptH11Protocol, error_body, has_key, is_key
from asr.server.pool import Pool, WorkerError, once

CHUNK_BYTES = 1 << 20
ALIASES = ("whisper-1",)  # what OpenAI's clients ask for
LIVE_TIMEOUT_S = 30.0  # for one piece of live audio, and between two
MIN_LIVE_RATE, MAX_LIVE_RATE = 8_000, 192_000
MAX_MESSAGE_BYTES = 1 << 20
MAX_CONNECTIONS = 500
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MEDIA_TYPES = {"text": "text/plain", "srt": "application/x-subrip", "vtt": "text/vtt"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerConfig:
    """What `asr serve` is told. queue_size: requests in hand at once, upload included; num_streams: live ones, beside them."""

    model: str = "english"
    model_name: str = "english"
    language: str = "en"
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    num_workers: int = 1
    num_threads: int = 0
    precision: str = "auto"
    queue_size: int = 64
    num_streams: int = 4
    max_bytes: int = 200_000_000
    max_s: float = 7200.0
    timeout_s: float = 300.0


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What every answer but a good one looks like."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (400, 401, 403, 404, 405, 408, 413, 422, 503)}


def create_app(config: ServerConfig, pool: Pool, live_pool: Pool) -> FastAPI:
    """Return the application; the pools are closed when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await pool.close()
        await live_pool.close()

    queue, streams = Places(config.queue_size), Places(config.num_streams)
    app = FastAPI(title="asr", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS)
    app.add_middleware(Guard, hosts=config.hosts, api_key=config.api_key, max_bytes=config.max_bytes, queue=queue)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(Exception, _answer_failure)
    page, page_headers = _page()
    models = {name: {"id": name, "object": "model", "created": 0, "owned_by": "asr"} for name in (config.model_name, *ALIASES)}

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers=page_headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        if not pool.num_alive:
            raise ApiError(503, "no_worker", "no worker process is running", headers={"Retry-After": "5"})
        return {"status": "ok", "model": config.model_name, "workers": pool.num_alive, "requests": queue.num_taken, "streams": streams.num_taken}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": list(models.values())}

    @app.get("/v1/models/{model}")
    async def retrieve_model(model: str) -> dict[str, Any]:
        return models[_known(model, models)]

    @app.post("/v1/audio/transcriptions", response_class=Response)
    async def transcribe(
        request: Request,
        file: Annotated[UploadFile, File(description="The recording: wav, flac, ogg, opus, mp3, ...")],
        model: Annotated[str | None, Form(description="A name that /v1/models lists.")] = None,
        response_format: Annotated[Literal["json", "text", "srt", "verbose_json", "vtt"], Form()] = "json",
        language: Annotated[str | None, Form(description="ISO 639-1; only the model's own is accepted.")] = None,
        prompt: Annotated[str | None, Form(description="Accepted and not used.")] = None,
        temperature: Annotated[float, Form(ge=0, le=1, description="Accepted and not used: the words do not depend on chance.")] = 0.0,
        timestamp_granularities: Annotated[list[Literal["word", "segment"]] | None, Form(alias="timestamp_granularities[]")] = None,
        include: Annotated[list[Literal["srt", "vtt"]] | None, Form(alias="include[]", description="Subtitles in the same answer.")] = None,
        stream: Annotated[bool, Form(description="Only false; live audio goes to the WebSocket /v1/audio/stream.")] = False,
    ) -> Response:
        """Transcribe a recording, as OpenAI's clients ask for it."""
        if model is not None:
            _known(model, models)
        if language and language.lower() != config.language:
            raise ApiError(400, "unsupported_language", f"this model knows the language {config.language} only", param="language")
        if timestamp_granularities and response_format != "verbose_json":
            raise ApiError(400, "invalid_value", "expected response_format verbose_json with timestamp granularities", param="timestamp_granularities[]")
        if stream:
            raise ApiError(400, "unsupported_value", "answers do not come as a stream; live audio goes to the WebSocket /v1/audio/stream", param="stream")
        granularities = timestamp_granularities or ["segment"]
        job = {
            "job": "file",
            "response_format": response_format,
            "words": "word" in granularities,
            "segments": "segment" in granularities,
            "include": include if include and response_format in ("json", "verbose_json") else [],
            "language": config.language,
            "max_s": config.max_s,
        }
        header, body = await _while_connected(request, pool.ask(job, _chunks(file), file.size or 0))
        _raise_error(header)
        return Response(body, media_type=MEDIA_TYPES.get(response_format, "application/json"))

    @app.websocket("/v1/audio/stream")
    async def listen(socket: WebSocket) -> None:
        """Recognise live audio; see _listen."""
        await socket.accept()
        try:
            async with streams.take():
                await _listen(socket, config, live_pool)
        except (ApiError, WorkerError) as error:
            failure = error if isinstance(error, ApiError) else _worker_failed(error)
            await _send(socket, {"type": "error", **failure.body()})
            await socket.close(1013 if failure.status_code == 503 else 1008 if failure.status_code < 500 else 1011)
        except WebSocketDisconnect:
            pass

    return app


def _known(model: str, models: Collection[str]) -> str:
    if model not in models:
        raise ApiError(404, "model_not_found", f"there is no model of that name; expected {next(iter(models))}", param="model")
    return model


def _raise_error(header: dict[str, Any]) -> None:
    if header["status"] != 200:
        raise ApiError(header["status"], **header["error"])


async def _chunks(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(CHUNK_BYTES):
        yield chunk


def _worker_failed(error: WorkerError) -> ApiError:
    """Not a server error: clients repeat those of their own accord, and would send what broke the worker again."""
    return ApiError(422, "unprocessable_audio", str(error))


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of `work`, unless the client goes away before it is there."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "disconnected", "the client has gone")
        return task.result()
    except WorkerError as error:
        raise _worker_failed(error) from error
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- live audio --------------------------------------------------------------------------------------------------------


async def _listen(socket: WebSocket, config: ServerConfig, pool: Pool) -> None:
    """Recognise what a client says.

    It sends {"sample_rate": HZ} first, with "api_key" where there is one and no header can be sent, waits for {"type": "ready"}, sends 16-bit
    little-endian mono samples as binary messages, and {"type": "end"} last. It gets {"type": "partial" | "final", "id", "start", "end", "text",
    "confidence", "words"} for each utterance, times in seconds from the stream's start, and {"type": "done"}.
    """
    sample_rate = await _begin(socket, config)
    await pool.start()
    await _send(socket, {"type": "ready", "model": config.model_name})
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=64)
    reader = asyncio.create_task(_read(socket, messages))
    session = uuid.uuid4().hex
    first, last = True, False
    try:
        while not last:
            data, last = await _heard(messages)
            job = {"job": "live", "session": session, "sample_rate": sample_rate, "first": first, "last": last}
            header, results = await pool.ask(job, once(data), len(data))
            _raise_error(header)
            first = False
            for result in results.decode().splitlines():
                await socket.send_text(result)
        await _send(socket, {"type": "done"})
        await socket.close()
    finally:
        reader.cancel()
        if not first:
            pool.tell({"job": "forget", "session": session})


async def _begin(socket: WebSocket, config: ServerConfig) -> int:
    """Return the sample rate that the first message names, after a look at its key."""
    message = await _receive(socket)
    try:
        wanted = json.loads(message.get("text") or "")
    except ValueError:
        wanted = None
    if not isinstance(wanted, dict):
        raise ApiError(400, "invalid_message", 'expected a first message like {"sample_rate": 16000}')
    if not (has_key(socket.headers, config.api_key) or is_key(str(wanted.get("api_key", "")), config.api_key)):
        raise ApiError(401, "invalid_api_key", "expected the API key as api_key in the first message, or in the header Authorization: Bearer KEY")
    rate = wanted.get("sample_rate")
    if type(rate) is not int or not MIN_LIVE_RATE <= rate <= MAX_LIVE_RATE:
        raise ApiError(400, "invalid_value", f"expected a sample_rate from {MIN_LIVE_RATE} to {MAX_LIVE_RATE}", param="sample_rate")
    return rate


async def _receive(socket: WebSocket) -> dict[str, Any]:
    try:
        async with asyncio.timeout(LIVE_TIMEOUT_S):
            return dict(await socket.receive())
    except TimeoutError as error:
        raise ApiError(408, "stream_silent", f"nothing came for {LIVE_TIMEOUT_S:g} seconds") from error


async def _read(socket: WebSocket, messages: asyncio.Queue[dict[str, Any]]) -> None:
    """Put what comes into the queue, as long as the client keeps sending."""
    try:
        while (message := await _receive(socket))["type"] == "websocket.receive":
            await messages.put(message)
        await messages.put(message)
    except ApiError as error:
        await messages.put({"type": "error", "error": error})


async def _heard(messages: asyncio.Queue[dict[str, Any]]) -> tuple[bytes, bool]:
    """Return all samples that have come, at least one message, and whether they were the last. Raises ApiError, WebSocketDisconnect."""
    data, last = bytearray(), False
    while not last and (not data or not messages.empty()) and len(data) < MAX_MESSAGE_BYTES:
        message = await messages.get()
        if message["type"] == "error":
            raise message["error"]
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        last = _is_end(message["text"]) if message.get("text") is not None else False
        data += message.get("bytes") or b""
        if len(data) % 2:
            raise ApiError(400, "invalid_message", "expected whole 16-bit samples in each message, found an odd number of bytes")
    return bytes(data), last


def _is_end(text: str) -> bool:
    if "".join(text.split()) != '{"type":"end"}':
        raise ApiError(400, "invalid_message", 'expected samples or {"type": "end"}')
    return True


async def _send(socket: WebSocket, message: dict[str, Any]) -> None:
    await socket.send_text(json.dumps(message))


# --- errors, the page, the process ----------------------------------------------------------------------------------------


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body = error.body() if isinstance(error, ApiError) else error_body(error.status_code, str(error.detail))
    return JSONResponse(body, error.status_code, dict(error.headers or {}))


async def _answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse(error_body(400, str(first["msg"]), code=str(first["type"]), param=str(first["loc"][-1])), 400)


async def _answer_failure(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(500, "the server failed; its log says how", code="internal_error"), 500)


def _page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: it may run its own script and style, and nothing else."""
    page = files("asr.server").joinpath("page.html").read_text(encoding="utf-8")
    script, style = (
        base64.b64encode(hashlib.sha256(re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1].encode()).digest()).decode()  # type: ignore[index]
        for tag in ("script", "style")
    )
    policy = (
        f"default-src 'none'; script-src 'sha256-{script}' blob:; style-src 'sha256-{style}'; connect-src 'self'; media-src blob:; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )  # blob: is the recorder, an audio worklet, which only a URL can hold
    return page, {"Content-Security-Policy": policy, "Permissions-Policy": "microphone=(self), camera=(), geolocation=()"}


async def serve(config: ServerConfig, *, host: str, port: int) -> None:
    """Serve until a signal comes. Raises OSError where the address is not free, and WorkerError where the model cannot be loaded."""
    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        make_pool = partial(Pool, config.model, num_threads=config.num_threads, precision=config.precision)
        pool = make_pool(size=config.num_workers, timeout_s=config.timeout_s)
        live_pool = make_pool(size=1, timeout_s=LIVE_TIMEOUT_S)
        await pool.start()
        app = create_app(config, pool, live_pool)
        settings = uvicorn.Config(
            app, http=PromptH11Protocol, ws="websockets-sansio", ws_max_size=MAX_MESSAGE_BYTES, log_config=None, access_log=False,
            proxy_headers=False, server_header=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=5,
        )  # fmt: skip
        name = f"[{host}]" if ":" in host else host
        logger.info("serving %s on http://%s:%d", config.model_name, name, listener.getsockname()[1])
        if config.api_key is None and host not in LOOPBACK:
            logger.warning("without an API key, anyone who reaches this address can use the server")
        await uvicorn.Server(settings).serve(sockets=[listener])
