"""A Hub on the loopback interface: enough of the HTTP API for the real client to create, upload, commit, list and download.

Files of 1 kB and more go through LFS, so that uploads take both ways. `failures` makes the next matching request fail.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_loopback"
_LFS_SIZE = 1000


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # commit -> path -> sha256

    def commit(self, branch: str, files: dict[str, str]) -> str:
        text = json.dumps([branch, sorted(files.items()), self.branches.get(branch), len(self.commits)])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class LoopbackHub(ThreadingHTTPServer):
    """The state behind the API, and what tests look at."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []  # sha256 of every large file that was sent
        self.failures: list[tuple[str, int]] = []  # (pattern of "METHOD path", status; 0 breaks the connection)

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def store(self, content: bytes) -> str:
        sha = hashlib.sha256(content).hexdigest()
        self.objects[sha] = content
        return sha


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command.replace('HEAD', 'GET')} {url.path}"
        for failure in self.server.failures:
            if re.search(failure[0], request):
                self.server.failures.remove(failure)
                if failure[1] == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                self._send({"error": "told to fail"}, failure[1])
                return
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, request):
                getattr(self, method)(*(unquote(part) for part in found.groups()))
                return
        self._send({"error": f"no route for {request}"}, 404)

    def _send(self, content: dict | list | bytes, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _is_refused(self) -> bool:
        """Answers requests that may not write."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self._send({"error": "Invalid username or password."}, 401)
        return True

    def _repository(self, repo_id: str) -> Repository | None:
        repository = self.server.repositories.get(repo_id)
        may_read = repository and (not repository.private or self.headers.get("Authorization") == f"Bearer {TOKEN}")
        if not may_read:
            self._send({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            return None
        return repository

    # Writing

    def create(self) -> None:
        if self._is_refused():
            return
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repositories:
            self._send({"error": "You already created this model repo", "url": url}, 409)
            return
        repository = Repository(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        repository.commit("main", {".gitattributes": self.server.store(b"*.safetensors filter=lfs")})
        self.server.repositories[repo_id] = repository
        self._send({"url": url, "id": repo_id, "name": repo_id})

    def validate(self) -> None:
        self._send({"errors": [], "warnings": []})

    def branch(self, repo_id: str, name: str) -> None:
        repository = None if self._is_refused() else self._repository(repo_id)
        if repository is None:
            return
        if name in repository.branches:
            self._send({"error": "Reference already exists"}, 409)
            return
        repository.branches[name] = repository.branches["main"]
        self._send({})

    def preupload(self, repo_id: str, revision: str) -> None:
        repository = None if self._is_refused() else self._repository(repo_id)
        if repository is None:
            return
        rows = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= _LFS_SIZE else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._send({"files": rows, "commitOid": repository.resolve(revision)})

    def lfs_batch(self, repo_id: str) -> None:
        if self._is_refused():
            return
        rows = []
        for wanted in json.loads(self.body)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.server.objects:  # what is there need not come again
                row["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
            rows.append(row)
        self._send({"transfer": "basic", "objects": rows})

    def lfs_object(self, sha: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha:
            self._send({"error": "hash mismatch"}, 422)
            return
        self.server.store(self.body)
        self.server.uploads.append(sha)
        self._send(b"")

    def commit(self, repo_id: str, revision: str) -> None:
        repository = None if self._is_refused() else self._repository(repo_id)
        if repository is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        head = repository.resolve(revision)
        if parent and parent != head:
            self._send({"error": "The expected parent commit does not match"}, 412)
            return
        files = dict(repository.commits[head])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = self.server.store(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    self._send({"error": f"{value['path']} was never uploaded"}, 422)
                    return
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        is_pr = self.query.get("create_pr") == ["1"]
        branch = "refs/pr/1" if is_pr else revision
        sha = repository.commit(branch, files)
        answer = {"commitUrl": f"{self.server.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True}
        if is_pr:
            answer["pullRequestUrl"] = f"{self.server.url}/{repo_id}/discussions/1"
        self._send(answer)

    # Reading

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            self._send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return
        siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
        self._send(
            {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private, "siblings": siblings}
        )

    def tree(self, repo_id: str, revision: str) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            self._send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return
        files = repository.commits[sha]
        rows = [
            {"type": "file", "path": path, "oid": files[path][:40], "size": len(self.server.objects[files[path]])}
            for path in sorted(files)
        ]
        self._send(rows, X_Repo_Commit=sha)

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        sha = repository.resolve(revision)
        if sha is None:
            self._send({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return
        oid = repository.commits[sha].get(path)
        if oid is None:
            self._send({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            return
        self._send(self.server.objects[oid], X_Repo_Commit=sha, ETag=f'"{oid}"')


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_NAME}/branch/(.+)", "branch"),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", "preupload"),
    (rf"POST /api/models/{_NAME}/commit/(.+)", "commit"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT /lfs/(\w+)", "lfs_object"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"GET /api/models/{_NAME}/revision/(.+)", "info"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+).*", "tree"),
    (rf"GET /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]
