"""The web page of `superclip words --serve`, which shows the words in an image and their
locations."""

import asyncio

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ..data.images import as_trained, read_image
from ..errors import listed
from ..rendering import bytes_text, data_url, html_template
from .heat_map import as_model_sees
from .lexicon import lexicon
from .tagger import FULL_BAR, Tagger

# of an image: its decoded copies take up to 1 GB
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_REQUESTS = 20  # at a time, whose images wait in memory
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def words_app(tagger: Tagger, model: str) -> Starlette:
    """Returns the application, which writes no files and discards each image after its response."""
    html = html_template(__file__).render(
        model=model, full_score=FULL_BAR, full_bar=f"{FULL_BAR:.0%}"
    )
    one_at_a_time = asyncio.Lock()  # images and the logits of all patches take much memory

    def page(_: Request) -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": POLICY})

    async def words(request: Request) -> Response:
        page_of_server = f"http://{request.headers['host']}"
        if request.headers.get("origin", page_of_server) != page_of_server:
            return JSONResponse({"error": "another page has sent the image"}, 403)
        content = bytearray()
        try:
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BYTES:
                    return JSONResponse(
                        {"error": f"the file has more than {bytes_text(MAX_BYTES)}"}, 413
                    )
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        typed = request.query_params.get("words", "")
        async with one_at_a_time:
            answer = await run_in_threadpool(answer_to, tagger, bytes(content), typed)
        return JSONResponse(answer, 422 if "error" in answer else 200)

    # against DNS rebinding
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    return Starlette(
        routes=[Route("/", page), Route("/words", words, methods=["POST"])], middleware=[hosts]
    )


def answer_to(tagger: Tagger, content: bytes, typed: str) -> dict:
    """Returns an image as the model sees it and its words, or an error, given the content of its
    file.

    `typed` are words separated by commas, "" for the tagger's. Unlike --words, they never name a
    file.
    """
    image, reason = read_image(content, _as_trained)
    if image is None:
        return {"error": reason}
    opened = tagger.opened
    words = [" ".join(word.split()) for word in typed.split(",") if word.strip()]
    if words:
        tagger = Tagger(opened, lexicon(words, opened.tokenizer, len(opened.token_weights)))
        if not tagger.lexicon.words:
            return {"error": f"the model's tokenizer has no tokens for {listed(words)}"}
    shown = (255 * as_model_sees(image, opened.model)).round().astype("uint8")
    return {
        "image": data_url(Image.fromarray(shown)),
        "words": [word._asdict() | {"map": word.map.tolist()} for word in tagger.tag(image)],
    }


def _as_trained(image: Image.Image) -> Image.Image:
    """Converts an image as training does; ValueError, before it is decoded, for one with too
    many pixels."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(
            f"it has {image.width:,} × {image.height:,} pixels: expected at most "
            f"{MAX_PIXELS:,} in all"
        )
    return as_trained(image)
