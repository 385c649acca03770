"""The site builds without a warning, and its own search finds a question first where a guide
answers it."""

import functools
import http.server
import json
import os
import queue
import re
import subprocess
import sys
import threading

import pytest
from support.browser import BROWSER, WITHOUT_NETWORK
from support.pages import ROOT

QUESTIONS = {
    "learning rate": "troubleshooting.html#which-learning-rate",
    "out of memory": "troubleshooting.html#out-of-memory",
    "HEIC": "shards.html#images-that-training-reads-in-other-pixels",
    "two towers": "own-data.html#start-from-two-separate-towers",
}
DRIVER = """<meta charset="utf-8"><script>
(async () => {
  const index = await (await fetch("search/search_index.json")).json()
  const worker = new Worker("%s"), found = {}, questions = %s
  let asked
  worker.onmessage = ({data}) => {
    if (data.type === 3) found[asked] = data.data.items.map(page => page.map(part => part.location))
    asked = questions.shift()
    if (asked) return worker.postMessage({type: 2, data: asked})
    fetch("found", {method: "POST", body: JSON.stringify(found)})
  }
  worker.postMessage({type: 0, data: {...index, options: {suggest: false}}})
})()
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'not included in the "nav"' not in done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_its_navigation_holds_every_page(site):
    assert "class_loss" in (site / "api.html").read_text()


def test_the_search_leaves_out_pages_of_records_which_the_site_holds(site):
    searched = {
        entry["location"]
        for entry in json.loads((site / "search/search_index.json").read_text())["docs"]
    }
    assert (site / "studies/natural/protocol.html").exists()
    records = ("studies/", "audit/", "results/", "word-course/")
    assert not [page for page in searched if page.startswith(records)]
    assert "studies.html" in searched


def test_a_flag_stays_in_one_line_and_a_cell_of_a_wide_table_names_its_column(site):
    assert (
        '<code><span class="flag">--superclip-weight</span> λ</code>'
        in (site / "flags.html").read_text()
    )
    assert "data-label" not in (site / "flags.html").read_text()
    rows = re.findall(r"<tr>.*?</tr>", (site / "evidence.html").read_text(), flags=re.DOTALL)
    labels = ["claim", "paper", "drawings, captions", "here", "n", "verdict"]
    of_claims = [row for row in rows if 'data-label="claim"' in row]
    assert len(of_claims) > 40
    assert all(re.findall(r'data-label="(.*?)"', row) == labels for row in of_claims)


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no chromium here: apt-get install chromium")
def test_the_search_finds_a_question_first_where_a_guide_answers_it(site, tmp_path):
    (worker,) = site.glob("assets/javascripts/workers/search.*.js")
    (site / "driver.html").write_text(DRIVER % (worker.relative_to(site), json.dumps([*QUESTIONS])))
    found = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self):
            found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    handler = functools.partial(Handler, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/driver.html"
    command = [BROWSER, *WITHOUT_NETWORK, f"--user-data-dir={tmp_path}/profile", address]
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=os.environ | {"HOME": str(tmp_path)}
    ) as browser:
        try:
            pages = found.get(timeout=120)
        finally:
            browser.terminate()
            server.shutdown()
    first = {question: pages[question][0] for question in QUESTIONS}
    assert [
        question for question, section in QUESTIONS.items() if section not in first[question]
    ] == [], first
