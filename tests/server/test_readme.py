"""README and docs are right: listings equal the files, commands run and print what is shown.

The words after a fenced block's language say what it is:

- `bash`, `python`: runs as typed in a fresh shell with .venv activated, in the repository's root.
  A line with `mlserver start`, perhaps behind variables, starts a server for the blocks up to the
  next such line.
  The `text` or `json` block directly below is the output. `...` stands for anything. Any number
  equals any other, but `0.95...` is a number that begins with 0.95. Below a server's start, the
  block is a part of the server's log.
- `bash fails`: the same, with an error at the end.
- `bash not run: REASON`: does not run.
- `LANGUAGE PATH [NAME]`: the whole file, or the class or function NAME of a Python file.
- `LANGUAGE part of PATH`: lines of the file.
- `text prints: COMMAND`: the output of the command.
- `text such as: REASON`: not compared.

`python -m tests.server.test_readme` updates the listings.
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
from tests.support.paths import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ACTIVATE = Path(sys.prefix) / "bin" / "activate"
FENCE = re.compile(r"^```(?P<info>\w[^\n]*)\n(?P<body>.*?)^```$", re.M | re.S)
LISTING = re.compile(r"\w+ (?P<path>[\w./-]+\.\w+)(?: (?P<name>[\w.]+))?")
START = re.compile(r"^(?P<variables>(?:\w+=\S+ )*)mlserver start (?P<folder>\S+)", re.M)
NUMBER = r"\d+(?:[.:]\d+)*"
PROGRAMS = ("client/first_request.py", "lab/load.py", "lab/nearest.py", "lab/versions.py")
"""Programs of the lab that send requests to the default port."""
TIMEOUT = 300
"""Maximum duration of a block in seconds."""


class Block(NamedTuple):
    """A fenced block."""

    document: Path
    info: str
    body: str
    start: int
    end: int

    @property
    def commands(self) -> list[str]:
        """The lines that do not start a server, unless the start is to fail."""
        lines = self.body.splitlines()
        return [line for line in lines if self.info != "bash" or not START.match(line)]

    @property
    def served(self) -> str | None:
        """Its `mlserver start` with variables and folder, if it has one."""
        match = START.search(self.body)
        return match[0] if match and self.info == "bash" else None


class Run(NamedTuple):
    """A block to run, the command that starts its server, and its output."""

    block: Block
    start: str
    output: Block | None


def blocks(document: Path) -> list[Block]:
    matches = FENCE.finditer(document.read_text())
    return [Block(document, m["info"].strip(), m["body"], *m.span()) for m in matches]


def runs() -> Iterator[Run]:
    for document in DOCUMENTS:
        command = "mlserver start tinyvit"
        everything = blocks(document)
        for block, after in zip_longest(everything, everything[1:]):
            command = block.served or command
            below = after is not None and after.start == block.end + 1
            output = after if below and after.info in ("text", "json") else None
            if block.info in ("bash", "bash fails", "python"):
                yield Run(block, command, output)
            elif block.info.startswith("text prints: "):
                printing = block._replace(info="bash", body=block.info.partition(": ")[2])
                yield Run(printing, command, block)


def name_of(run: Run) -> str:
    return f"{run.block.document.stem}-{run.block.body.strip().splitlines()[-1][:40]}"


class Servers:
    """One server at a time, kept for as long as the same command starts it."""

    def __init__(self, environment: "dict[str, str]", work: Path) -> None:
        self._environment, self._work = environment, work
        self._server: LocalServer | None = None
        self._command = ""

    def serve(self, command: str) -> LocalServer:
        if command != self._command or self._server is None:
            self.close()
            *variables, folder = command.replace("mlserver start ", "").split()
            environment = self._environment | dict(each.split("=", 1) for each in variables)
            self._server = start(ROOT / folder, environment, self._work / "log", self._work)
            self._command = command
            self._server.wait(timeout=TIMEOUT, model="tinyvit")
        return self._server

    def close(self) -> None:
        if self._server:
            self._server.kill()


@pytest.fixture(scope="module")
def servers(environment, tmp_path_factory) -> Iterator[Servers]:
    servers = Servers(environment, tmp_path_factory.mktemp("documents"))
    yield servers
    servers.close()


@pytest.mark.slow
@pytest.mark.parametrize("run", list(runs()), ids=name_of)
def test_commands_run_and_print_what_is_shown(run, servers, environment, tmp_path) -> None:
    server = servers.serve(run.start)
    commands = run.block.commands
    if run.output and run.block.body.splitlines()[-1] == run.block.served:
        assert matches_part(run.output.body, server.output()), server.output()
        run = run._replace(output=None)
    python = run.block.info == "python"
    script = f"python - <<'PYTHON'\n{run.block.body}PYTHON" if python else "\n".join(commands)
    status, output = typed(script, server, environment, tmp_path)
    assert (status != 0) == (run.block.info == "bash fails"), output
    if run.output:
        assert matches(run.output.body, output), f"{output}\n--- is not ---\n{run.output.body}"


def typed(
    script: str, server: LocalServer, environment: "dict[str, str]", home: Path
) -> tuple[int, str]:
    """Return exit status and output of a shell with a fresh environment."""
    for program in PROGRAMS:
        script = script.replace(program, str(_copied(program, server, home)))
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
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the shell's children end theirs
        raise
    return process.returncode, output


def _copied(program: str, server: LocalServer, folder: Path) -> Path:
    """Copy one of the lab's programs, with this server's address."""
    copy = folder / program
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(at(server, (ROOT / program).read_text()))
    for name in ("imgs", "tests"):  # which programs find from their own place
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return copy


def at(server: LocalServer, script: str) -> str:
    """Replace the default ports by those of the server."""
    script = re.sub(r"(?:http://)?localhost:8080", server.url, script)
    script = script.replace("localhost:8081", server.grpc)
    return script.replace("localhost:8082", f"127.0.0.1:{server.metrics_port}")


def pattern(expected: str) -> str:
    """Return a regular expression: `...` is anything, and each number any number, unless `...`
    follows it."""
    literal = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
    number = r"\d+(?:(?:\\\.|:)\d+)*"
    return re.sub(rf"({number})(\.\*)?", lambda m: m[0] if m[2] else NUMBER, literal)


def matches(expected: str, actual: str) -> bool:
    return re.fullmatch(pattern(expected), actual.strip(), re.S) is not None


def matches_part(expected: str, actual: str) -> bool:
    """Return whether all expected lines are there, in order."""
    lines = [f".*{pattern(line)}" for line in expected.strip().splitlines()]
    return re.search("(?s:.*\n)?".join(lines), actual) is not None


def test_the_comparison_sees_a_difference() -> None:
    assert matches("a 1.5\n...\nb", "a 22\nx\ny\nb\n")
    assert not matches("a 1.5", "b 1.5")
    assert not matches("a 1.5 b", "a 1.5")
    assert matches("a 0.95... b", "a 0.9534 b")
    assert not matches("a 0.94... b", "a 0.9534 b")
    assert matches_part("one\nthree", "x one\ntwo\n3 three")
    assert not matches_part("three\none", "x one\ntwo\n3 three")


LISTINGS = [block for document in DOCUMENTS for block in blocks(document)]
LISTINGS = [block for block in LISTINGS if LISTING.fullmatch(block.info)]


@pytest.mark.parametrize(
    "block", LISTINGS, ids=[block.info.partition(" ")[2] for block in LISTINGS]
)
def test_listings_are_the_files(block) -> None:
    assert block.body == listed(block.info), "python -m tests.server.test_readme updates it"


def listed(info: str) -> str:
    """Return the file, class or function that a block's info names."""
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


def test_the_log_shows_mlservers_default_address() -> None:
    """Servers of the tests listen on loopback only."""
    line = f"HTTP server running on http://{Settings.model_fields['host'].default}:8080"
    assert line in (ROOT / "README.md").read_text()
    assert line in (ROOT / "docs" / "operations.md").read_text()


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
    """Write the files into the documents' listings."""

    def fill(match: "re.Match[str]") -> str:
        info = match["info"].strip()
        return f"```{info}\n{listed(info)}```" if LISTING.fullmatch(info) else match[0]

    for document in DOCUMENTS:
        document.write_text(FENCE.sub(fill, document.read_text()))


if __name__ == "__main__":
    write_listings()
