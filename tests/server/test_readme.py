"""README and docs tell the truth: listings are the files, commands run and print what is said.

Every fenced block counts; the words after its language say what it is:

- `bash`, `python`: run as typed in a fresh shell in which .venv was activated, in the repository's
  root. Lines that begin with `mlserver start` serve until the next such line; what follows is
  asked of that server. The `text` or `json` block directly below is what it prints, numbers apart
  and with `...` for anything; below a server's start, it is part of the server's log.
- `bash fails`: the same, and it ends with an error.
- `bash not run: REASON`: neither a server nor a command of this machine.
- `LANGUAGE PATH [NAME]`: the whole file, or of a Python file the class or function NAME.
- `LANGUAGE part of PATH`: lines of the file as they stand.
- `text prints: COMMAND`: what the command prints, run likewise.
- `text such as: REASON`: not compared.

`python -m tests.server.test_readme` writes the listings anew.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
from mlserver.settings import Settings

from client.local import LocalServer, free_ports, start

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ACTIVATE = Path(sys.prefix) / "bin" / "activate"
FENCE = re.compile(r"^```(?P<info>\w[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)
LISTING = re.compile(r"\w+ (?P<path>[\w./-]+\.\w+)(?: (?P<name>[\w.]+))?")
NUMBER = r"\d+(?:[.:]\d+)*"
MEASURED = re.compile(r"<!-- benchmark -->.*?<!-- /benchmark -->", re.S)
"""What `make bench` writes."""
LINES, WIDTH = 300, 110
PATIENCE = 300
"""Seconds for a block."""


class Block(NamedTuple):
    """A fenced block."""

    document: Path
    info: str
    body: str
    start: int
    end: int

    @property
    def commands(self) -> list[str]:
        """Its lines without those that serve."""
        return [line for line in self.body.splitlines() if not line.startswith("mlserver start")]

    @property
    def served(self) -> str | None:
        """The folder of its `mlserver start`, if there is one."""
        found = re.search(r"^mlserver start (\S+)", self.body, re.M)
        return found[1] if found and self.info == "bash" else None


class Run(NamedTuple):
    """A block that is run, the folder of the server it asks, and what it prints."""

    block: Block
    folder: str
    output: Block | None


def blocks(document: Path) -> list[Block]:
    found = FENCE.finditer(document.read_text())
    return [Block(document, m["info"].strip(), m["body"], *m.span()) for m in found]


def runs() -> Iterator[Run]:
    for document in DOCUMENTS:
        folder = "tinyvit"
        everything = blocks(document)
        for block, after in zip_longest(everything, everything[1:]):
            folder = block.served or folder
            below = after is not None and after.start == block.end + 1
            output = after if below and after.info in ("text", "json") else None
            if block.info in ("bash", "bash fails", "python"):
                yield Run(block, folder, output)
            elif block.info.startswith("text prints: "):
                command = block._replace(info="bash", body=block.info.partition(": ")[2])
                yield Run(command, folder, block)


def name_of(run: Run) -> str:
    return f"{run.block.document.stem}-{run.block.body.strip().splitlines()[-1][:40]}"


class Servers:
    """One server at a time, kept for as long as the same folder is asked."""

    def __init__(self, environment: "dict[str, str]", work: Path) -> None:
        self._environment, self._work = environment, work
        self._server: LocalServer | None = None
        self._folder = ""

    def of(self, folder: str) -> LocalServer:
        if folder != self._folder or self._server is None:
            self.close()
            log = self._work / f"{folder.replace('/', '-')}.log"
            self._server = start(ROOT / folder, self._environment, log, self._work)
            self._folder = folder
            self._server.wait(model="tinyvit")
        return self._server

    def close(self) -> None:
        if self._server:
            self._server.kill()


@pytest.fixture(scope="module")
def servers(environment, tmp_path_factory) -> Iterator[Servers]:
    servers = Servers(environment, tmp_path_factory.mktemp("documents"))
    yield servers
    servers.close()


@pytest.mark.parametrize("run", list(runs()), ids=name_of)
def test_commands_run_and_print_what_is_said(run, servers, environment, tmp_path) -> None:
    server = servers.of(run.folder)
    commands = run.block.commands
    if run.block.body.splitlines()[-1] == f"mlserver start {run.block.served}":
        assert matches_part(run.output.body, server.output()), server.output()
        run = run._replace(output=None)
    python = run.block.info == "python"
    script = f"python - <<'PYTHON'\n{run.block.body}PYTHON" if python else "\n".join(commands)
    status, said = typed(script, server, environment, tmp_path)
    assert (status != 0) == (run.block.info == "bash fails"), said
    if run.output:
        assert matches(run.output.body, said), f"{said}\n--- is not ---\n{run.output.body}"


def typed(
    script: str, server: LocalServer, environment: "dict[str, str]", home: Path
) -> tuple[int, str]:
    """Exit status and output of a shell that knows only what `activate` tells it."""
    for asking in ("client/first_request.py", "lab/nearest.py"):
        script = script.replace(asking, str(_copied(asking, server, home)))
    script = at(server, script).replace("source .venv/bin/activate", f"source {ACTIVATE}")
    bash = shutil.which("bash")
    assert bash
    http, grpc, metrics = free_ports(3)
    fresh = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "MLSERVER_HTTP_PORT": str(http),
        "MLSERVER_GRPC_PORT": str(grpc),
        "MLSERVER_METRICS_PORT": str(metrics),
    }
    process = subprocess.Popen(
        [bash, "-euo", "pipefail", "-c", f"source {ACTIVATE}\n{script}"],
        cwd=ROOT,
        env={**fresh, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # what it has started stops what that has started
        raise
    return process.returncode, said


def _copied(program: str, server: LocalServer, folder: Path) -> Path:
    """A copy of one of the lab's programs that asks this server."""
    copy = folder / Path(program).name
    copy.write_text(at(server, (ROOT / program).read_text()))
    return copy


