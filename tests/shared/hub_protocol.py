"""What the Hub answers: repositories in memory, and a method for each endpoint. See hub_server.py."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote

import yaml

LFS_SUFFIXES = {"safetensors", "bin", "pt", "pth", "onnx", "npy", "npz", "parquet", "arrow", "zip", "gz"}
LFS_SUFFIXES |= {"tar", "png", "jpg", "jpeg", "webp", "pdf"}
GITATTRIBUTES = "".join(f"*.{s} filter=lfs diff=lfs merge=lfs -text\n" for s in sorted(LFS_SUFFIXES)).encode()
SDKS = ("gradio", "streamlit", "docker", "static")  # of Spaces
BAD_TOKEN = "Invalid credentials in Authorization header"  # the clients compare this text


class Refusal(Exception):
    """An answer other than 2xx: HTTP status, the Hub's `X-Error-Code`, message and further headers."""

    def __init__(self, status, code=None, message="", **headers):
        self.status, self.body = status, {"error": message or code or f"status {status}"}
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self.headers = {k: v for k, v in named.items() if v} | headers


@dataclass
class Commit:
    sha: str
    parent: str | None
    title: str
    date: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository of `kind` models, datasets or spaces: commits by sha; branches and tags by name."""

    kind: str
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files, title, branch="main"):
        parent = self.branches.get(branch)
        listing = sorted((path, git_oid(data)) for path, data in files.items())
        sha = hashlib.sha1(repr((self.kind, self.id, parent, title, listing)).encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.commits[sha] = Commit(sha, parent, title, date, dict(files))
        self.branches[branch] = sha
        return sha

    def at(self, revision):
        """The commit of a branch, a tag, `refs/heads/<branch>` or a full sha."""
        name = revision.removeprefix("refs/heads/")
        sha = self.branches.get(name) or self.tags.get(name) or revision
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path, size):
    return size > 0 and (path.rpartition(".")[2].lower() in LFS_SUFFIXES or size > 10_000_000)


def describe(path, data):
    """The row of a file in `tree` and `paths-info`."""
    row = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
    if is_lfs(path, len(data)):
        oid = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        row["oid"] = git_oid(pointer)
        row["lfs"] = {"oid": oid, "sha256": oid, "size": len(data), "pointerSize": len(pointer)}
    return row


def front_matter(text):
    """The YAML at the head of a card, as a dict. Raises ValueError when it is not one."""
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        raise ValueError(f"bad YAML: {error}") from error
    if not isinstance(data or {}, dict):
        raise ValueError(f"the metadata is a {type(data).__name__}, not a mapping")
    return data or {}


API = "/api/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
ROUTES = [
    ("GET /api/whoami-v2", "whoami"),
    ("POST /api/repos/create", "create"),
    ("DELETE /api/repos/delete", "delete"),
    ("POST /api/validate-yaml", "validate"),
    ("PUT /lfs-upload/(?P<oid>[0-9a-f]{64})", "upload"),
    ("POST /(?P<kind>datasets/|spaces/)?(?P<id>[^/]+/[^/]+)[.]git/info/lfs/objects/batch", "batch"),
    (f"POST {API}/preupload/(?P<rev>[^/]+)", "preupload"),
    (f"POST {API}/commit/(?P<rev>[^/]+)", "commit"),
    (f"POST {API}/branch/(?P<name>[^/]+)", "branch"),
    (f"POST {API}/tag/(?P<rev>[^/]+)", "tag"),
    (f"POST {API}/paths-info/(?P<rev>[^/]+)", "paths"),
    (f"GET {API}/tree/(?P<rev>[^/]+)(/(?P<folder>.+?))?/?", "tree"),
    (f"GET {API}/commits/(?P<rev>[^/]+)", "history"),
    (f"GET {API}/refs", "refs"),
    (f"GET {API}/auth-check", "auth_check"),
    (f"GET {API}/auth-check/write", "auth_check_write"),
    (f"GET {API}(/revision/(?P<rev>[^/]+))?", "info"),
    ("(GET|HEAD) /(?P<kind>datasets/|spaces/)?(?P<id>.+?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]
WRITES = {"batch", "preupload", "commit", "branch", "tag", "auth_check_write"}


class Protocol:
    """The endpoints. HubServer adds the listener, the faults and the helpers for tests.

    Each `do_` method takes the repository (None where the request names none), the request as a dict of
    headers, query, body and role, and the path's further parts; it returns the body, or (status, headers,
    body).
    """

    def answer(self, verb, path, query, headers, body):
        """(status, headers, body) for a request; raises Refusal. `path` is still percent-encoded."""
        role = self.role(headers.get("Authorization"))
        for pattern, name in ROUTES:
            match = re.fullmatch(pattern, f"{verb} {path}")
            if match:
                fields = {k: unquote(v or "") for k, v in match.groupdict().items()}
                repo, request = None, {"headers": headers, "query": query, "body": body, "role": role}
                if "id" in fields:
                    kind = (fields.pop("kind") or "models").rstrip("/")
                    repo = self.find(kind, fields.pop("id"), role)
                    if name in WRITES:
                        self.check_write(role, repo.id.split("/")[0])
                with self.lock:
                    result = getattr(self, "do_" + name)(repo, request, **fields)
                return result if isinstance(result, tuple) else (200, {}, result)
        raise Refusal(404, None, f"no such page: {verb} {path}")

    def role(self, authorization):
        roles = {None: None, f"Bearer {self.token}": "write", f"Bearer {self.read_token}": "read"}
        if authorization not in roles:
            raise Refusal(401, None, BAD_TOKEN)
        return roles[authorization]

    def find(self, kind, repo_id, role):
        repo = self.repos.get((kind, repo_id))
        if repo is None or (repo.private and (role is None or repo.id.split("/")[0] != self.user)):
            # the Hub does not tell strangers which repositories exist
            status, message = (404, "Repository not found") if role else (401, "Invalid username or password.")
            raise Refusal(status, "RepoNotFound", message)
        return repo

    def check_write(self, role, owner):
        if role is None:
            raise Refusal(401, None, "Invalid username or password.")
        if role != "write" or owner != self.user:
            raise Refusal(403, None, f"You need a write token of {owner}, this one has role {role} of {self.user}")

    def do_whoami(self, repo, request):
        if request["role"] is None:
            raise Refusal(401, None, "Invalid username or password.")
        token = {"displayName": "test", "role": request["role"], "createdAt": "2024-01-01T00:00:00.000Z"}
        auth = {"type": "access_token", "accessToken": token}
        return {"name": self.user, "fullname": self.user, "type": "user", "orgs": [], "auth": auth}

    def do_create(self, repo, request):
        asked = json.loads(request["body"])
        kind = asked.get("type", "model") + "s"
        owner = asked.get("organization") or self.user
        repo_id = f"{owner}/{asked['name']}"
        self.check_write(request["role"], owner)
        answer = {"url": f"{self.url}/{'' if kind == 'models' else kind + '/'}{repo_id}", "name": repo_id}
        if (kind, repo_id) in self.repos:
            return 409, {}, answer | {"error": "You already created this repo"}
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repos[kind, repo_id] = Repo(kind, repo_id, private=private)
        files = {".gitattributes": GITATTRIBUTES}
        if kind == "spaces":  # the Hub makes a page of its own
            if asked.get("sdk") not in SDKS:
                raise Refusal(400, None, f"sdk must be one of {', '.join(SDKS)}")
            files["README.md"] = f"---\ntitle: {asked['name']}\nsdk: {asked['sdk']}\n---\n".encode()
            files |= {"index.html": b"welcome", "style.css": b""} if asked["sdk"] == "static" else {}
        self.repos[kind, repo_id].commit(files, "initial commit")
        return answer

    def do_auth_check(self, repo, request):
        return b"OK"

    do_auth_check_write = do_auth_check  # who may not write was refused already

    def do_delete(self, repo, request):
        asked = json.loads(request["body"])
        owner = asked.get("organization") or self.user
        self.check_write(request["role"], owner)
        repo = self.find(asked.get("type", "model") + "s", f"{owner}/{asked['name']}", "write")
        del self.repos[repo.kind, repo.id]
        return {}

    def do_validate(self, repo, request):
        asked = json.loads(request["body"])
        try:
            data = front_matter(asked["content"])
            if asked.get("repoType") == "space" and data.get("sdk") not in SDKS:
                raise ValueError(f'"sdk" must be one of {", ".join(SDKS)}')
        except ValueError as error:
            return 400, {}, {"errors": [{"message": str(error)}], "warnings": []}
        return {
            "errors": [],
            "warnings": [] if data else [{"message": "empty or missing yaml metadata in repo card"}],
        }

    def do_preupload(self, repo, request, rev):
        files, rows = repo.at(rev).files, []
        for asked in json.loads(request["body"])["files"]:
            path, lfs = asked["path"], is_lfs(asked["path"], asked["size"])
            row = describe(path, files[path]) if path in files else {"oid": None}
            oid = row["lfs"]["oid"] if "lfs" in row else row["oid"]
            mode = "lfs" if lfs else "regular"
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": rows}

    def do_batch(self, repo, request):
        objects = json.loads(request["body"])["objects"]
        for obj in objects:
            if obj["oid"] not in self.lfs:
                obj["actions"] = {"upload": {"href": f"{self.url}/lfs-upload/{obj['oid']}", "header": {}}}
        return {"transfer": "basic", "objects": objects}

    def do_upload(self, repo, request, oid):
        if hashlib.sha256(request["body"]).hexdigest() != oid:
            raise Refusal(400, None, "the sha256 of the upload is not its oid")
        self.lfs[oid] = request["body"]
        return b""

    def do_commit(self, repo, request, rev):
        if rev not in repo.branches:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        files, title = dict(repo.at(rev).files), ""
        for line in request["body"].splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            path = value.get("path", "")
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, "", repo.branches[rev]):
                    raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                encoded = value["content"].encode()
                files[path] = base64.b64decode(encoded) if value.get("encoding") == "base64" else encoded
            elif key == "lfsFile" and value["oid"] in self.lfs:
                files[path] = self.lfs[value["oid"]]
            elif key in ("deletedFile", "deletedFolder"):
                gone = [p for p in files if p == path or p.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                files = {p: data for p, data in files.items() if p not in gone}
            else:
                raise Refusal(400, None, f"cannot commit {key} {path}: unknown, or its LFS object was not uploaded")
        sha = repo.commit(files, title, rev)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.id}/commit/{sha}"}

    def do_info(self, repo, request, rev):
        commit = repo.at(rev or "main")
        try:
            card = front_matter(commit.files.get("README.md", b"").decode())
        except ValueError:
            card = {}
        rows = [describe(path, data) for path, data in sorted(commit.files.items())]
        siblings = [{"rfilename": row["path"]} for row in rows]
        if "blobs" in request["query"]:
            for sibling, row in zip(siblings, rows, strict=True):
                sibling |= {"size": row["size"], "blobId": row["oid"], "lfs": row.get("lfs")}
        return {
            **{"_id": repo.id, "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0]},
            **{"sha": commit.sha, "lastModified": commit.date, "createdAt": commit.date, "disabled": False},
            **{"private": repo.private, "gated": "auto" if repo.gated else False, "downloads": 0, "likes": 0},
            **{k: card[k] for k in ("pipeline_tag", "library_name") if k in card},
            **{"tags": list(card.get("tags") or []), "cardData": json.loads(json.dumps(card, default=str))},
            "siblings": siblings,
        }

    def entries(self, commit, prefix, recursive):
        """Rows of the files below a folder, and of its folders."""
        rows, folders = [], set()
        for path, data in sorted(commit.files.items()):
            if path.startswith(prefix):
                names = path[len(prefix) :].split("/")
                folders |= {prefix + "/".join(names[:i]) for i in range(1, len(names) if recursive else 2)}
                if recursive or len(names) == 1:
                    rows.append(describe(path, data))
        folders -= {row["path"] for row in rows}
        trees = [(name, git_oid((commit.sha + name).encode())) for name in sorted(folders)]
        return [{"type": "directory", "path": name, "oid": oid, "size": 0} for name, oid in trees] + rows

    def expanded(self, rows, commit, expand):
        last = {"id": commit.sha, "title": commit.title, "date": commit.date}
        return [row | {"lastCommit": last} for row in rows] if expand.lower() in ("true", "1") else rows

    def do_tree(self, repo, request, rev, folder):
        commit, query = repo.at(rev), request["query"]
        recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
        rows = self.entries(commit, folder and folder + "/", recursive)
        if folder and not rows:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {rev}")
        return self.expanded(rows, commit, query.get("expand", [""])[0])

    def do_paths(self, repo, request, rev):
        commit, form = repo.at(rev), parse_qs(request["body"].decode())
        wanted = {path.strip("/") for path in form.get("paths", [])}
        rows = [row for row in self.entries(commit, "", True) if row["path"] in wanted]
        return self.expanded(rows, commit, form.get("expand", [""])[0])

    def do_refs(self, repo, request):
        rows = {}
        for key, place, refs in [("branches", "heads", repo.branches), ("tags", "tags", repo.tags)]:
            rows[key] = [{"name": n, "ref": f"refs/{place}/{n}", "targetCommit": sha} for n, sha in refs.items()]
        return rows | {"converts": [], "pullRequests": []}

    def do_history(self, repo, request, rev):
        rows, commit = [], repo.at(rev)
        while commit:
            row = {"id": commit.sha, "title": commit.title, "message": "", "date": commit.date}
            rows.append(row | {"authors": [{"user": self.user}]})
            commit = repo.commits.get(commit.parent)
        return rows

    def do_branch(self, repo, request, name):
        if name in repo.branches:
            return 409, {}, {"error": f"branch {name} already exists"}
        repo.branches[name] = repo.at(json.loads(request["body"] or b"{}").get("startingPoint", "main")).sha
        return {}

    def do_tag(self, repo, request, rev):
        repo.tags[json.loads(request["body"])["tag"]] = repo.at(rev).sha
        return {}

    def do_resolve(self, repo, request, rev, path):
        if repo.gated and request["role"] is None:
            raise Refusal(401, "GatedRepo", f"Access to {repo.kind[:-1]} {repo.id} is restricted. Please log in.")
        if repo.gated and (repo.kind, repo.id) not in self.accepted:
            raise Refusal(403, "GatedRepo", f"Access to {repo.id} is restricted: you are not in the authorized list.")
        commit = repo.at(rev)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.sha})
        data = commit.files[path]
        row = describe(path, data)
        etag = row.get("lfs", row)["oid"]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if "lfs" in row:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request["headers"].get("Range") or "")
        if not asked:
            return 200, headers, data
        first, last = asked.groups()
        start = int(first) if first else max(len(data) - int(last or 0), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= end:
            raise Refusal(416, None, "Range not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
        return 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end]
