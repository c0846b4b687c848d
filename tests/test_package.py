"""What goes into an image, and whether it runs there: alone, read-only, as nobody, offline."""

import fnmatch
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
from mlserver.cli.build import generate_dockerfile, write_dockerfile
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

from conftest import ROOT, Serve
from local import serving

FOLDER = ROOT / "tinyvit"
MATERIAL = {".py", ".json", ".txt", ".lock", ".html", ".md", ".safetensors"}
"""Kinds of files that belong into an image."""
PYTHONS = ("3.10", "3.11", "3.12")
NOBODY = 65534


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def copy_to(folder: Path) -> Path:
    """`tinyvit/` as git has it."""
    return Path(
        shutil.copytree(FOLDER, folder / "tinyvit", ignore=shutil.ignore_patterns("__pycache__"))
    )


# --- Dockerfile -------------------------------------------------------------------------------


def copied(dockerfile: str) -> list[list[str]]:
    """The sources of each COPY from the folder, globs as they stand."""
    joined = dockerfile.replace("\\\n", " ")
    lines = [line.split()[1:] for line in joined.splitlines() if line.startswith("COPY")]
    return [line[:-1] for line in lines if not any(word.startswith("--from") for word in line)]


def test_dockerfile_finds_settings_and_requirements_and_builds_no_conda_environment() -> None:
    conda, settings, everything = copied(generate_dockerfile())
    assert [list(FOLDER.glob(pattern.removeprefix("./"))) for pattern in conda] == [[]] * 4
    assert [list(FOLDER.glob(pattern.removeprefix("./"))) for pattern in settings] == [
        [FOLDER / "settings.json"],
        [FOLDER / "model-settings.json"],
        [FOLDER / "requirements.txt"],
    ]
    assert everything == ["."]


def test_requirements_stand_alone() -> None:
    """They are installed before anything else of the folder is there."""
    lines = requirements("requirements.txt")
    assert lines
    for line in lines:
        assert Requirement(line).url is None


