"""The web page of `superclip words --serve`, which shows the words in an image and their locations."""

import asyncio
import contextlib
import ipaddress
import re
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..data.images import as_seen, open_image, unreadable
from ..errors import InputError, listed, reason
from ..pages import data_url, html_template
from .heat_map import as_model_sees
from .lexicon import lexicon
from .tagger import FULL_BAR, SHORTEST, Tagger

LOOPBACK = "127.0.0.1"
MAX_BYTES = 20 * 2**20  # of an upload
MAX_PIXELS = 50_000_000  # checked before decoding: a small file can decode to a huge image
MAX_UPLOADS, UPLOAD_SECONDS = 4, 60  # concurrent uploads, which are held in memory, and timeout of each
MAX_WORDS, MAX_LETTERS = 20, 100  # words that a user may type, and letters of each
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class _OwnPage(BaseHTTPMiddleware):
    """Refuses requests with an unexpected Host header (DNS rebinding) and requests from other sites (CSRF).

    Starlette's TrustedHostMiddleware supports IPv6 addresses only in recent versions.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] | None):
        super().__init__(app)
        self.names = names

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        host, origin = request.headers.get("host", "").lower(), request.headers.get("origin")
        name = re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", host)
        if self.names is not None and (name is None or name[1] not in self.names):
            return PlainTextResponse("Invalid host header", 400)
        is_own = origin is None or urlsplit(origin).netloc.lower() == host  # browsers always send Origin with a POST
        if not is_own or request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("Requests from other sites are refused", 403)
        return await call_next(request)


class _Refused(Exception):
    """A request that cannot be answered, with a message for the page and an HTTP status."""

    def __init__(self, reason: str, status: int = 422):
        super().__init__(reason)
        self.status = status


def words_app(tagger: Tagger, model: str, names: Collection[str] | None) -> Starlette:
    """Returns the application, which writes no files and discards each image after its response.

    Args:
        model: the name of the model, shown on the page.
        names: accepted host names, from `loopback_names`; None accepts any.
    """
    html = html_template(Path(__file__).with_name("words_page.html")).render(
        model=model, max_megabytes=MAX_BYTES >> 20, full_score=FULL_BAR, full_bar=f"{FULL_BAR:.0%}"
    )  # fmt: skip
    one_at_a_time, uploads = threading.Lock(), asyncio.Semaphore(MAX_UPLOADS)

    def page(_: Request) -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    async def words(request: Request) -> JSONResponse:
        try:
            if uploads.locked():
                raise _Refused(f"{MAX_UPLOADS} images are being read: try again in a moment", 503)
            async with uploads:
                typed = _typed(request.query_params.get("words", ""))
                data = await asyncio.wait_for(_body(request), UPLOAD_SECONDS)
                return JSONResponse(await run_in_threadpool(_answer, tagger, one_at_a_time, data, typed))
        except _Refused as refused:
            return JSONResponse({"error": str(refused)}, refused.status)
        except asyncio.TimeoutError:
            return JSONResponse({"error": f"the upload took more than {UPLOAD_SECONDS} seconds"}, 408)
        except ClientDisconnect:
            return JSONResponse({"error": "the upload was interrupted"}, 400)

    def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the image could not be read"}, 500)  # the traceback is in the terminal

    checks = [Middleware(_OwnPage, names=names)]
    routes = [Route("/", page), Route("/words", words, methods=["POST"])]
    return Starlette(routes=routes, middleware=checks, exception_handlers={Exception: failed})


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises InputError if the address is not local or the port is in use."""
    if not 0 <= port < 2**16:  # getaddrinfo wraps larger numbers around
        raise InputError(f"--port is {port}; expected 0 to 65,535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        return listening
    except OSError as error:
        raise InputError(f"--host {host} --port {port} cannot be used ({reason(error)}): give another") from error


def loopback_names(host: str, listening: socket.socket) -> set[str] | None:
    """Returns the host names of a loopback address, or None if other machines can reach the page.

    Args:
        host: the value of --host.
    """
    address = listening.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return {LOOPBACK, "localhost", "[::1]", shown_host(address), shown_host(host)}


def shown_host(host: str) -> str:
    """Returns a host as written in a URL, with brackets around IPv6 addresses."""
    return f"[{host}]".lower() if ":" in host else host.lower()


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answers requests until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(app, log_level="error", access_log=False, server_header=False, lifespan="off")
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after stopping
        uvicorn.Server(config).run(sockets=[listening])


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise _Refused(f"the file is larger than {MAX_BYTES >> 20} MB: give a smaller one", 413)
    return bytes(data)


def _typed(text: str) -> list[str]:
    """Returns the typed words. Unlike --words, they never name a file."""
    words = list(dict.fromkeys(" ".join(word.split()) for word in text.split(",") if word.strip()))
    if len(words) > MAX_WORDS or any(len(word) > MAX_LETTERS for word in words):
        raise _Refused(f"expected at most {MAX_WORDS} words of at most {MAX_LETTERS} letters")
    return words


def _answer(tagger: Tagger, one_at_a_time: threading.Lock, data: bytes, typed: list[str]) -> dict:
    with one_at_a_time:  # images and the logits of all patches take much memory
        image, opened = _image(data), tagger.opened
        if typed:
            tagger = Tagger(opened, lexicon(typed, opened.tokenizer, len(opened.token_weights)))
            if not tagger.lexicon.words:
                raise _Refused(f"the model's tokenizer has no tokens for {listed(typed)}")
        words = tagger.tag(image)
        shown = (255 * as_model_sees(image, opened.preprocess_cfg)).round().astype("uint8")
    return {
        "image": data_url(Image.fromarray(shown)),
        "words": [seen._asdict() | {"map": seen.map.tolist()} for seen in words],
    }


def _image(data: bytes) -> Image.Image:
    """Returns the image in a file's content, refusing images that are too large or too elongated before decoding."""
    try:
        with open_image(data) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"it has {width:,} × {height:,} pixels: expected at most {MAX_PIXELS:,}")
            return as_seen(image, SHORTEST)
    except Exception as error:  # a damaged file raises anything
        raise _Refused(unreadable(error)) from None
