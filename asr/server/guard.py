"""What stands before the application: who may ask, how much, how slowly. Knows HTTP, nothing of audio.

A page of another site must not reach a server on this machine, be it by a request of its own (Origin) or by a name of its own that
leads here (DNS rebinding: Host). A client must show the key, if there is one, send no more than the limit and not dawdle.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

STALL_S = 20.0  # without a byte from the client
BYTES_PER_S = 5_000  # the slowest upload, after the first STALL_S
DRAIN_S, DRAIN_BYTES = 2.0, 16_000_000  # read after a refusal, so that the client comes to read it
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ApiError(HTTPException):
    """A refusal or failure with the code that a client can tell it by."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict[str, Any]:
        return error_body(self.status_code, str(self.detail), code=self.code, param=self.param)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status_code, dict(self.headers or {}))


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's clients expect it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Places:
    """So many at once; whoever comes when all are taken is sent away, with the time after which to come again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.num_taken = 0
        self._mean_s = 1.0  # that a place is held, of late

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Raises ApiError."""
        if self.num_taken >= self._size:
            raise ApiError(503, "queue_full", "the server is busy; try again later", headers={"Retry-After": str(math.ceil(self._mean_s))})
        self.num_taken += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.num_taken -= 1
            self._mean_s += 0.1 * (time.monotonic() - start - self._mean_s)


class Guard:
    """ASGI middleware.

    hosts: names, beside localhost and numeric addresses, by which the server may be called. queue: the places of requests that post
    something, taken before they are read.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], api_key: str | None, max_bytes: int, queue: Places) -> None:
        self._app = app
        self._hosts = {"localhost", *hosts}
        self._api_key = api_key
        self._max_bytes = max_bytes
        self._queue = queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            try:
                self._check(scope, Headers(scope=scope))
            except ApiError as error:
                return await send({"type": "websocket.close", "code": 1008, "reason": str(error.detail)})
            return await self._app(scope, receive, send)
        exchange = Exchange(receive, send, max_bytes=self._max_bytes)
        try:
            self._check(scope, Headers(scope=scope))
            async with self._queue.take() if scope["method"] == "POST" else nullcontext():
                await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            await error.response()(scope, exchange.receive, exchange.send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError for a request that must not be answered."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            raise ApiError(403, "host_not_allowed", "this server is not known by that name; see the option --allow-host")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, "origin_not_allowed", "requests from pages of other sites are not answered")
        if scope["type"] == "http" and scope["path"].startswith("/v1/") and not has_key(headers, self._api_key):
            raise ApiError(401, "invalid_api_key", "expected the API key in the header Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        if int(headers.get("content-length", "0")) > self._max_bytes:
            raise too_large(self._max_bytes)

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def has_key(headers: Headers, expected: str | None) -> bool:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return is_key(key.strip() if scheme.lower() == "bearer" else "", expected)


def is_key(given: str, expected: str | None) -> bool:
    """Compare in a time that does not tell how much of the key is right."""
    return expected is None or hmac.compare_digest(given.encode(), expected.encode())


def too_large(max_bytes: int) -> ApiError:
    return ApiError(413, "file_too_large", f"the request is larger than the {max_bytes / 1e6:g} MB that this server takes")


class Exchange:
    """The two directions of one request: counts and times what comes in, adds headers to what goes out."""

    def __init__(self, receive: Receive, send: Send, *, max_bytes: int) -> None:
        self._receive, self._send = receive, send
        self._max_bytes = max_bytes
        self._start = asyncio.get_running_loop().time()
        self._num_bytes = 0
        self._has_ended = False

    async def receive(self) -> Message:
        """Raise ApiError when the body grows too large or comes too slowly."""
        if self._has_ended:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(now, self._start + self._num_bytes / BYTES_PER_S) + STALL_S):
                message = await self._next()
        except TimeoutError as error:
            raise ApiError(408, "upload_too_slow", "the request did not arrive in time") from error
        if self._num_bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self._has_ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self._has_ended:
                await self._drain()
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)

    async def _drain(self) -> None:
        most = self._num_bytes + DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._has_ended and self._num_bytes < most:
                    await self._next()
        except TimeoutError:
            pass  # the client reads the refusal or does not


class PromptH11Protocol(H11Protocol):
    """uvicorn's protocol for clients whose first request has its headers together in time; uvicorn itself would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(STALL_S, self._close_silent)

    def _close_silent(self) -> None:
        if self.cycle is None and self.transport.get_protocol() is self:
            self.transport.close()
