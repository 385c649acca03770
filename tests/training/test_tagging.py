"""`superclip words`: scores and locations of words, the output folder, the
web page, and errors."""

import contextlib
import html
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import uvicorn
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from support import cases, parametrize, read_json_lines, refusals, table
from support.browser import BROWSER, WITHOUT_NETWORK
from support.data import COLOURS, squares, write_table
from support.models import LIST_OF_WORDS, write_tokenizer
from support.slurm_cluster import wait_until
from support.training_runs import call, execute, fork

from openclip_superclip.data.captions import token_texts
from openclip_superclip.method.head_input import encode_image
from openclip_superclip.words.lexicon import WordProbabilities, lexicon, open_lexicon
from openclip_superclip.words.open_checkpoint import open_with_head
from openclip_superclip.words.server import MAX_BYTES, answer_to, words_app
from openclip_superclip.words.tagger import Tagger


def encoded(image, kind="PNG"):
    image.save(file := io.BytesIO(), kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def opened(squares_run):
    return open_with_head(squares_run)


@pytest.fixture(scope="module")
def tagger(opened):
    return Tagger(opened, lexicon(list(COLOURS), opened.tokenizer, len(opened.token_weights)))


@pytest.fixture
def image(tmp_path):
    squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def folder(tmp_path):
    """A folder with images, one of which is upside down without its EXIF
    data, and a file that is not an image."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    turned = squares({"green": (0, 1)})
    exif = turned.getexif()
    exif[0x0112] = 3  # rotated by 180°
    turned.save(folder / "below" / "a <b> & 'c'.jpg", quality=95, exif=exif)
    squares({"red": (0, 0)}).convert("P").save(folder / "red.png")
    (folder / "notes.txt").write_text("no image")
    return folder


# Scores and locations


def test_the_head_names_the_colours_of_an_image_and_their_quarters(opened):
    for placed in ({"red": (0, 0), "blue": (1, 1)}, {"blue": (1, 0), "green": (0, 1)}):
        seen = Tagger(opened, top=2).tag(squares(placed))
        assert {word.word for word in seen} == placed.keys()
        for word in seen:
            row, column = divmod(word.map.argmax().item(), word.map.shape[1])
            assert (row // 2, column // 2) == placed[word.word]


def test_run_checkpoint_and_export_print_the_heads_scores(
    squares_run, squares_export, opened, image, tmp_path
):
    (tmp_path / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    lone = [tmp_path / "lone.pt", "--architecture", f"local-dir:{squares_run.parents[1]}/model"]
    printed = []
    for model in ([squares_run], [squares_run / "checkpoints/epoch_6.pt"], [squares_export], lone):
        printed.append(execute(f"words {image} --words 'red,blue,a|b' --model", *model))
    assert printed == printed[:1] * 4
    model, pixels = opened.model, opened.preprocess()(Image.open(image))[None]
    _, _, patch_mean = encode_image(model.visual, model.patch_tokens, pixels)
    probabilities = model.class_head.logits(patch_mean)[0].softmax(dim=0)
    red, blue = (probabilities[opened.tokenizer.encode(name)[0]].item() for name in ("red", "blue"))
    name, _, *lines, _ = printed[0].splitlines()
    assert name == str(image)
    shown = [line.split()[:2] for line in lines]
    assert [word for word, _ in (shown[0], shown[-1])] == ["word", "a|b"]  # the least likely
    assert ["red", f"{red:.1%}"] in shown and ["blue", f"{blue:.1%}"] in shown


# Words and tokens


def test_the_lexicon_is_clips_whole_words_and_the_least_probable_token_limits_a_words_score():
    """Its score is Σ p if they are proportional to the weights.

    Tokens in every caption are ignored."""
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    every = open_lexicon(tokenizer, 49408)
    assert {"cat", "hamburger", "butterfly"} <= set(every.words) and len(every.words) > 30_000
    # single tokens
    assert every.tokens.tolist() == [tokenizer.encode(word) for word in every.words]
    p, w = torch.zeros(49408), torch.full((49408,), 2.0)
    (cat,), (red,), (the,) = map(tokenizer.encode, ("cat", "red", "the"))
    p[cat], p[red], p[the] = 0.3, 0.2, 0.0
    w[cat], w[the] = 1.0, 0.0
    words = ["cat", "red", "red cat", "the red cat", "cat cat", "dog", "the"]
    of_words = WordProbabilities(lexicon(words, tokenizer, 49408), w)
    expected = [0.3, 0.2, 0.1 * 3, 0.1 * 3, 0.3, 0.0, 0.0]
    of_both = of_words.of(torch.stack([p, 0 * p]))
    torch.testing.assert_close(of_both, torch.tensor([expected, [0.0] * 7]))


@cases("mark, pieces, texts", table("training: words of tokenizers"))
def test_the_words_of_a_hugging_face_tokenizer_are_its_whole_tokens_after_a_space(
    mark, pieces, texts, tmp_path
):
    pieces, texts = [*LIST_OF_WORDS[:4], *pieces.split()], texts.split()
    write_tokenizer(tmp_path, pieces, mark)
    tokenizer = HFTokenizer(str(tmp_path), context_length=8)
    assert token_texts(tokenizer, len(pieces))[4:] == texts
    found = open_lexicon(tokenizer, len(pieces))
    expected = {text: [id] for id, text in enumerate(texts, 4) if text.isalpha() and len(text) > 2}
    assert dict(zip(found.words, found.tokens.tolist(), strict=True)) == expected
    assert (lexicon(["cat a"], tokenizer, len(pieces)).tokens - 4).tolist() == [
        [texts.index("cat"), texts.index("a")]
    ]


# Output files


def test_a_folder_gives_a_self_contained_page_and_json_lines(
    folder, squares_export, tmp_path, capsys
):
    (folder / "text.jpg").write_text("no image")
    out = tmp_path / "out"
    assert call(f"words {folder} --model {squares_export} --out {out}") == 3
    printed = capsys.readouterr().out
    assert "text.jpg is skipped: no readable image (cannot identify image file" in printed
    assert "2 images, 1 skipped" in printed
    records = read_json_lines(out / "words.jsonl")
    names = ["a <b> & 'c'.jpg", "red.png", "text.jpg"]
    assert [Path(record["image"]).name for record in records] == names
    assert [record["words"][0]["word"] for record in records[:2]] == ["green", "red"]
    assert [len(record["words"]) for record in records[:2]] == [10, 10]
    assert sorted(os.listdir(out)) == ["index.html", "words.jsonl"]
    page = (out / "index.html").read_text()
    assert "a <b> & 'c'.jpg" in html.unescape(page) and "<b>a" not in page
    assert not re.search(r"https?:|<script|<link|@import", page)


def test_a_heat_map_is_bright_at_its_word_and_a_second_call_does_not_tag_it(
    squares_export, tmp_path
):
    for name in ("a/image.png", "b/image-2.png", "b/image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        squares({"red": (0, 0), "blue": (1, 1)}).save(tmp_path / name)
    argv = ["--model", squares_export, "--words", "red, blue", "--heatmap", "--out", tmp_path]
    for _ in range(2):
        assert "3 images, 0 skipped" in execute(f"words {tmp_path}", *argv)
    records = read_json_lines(tmp_path / "words.jsonl")
    names = ["image.words.png", "image-2.words.png", "image-3.words.png"]
    assert [Path(record["heatmap"]).name for record in records] == names
    for record in records:
        drawn = np.asarray(Image.open(record["heatmap"]).convert("RGB")).astype(int)
        # the image and two words, below their titles
        panels = np.array_split(drawn[drawn.shape[0] // 3 :], 3, axis=1)
        for word, panel in zip(record["words"], panels[1:], strict=True):
            top, bottom = np.array_split(panel.sum(axis=2), 2)
            assert (top.mean() > bottom.mean() + 30) == (word["word"] == "red")
    assert (tmp_path / "index.html").read_text().count("data:image/png;base64,") == 3
    invalid = f"--words 'red$^$' --heatmap --out {tmp_path}/math"  # as mathematics
    execute(f"words {tmp_path}/a --model {squares_export} {invalid}")


# Errors


@pytest.fixture(scope="module")
def models(squares_run, squares_export, tmp_path_factory):
    """A folder with an image, a model, and invalid models."""
    folder = tmp_path_factory.mktemp("models")
    squares({"red": (0, 0)}).save(folder / "image.png")
    (folder / "empty").mkdir()
    (folder / "model").symlink_to(squares_export)
    execute(f"export {squares_run}/checkpoints/epoch_6.pt --out {folder}/plain")
    (folder / "lone.pt").symlink_to(squares_run / "checkpoints/epoch_6.pt")
    (folder / "text.pt").write_text("no checkpoint")
    return folder


@cases("argv, reason", refusals("words"))
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(argv, reason, models, refused):
    assert reason in refused(models, f"words {argv}")


@parametrize("kind", ["EPS", "ICO"])
def test_formats_that_run_code_are_not_opened(
    kind, folder, squares_export, tagger, tmp_path, capsys
):
    content = encoded(squares({"red": (0, 0)}, 256), kind)
    (folder / "cat.jpg").write_bytes(content)
    reason = "no readable image (cannot identify image file"
    assert answer_to(tagger, content, "") == {"error": f"{reason})"}
    assert call(f"words {folder} --model {squares_export} --words red --out {tmp_path}/out") == 3
    assert f"cat.jpg is skipped: {reason}" in capsys.readouterr().out
    write_table(folder / "pairs.csv", [(folder / "cat.jpg", "cat"), (folder / "red.png", "red")])
    execute(f"audit {folder}/pairs.csv --model {squares_export} --out {tmp_path}/audit")
    assert reason in (tmp_path / "audit/scores.jsonl").read_text()


# The web page

DRIVER = """<script>
const found = {}
async function drive(name, words) {
  await ask(await (await fetch("/file/" + name)).blob(), words)
  const lines = [...table.rows].map(line => line.innerText.replace(/\\s+/g, " "))
  if (table.rows.length) table.rows[0].dispatchEvent(new Event("mouseenter"))
  const canvas = drop.querySelector("canvas")
  const heat = canvas ? [canvas.dataset.word, canvas.width] : null
  const images = drop.querySelectorAll("img").length
  found[name + words] = {lines, heat, images, error: error.hidden ? "" : error.textContent}
}
onload = async () => {
  await drive("good", "")
  await drive("good", "green, red")
  for (const name of ["broken", "cut", "bomb", "thin"]) await drive(name, "")
  const result = document.createElement("pre")
  result.id = "found"
  result.textContent = JSON.stringify(found)
  document.body.append(result)
}
</script>"""


def serve(app):
    """Serves an application until the tests end, and returns its
    address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.fixture(scope="module")
def address(tagger):
    """Where a server of words answers."""
    return serve(words_app(tagger, "a model"))


def fetched(address, headers=None, content=None):
    """Returns the status and the body of an answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, content, headers or {})
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_the_page_shows_words_and_locations_and_clears_them_on_an_error(tagger, tmp_path):
    good = encoded(squares({"red": (0, 0), "blue": (1, 1)}))
    files = {
        "good": good,
        "broken": b"no image",
        "cut": good[: len(good) // 2],
        "bomb": encoded(Image.new("1", (30_000, 30_000))),
        "thin": encoded(Image.new("1", (1, 200_000))),
    }
    app = words_app(tagger, "a model")

    def driver(request):
        answer = next(route.endpoint for route in app.routes if route.path == "/")(request)
        policy = {"Content-Security-Policy": answer.headers["Content-Security-Policy"]}
        return HTMLResponse(
            answer.body.decode().replace("</body>", f"{DRIVER}</body>"), headers=policy
        )

    app.routes.append(Route("/driver", driver))
    app.routes.append(
        Route("/file/{name}", lambda request: Response(files[request.path_params["name"]]))
    )
    # the page, once its scripts and requests are done
    dump = ["--virtual-time-budget=30000", "--dump-dom"]
    profile = f"--user-data-dir={tmp_path}/profile"
    command = [BROWSER, *WITHOUT_NETWORK, profile, *dump, f"{serve(app)}/driver"]
    environment = os.environ | {"HOME": str(tmp_path)}
    dom = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=120, env=environment
    ).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert {line.split()[0] for line in found["good"]["lines"][:2]} == {"red", "blue"}
    assert len(found["good"]["lines"]) == 4
    assert found["good"]["heat"][0] == found["good"]["lines"][0].split()[0]
    assert found["good"]["images"] == 1
    assert [line.split()[0] for line in found["goodgreen, red"]["lines"]] == ["red", "green"]
    refusals = {
        "broken": "cannot identify image file",
        "cut": "no readable image",
        "bomb": "decompression bomb",
        "thin": "expected a longer side of at most 100 times the shorter",
    }
    for name, reason in refusals.items():
        assert reason in found[name]["error"]
        assert (found[name]["lines"], found[name]["images"]) == ([], 0)
    assert not re.search(r"/(tmp|root|home|work|usr)/", dom)


def test_only_requests_to_this_machine_by_name_are_answered(address):
    assert fetched(f"{address}/")[0] == 200
    assert fetched(f"{address}/", {"Host": "localhost:1"})[0] == 200
    assert fetched(f"{address}/", {"Host": "elsewhere.example"})[0] == 400
    status, content = fetched(f"{address}/words", content=b"no image")
    error = {"error": "no readable image (cannot identify image file)"}
    assert (status, json.loads(content)) == (422, error)


def test_only_the_servers_own_page_may_send_images(address, image):
    port = address.rpartition(":")[2]
    origins = {
        address: 200,
        "https://elsewhere.example": 403,
        "null": 403,
        f"https://127.0.0.1:{port}": 403,
        f"http://localhost:{port}": 403,
    }
    answers = {
        origin: fetched(f"{address}/words", {"Origin": origin}, image.read_bytes())[0]
        for origin in origins
    }
    assert answers == origins
    headers = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert fetched(f"{address}/words", headers, image.read_bytes())[0] == 200


def connected(address, length):
    """A connection that has announced an upload of so many bytes."""
    host, _, port = address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(
        f"POST /words HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


def test_an_upload_is_limited_while_it_is_read(address):
    with connected(address, 10**12) as connection:
        connection.settimeout(30)
        with contextlib.suppress(ConnectionError):  # the server answers before the end
            for _ in range(30):
                connection.sendall(bytes(10**6))
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_images_with_too_many_pixels_are_refused_before_they_are_decoded(address):
    content = encoded(Image.new("L", (13_000, 13_000)))
    assert len(content) < MAX_BYTES

    def send(_):
        status, answer = fetched(f"{address}/words", content=content)
        return status, json.loads(answer)["error"]

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(send, range(6)))
    reason = "it has 13,000 × 13,000 pixels: expected at most 50,000,000 in all"
    assert answers == [(422, f"no readable image ({reason})")] * 6
    # kB; one decoded image has 169 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_serve_serves_the_page_and_words_until_ctrl_c(squares_run, image, tmp_path):
    (output := tmp_path / "output").touch()
    command = f"words --serve --model {squares_run} --port 0"
    process = fork(lambda: call(command), output, tmp_path, {})
    try:
        wait_until(lambda: "running on" in output.read_text(), 60, "the server")
        address = re.search(r"http://127\.0\.0\.1:\d+", output.read_text())[0]
        assert "The words of an image" in fetched(f"{address}/")[1]
        _, content = fetched(f"{address}/words?words=red,green", content=image.read_bytes())
        assert [seen["word"] for seen in json.loads(content)["words"]] == ["red", "green"]
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == 0
    assert "Traceback" not in output.read_text()
