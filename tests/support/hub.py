"""A Hugging Face hub on this machine, which serves the files of a folder
and counts its requests."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Serves ROOT/OWNER/NAME as the repositories of a hub; `requests` are
    the paths that were asked for."""

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.requests = root, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def content(self, path):
        """What the hub answers to a path, None if there is no such file or
        repository."""
        if path.startswith("api/models/"):
            repository = path.removeprefix("api/models/").partition("/revision/")[0]
            folder = self.root / repository
            files = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
            about = {"id": repository, "modelId": repository, "sha": COMMIT}
            about["siblings"] = [{"rfilename": file} for file in files]
            return json.dumps(about).encode() if files else None
        repository, _, file = path.partition("/resolve/")
        place = self.root / repository / file.partition("/")[2]
        return place.read_bytes() if file and place.is_file() else None


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        path = self.path.partition("?")[0].strip("/")
        self.server.requests.append(path)
        content = self.server.content(path)
        if content is None:
            self.send_response(404)
            if "/resolve/" in path:
                self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        else:
            self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        self.wfile.write(self.do_HEAD())


@contextlib.contextmanager
def serving(root):
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