def at(server: LocalServer, script: str) -> str:
    """The same, asking the server that listens on ports of its own."""
    script = re.sub(r"(?:http://)?localhost:8080", server.url, script)
    script = script.replace("localhost:8081", server.grpc)
    return script.replace("localhost:8082", f"127.0.0.1:{server.metrics_port}")


def pattern(expected: str) -> str:
    """`...` is anything, and each number any number."""
    literal = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
    return re.sub(r"\d+(?:(?:\\\.|:)\d+)*", lambda _: NUMBER, literal)


def matches(expected: str, actual: str) -> bool:
    return re.fullmatch(pattern(expected), actual.strip(), re.S) is not None


def matches_part(expected: str, actual: str) -> bool:
    """All of its lines, in their order."""
    lines = [f".*{pattern(line)}" for line in expected.strip().splitlines()]
    return re.search("(?s:.*\n)?".join(lines), actual) is not None


def test_the_comparison_sees_a_difference() -> None:
    assert matches("a 1.5\n...\nb", "a 22\nx\ny\nb\n")
    assert not matches("a 1.5", "b 1.5")
    assert not matches("a 1.5 b", "a 1.5")
    assert matches_part("one\nthree", "x one\ntwo\n3 three")
    assert not matches_part("three\none", "x one\ntwo\n3 three")


LISTINGS = [block for document in DOCUMENTS for block in blocks(document)]
LISTINGS = [block for block in LISTINGS if LISTING.fullmatch(block.info)]


@pytest.mark.parametrize(
    "block", LISTINGS, ids=[block.info.partition(" ")[2] for block in LISTINGS]
)
def test_listings_are_the_files(block) -> None:
    assert block.body == listed(block.info), "python -m tests.server.test_readme writes it anew"


def listed(info: str) -> str:
    """The file, or the class or function of it, that a block's info names."""
    found = LISTING.fullmatch(info)
    text = (ROOT / found["path"]).read_text()
    if not found["name"]:
        return text
    node: ast.AST = ast.parse(text)
    for name in found["name"].split("."):
        node = next(n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    return textwrap.dedent("".join(lines))


PARTS = [block for document in DOCUMENTS for block in blocks(document)]
PARTS = [block for block in PARTS if " part of " in block.info]


@pytest.mark.parametrize("block", PARTS, ids=[block.info for block in PARTS])
def test_parts_are_in_the_files(block) -> None:
    text = (ROOT / block.info.partition(" part of ")[2]).read_text()
    assert block.body in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_block_is_of_a_known_kind(document) -> None:
    known = re.compile(
        r"(bash|python|text|json)( fails)?|(bash|python) not run: .+"
        r"|(text|json) (prints|such as): .+"
        r"|\w+ part of \S+|" + LISTING.pattern
    )
    assert [b.info for b in blocks(document) if not known.fullmatch(b.info)] == []
    assert document.read_text().count("```") == 2 * len(blocks(document))


def test_the_log_tells_the_address_that_mlserver_takes() -> None:
    """The tests' own servers are kept to loopback, and any number counts as equal."""
    line = f"HTTP server running on http://{Settings.model_fields['host'].default}:8080"
    assert line in (ROOT / "README.md").read_text()
    assert line in (ROOT / "docs" / "operations.md").read_text()


def test_the_lab_can_be_read() -> None:
    lines = re.sub(MEASURED, "", (ROOT / "README.md").read_text()).splitlines()
    assert len(lines) <= LINES
    prose = [re.sub(r"https?://[^\s)>]+|\]\([^)]+\)", "", line) for line in lines]
    assert [line for line in prose if len(line) > WIDTH and not line.startswith("|")] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_file_and_section_it_links_exists(document) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_make_target_that_is_named_exists() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", text, re.M))
    known = set(re.findall(r"^([a-z][a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test", "serve"} <= named <= known


def write_listings() -> None:
    """Puts the files into the documents' listings."""

    def fill(match: "re.Match[str]") -> str:
        info = match["info"].strip()
        return f"```{info}\n{listed(info)}```" if LISTING.fullmatch(info) else match[0]

    for document in DOCUMENTS:
        document.write_text(FENCE.sub(fill, document.read_text()))


if __name__ == "__main__":
    write_listings()
