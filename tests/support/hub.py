"""A Hugging Face hub on this machine, which serves the files of a folder and counts its
requests."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Serves ROOT/OWNER/NAME as the repositories of a hub; `requests` are the paths that were
    asked for."""

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.requests = root, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.requests.append(path)
        repository, _, file = path.partition("/resolve/")
        place = self.server.root / repository / file.partition("/")[2]
        if path.startswith("api/models/"):
            repository = path.removeprefix("api/models/").partition("/revision/")[0]
            folder = self.server.root / repository
            files = [
                {"rfilename": str(one.relative_to(folder))}
                for one in folder.rglob("*")
                if one.is_file()
            ]
            facts = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files}
            return self._send(json.dumps(facts).encode(), 200 if files else 404, with_body)
        if not file or not place.is_file():
            return self._send(b"", 404, with_body, **{"X-Error-Code": "EntryNotFound"})
        return self._send(place.read_bytes(), 200, with_body)

    def _send(self, body: bytes, status: int, with_body: bool, **headers: str) -> None:
        self.send_response(status)
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        for name, value in {
            "X-Repo-Commit": COMMIT,
            "ETag": etag,
            "Content-Length": len(body),
            **headers,
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """A context in which a hub serves the repositories below `root`."""
    hub = Hub(root)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
