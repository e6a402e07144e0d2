"""A small server that speaks as the Hugging Face Hub does, as far as models are pushed and pulled."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What the server holds.

    Attributes:
        repositories: files by name, of each ``user/name``.
        private: the repositories that only the token may read.
        requests: method and path of each request, in their order.
        token: that may write.
    """

    def __init__(self, token):
        self.repositories, self.private, self.requests, self.token = {}, set(), [], token


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, content=b"", **headers):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def allowed(self):
            return self.headers.get("Authorization") == f"Bearer {hub.token}"

        def missing(self):
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

        def do_POST(self):
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(("POST", self.path))
            if not self.allowed():
                self.answer(401, {"error": "Invalid user token."})
            elif self.path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                asked = json.loads(content)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                hub.repositories.setdefault(name, {})
                if asked.get("private") or asked.get("visibility") == "private":
                    hub.private.add(name)
                self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
            elif self.path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(content)["files"]]
                files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.answer(200, {"files": files})
            elif "/commit/main" in self.path:
                name = "/".join(self.path.split("/")[3:5])
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "file":
                        hub.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"http://{self.headers['Host']}/{name}/commit/{SHA}"
                self.answer(200, {"commitUrl": address, "commitOid": SHA, "hookOutput": ""})
            else:
                self.answer(404, {"error": self.path})

        def do_GET(self):
            hub.requests.append((self.command, self.path))
            parts = self.path.partition("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
            if name not in hub.repositories or (name in hub.private and not self.allowed()):
                self.missing()
                return
            files = hub.repositories[name]
            if parts[0] == "api":
                named = [{"rfilename": file} for file in files]
                described = {"id": name, "modelId": name, "sha": SHA, "siblings": named}
                tree = [{"type": "file", "path": file, "size": len(files[file]), "oid": SHA} for file in files]
                self.answer(200, tree if "tree" in parts else described)
                return
            file = "/".join(parts[4:])
            if file not in files:
                self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                return
            tag = hashlib.sha1(files[file]).hexdigest()
            self.answer(200, files[file], ETag=f'"{tag}"', X_Repo_Commit=SHA, Content_Length=len(files[file]))

        do_HEAD = do_GET  # noqa: N815

    return Handler


@contextmanager
def hub_server(token="secret"):
    """Serve an empty hub; yields it and its address."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