def test_only_image_material_is_left_of_a_folder_in_use(
    serve: Serve, tmp_path: Path, public_folder: Path
) -> None:
    folder = copy_to(tmp_path)
    server = serve(
        folder=folder,
        env={
            "MLSERVER_METRICS_DIR": str(folder / ".metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(folder / ".envs"),
            "PYTHONDONTWRITEBYTECODE": "",
        },
    )
    server.stop()
    for name in (".DS_Store", ".envs/left", ".metrics/left"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert (folder / "__pycache__").exists()
    dockerfile = Path(write_dockerfile(str(public_folder), generate_dockerfile()))
    ignored = Path(f"{dockerfile}.dockerignore").read_text().splitlines()
    left = set(context(folder, ignored))
    assert left == {path.relative_to(folder) for path in files(folder) if path.suffix in MATERIAL}
    assert left == {path.relative_to(FOLDER) for path in tracked(FOLDER)}


def context(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """What Docker sends, by its rule that patterns without `**/` are those of the root."""
    rules = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    for path in files(folder):
        relative = path.relative_to(folder)
        parts = [*relative.parents, relative]
        if not any(
            fnmatch.fnmatch(str(part), rule.removeprefix("./").removeprefix("**/").rstrip("/"))
            for rule in rules
            for part in parts
            if "**/" in rule or "/" not in str(part)
        ):
            yield relative


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def tracked(folder: Path) -> list[Path]:
    """The folder's files in git's eyes, new ones included; in an export without git, all."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        return [path for path in files(folder) if path.suffix in MATERIAL]
    return [path for name in listed.stdout.split("\0") if (path := folder / name).is_file()]


def test_an_index_of_cpu_wheels_can_be_given_and_wins(tmp_path: Path) -> None:
    """The README's way to a small image: one `ARG`, since the Dockerfile declares none."""
    subprocess.run(
        [Path(sys.executable).with_name("mlserver"), "dockerfile", tmp_path, "-i"],
        check=True,
        capture_output=True,
    )
    dockerfile = tmp_path / "Dockerfile"
    expression = r"s|^RUN ./hack/build-env.sh|ARG PIP_EXTRA_INDEX_URL\n&|"
    subprocess.run(["sed", "-i", expression, str(dockerfile)], check=True)
    lines = dockerfile.read_text().splitlines()
    install = next(i for i, line in enumerate(lines) if "hack/build-env.sh" in line)
    assert lines[install - 1] == "ARG PIP_EXTRA_INDEX_URL"
    assert (tmp_path / "Dockerfile.dockerignore").exists()
    pins = {
        pin.name: pin for line in requirements("requirements.txt") if (pin := Requirement(line))
    }
    for name, version in (("torch", "2.11.0"), ("torchvision", "0.26.0")):
        assert pins[name].specifier.contains(f"{version}+cpu")
        assert Version(f"{version}+cpu") > Version(version)


# --- Requirements -----------------------------------------------------------------------------


def requirements(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (FOLDER / name).read_text().splitlines())
    return [line for line in lines if line]


def locked(python: str) -> dict[str, str]:
    """The lock's versions for one Python on this kind of machine."""
    environment = {**default_environment(), "python_version": python}
    environment["python_full_version"] = f"{python}.9"
    pins = [Requirement(line) for line in requirements("requirements.lock")]
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in chosen}) == len(chosen)
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in chosen}


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_keeps_to_the_requirements(python: str) -> None:
    versions = locked(python)
    for line in requirements("requirements.txt"):
        wanted = Requirement(line)
        assert wanted.specifier.contains(versions[wanted.name.replace("_", "-")]), line


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_installs_from_wheels(python: str) -> None:
    """By uv: pip would read the markers for the Python it runs in, and download every wheel."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    uv = shutil.which("uv", path=path) or "uv"
    command = [uv, "pip", "compile", str(FOLDER / "requirements.lock")]
    command += ["--python-version", python, "--python-platform", "linux", "--only-binary", ":all:"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Failed to fetch" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    found = (Requirement(line) for line in done.stdout.splitlines())
    assert {pin.name: str(pin.specifier).removeprefix("==") for pin in found} == locked(python)


# --- Running ----------------------------------------------------------------------------------

VISIT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import requests
from local import serving
folder, work, picture = map(Path, sys.argv[2:])
with serving(folder, log=work / "log", cwd="/") as server:
    url = server.url + "/v2/models/tinyvit"
    best = requests.post(url + "/classify", data=picture.read_bytes(), timeout=30).json()[0]
    weights = requests.get(url, timeout=30).json()["parameters"]["weights"]
print(json.dumps([best["label"], weights]))
"""


def confined() -> list[str]:
    """What puts before a command that nobody runs it, with no network but loopback."""
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']
    drop = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    # It may look into folders, not write to them: Python may live in another user's home.
    drop += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "setpriv"))):
        return []
    works = subprocess.run([*alone, *drop, "true"], capture_output=True, check=False)
    return [*alone, *drop] if works.returncode == 0 else []


def test_folder_runs_alone_read_only_as_nobody_without_network(public_folder: Path) -> None:
    prefix = confined()
    folder = copy_to(public_folder)
    for path in (*files(folder), folder / "sample", folder):
        path.chmod(0o444 if path.is_file() else 0o555)
    picture, client = public_folder / "picture.jpg", public_folder / "client"
    shutil.copy(ROOT / "imgs" / "coffee.jpg", picture)
    client.mkdir()
    shutil.copy(ROOT / "client" / "local.py", client)
    work = public_folder / "work"
    work.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "XDG_CACHE_HOME": str(work),
        "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
    }
    if prefix:
        os.chown(work, NOBODY, NOBODY)
    else:
        environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", VISIT, client, folder, work, picture],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["espresso", "sample"]
    assert {path.name for path in folder.iterdir()} == {path.name for path in image_folder()}
    assert (work / "tinyvit-mlserver").is_dir()


def image_folder() -> list[Path]:
    return [path for path in FOLDER.iterdir() if path.name != "__pycache__"]


def test_folder_runs_as_in_the_image(environment: Mapping[str, str], tmp_path: Path) -> None:
    """MLServer's image writes an .env of the settings into the folder it starts in."""
    folder = copy_to(tmp_path)
    settings = json.loads((folder / "settings.json").read_text())
    model = json.loads((folder / "model-settings.json").read_text())
    lines = {**settings, **model, **model["parameters"]}.items()
    (folder / ".env").write_text("".join(f"{k.upper()}='{json.dumps(v)}'\n" for k, v in lines))
    log = tmp_path / "log"
    with serving(".", env=environment, log=log, cwd=folder) as server:
        ready = requests.get(f"{server.url}/v2/models/tinyvit/ready", timeout=10)
        assert ready.status_code == 200


def test_folder_runs_as_seldon_leaves_it(serve: Serve, tmp_path: Path) -> None:
    """Its agent writes the model's settings anew with the fields it knows, names the version, and
    loads the model by its repository API; weights lie in the folder."""
    models = tmp_path / "models"
    folder = copy_to(models).rename(models / "tinyvit_1")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(FOLDER / "sample" / name, folder)
    settings = {
        "name": "tinyvit_1",
        "implementation": "serve-model.TinyViTModel",
        "parallel_workers": 0,
        "parameters": {"version": "1", "extra": {}},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    environment = {
        "MLSERVER_LOAD_MODELS_AT_STARTUP": "false",
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_MODEL_MAX_BATCH_SIZE": "8",
    }
    server = serve(folder=models, env=environment)
    loaded = requests.post(f"{server.url}/v2/repository/models/tinyvit_1/load", timeout=60)
    assert loaded.status_code == 200, loaded.text
    metadata = requests.get(f"{server.url}/v2/models/tinyvit_1", timeout=10).json()
    assert metadata["parameters"]["weights"] == str(folder)
    assert not metadata["parameters"]["fallback"]


# --- Weights of the hub -----------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download asks for; one model, the sample."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        files = {path.name: path.read_bytes() for path in (FOLDER / "sample").iterdir()}
        if self.path.startswith("/api/models/timm/sample/revision/"):
            siblings = [{"rfilename": name} for name in (*files, "pytorch_model.bin")]
            listing = {"id": "timm/sample", "sha": COMMIT, "siblings": siblings}
            self._send(
                200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body
            )
            return
        if self.path.startswith(f"/api/models/timm/sample/tree/{COMMIT}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": COMMIT}
                for name, content in files.items()
            ]
            self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            return
        found = re.fullmatch(rf"/timm/sample/resolve/{COMMIT}/(.+)", self.path)
        if found and found[1] in files:
            headers = {"ETag": f'"{found[1]}"', "X-Repo-Commit": COMMIT}
            self._send(200, files[found[1]], headers, body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def weights(model: str, folder: Path, endpoint: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hub")}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "weights.py"), model, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_weights_of_the_hub_can_be_baked_in(hub: str, tmp_path: Path) -> None:
    done = weights("timm/sample", tmp_path / "weights", hub)
    assert done.returncode == 0, done.stderr
    assert f"timm/sample is in {tmp_path / 'weights'} (9.8 MiB of weights)." in done.stdout
    stored = {path.name for path in (tmp_path / "weights").iterdir() if path.is_file()}
    assert stored == {"config.json", "model.safetensors"}
    for name in stored:
        expected = (FOLDER / "sample" / name).read_bytes()
        assert (tmp_path / "weights" / name).read_bytes() == expected


@pytest.mark.parametrize(
    ("model", "endpoint"), [("timm/unknown", None), ("timm/sample", "http://127.0.0.1:9")]
)
def test_weights_that_cannot_be_had_are_told_in_one_sentence(
    hub: str, tmp_path: Path, model: str, endpoint: str | None
) -> None:
    done = weights(model, tmp_path / "weights", endpoint or hub)
    assert done.returncode == 1
    assert re.fullmatch(rf"{model} cannot be fetched from the hub: .+\.\n", done.stderr), (
        done.stderr
    )
