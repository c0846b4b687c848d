"""The command-line client against a real server."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from client.classify import EPILOG
from client.local import LocalServer
from client.transport import Grpc, Rest
from tests.support.client import CLASSIFY, run, scripted
from tests.support.clients import CAT, COFFEE, FORMATS, LABEL, image_file
from tests.support.programs import Run, output_of, run_program

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture(params=["rest", "grpc"])
def address(request: pytest.FixtureRequest, server: LocalServer) -> list[str]:
    """Options for each of both transports."""
    return ["--url", server.url] if request.param == "rest" else ["--grpc", server.grpc]


def rows_of(done: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.output)))


def test_table_shows_weights_notice_and_bars(server: LocalServer) -> None:
    done = run_program(*CLASSIFY, "--url", server.url, COFFEE)
    assert (done.status, done.errors) == (0, "")
    assert "weights sample" in done.output
    assert re.search(r"^NOTE: .*unreachable", done.output, re.M)
    assert re.search(r"9[45]\.\d%\s+█{22,}\s+espresso$", done.output, re.M)


def test_encodings_and_transports_agree(server: LocalServer) -> None:
    def predictions(*options: str) -> list[tuple[str, float]]:
        images = json.loads(run("--json", "--top-k", 3, *options, CAT, COFFEE).output)
        return [(p["label"], p["score"]) for image in images for p in image["predictions"]]

    expected = predictions("--url", server.url)
    assert len(expected) == 6 and expected[3][0] == LABEL
    for options in (
        ["--url", server.url, "--encoding", "image"],
        ["--grpc", server.grpc],
        ["--grpc", server.grpc, "--encoding", "image"],
    ):
        labels, scores = zip(*predictions(*options), strict=True)
        assert labels == tuple(label for label, _ in expected)
        assert scores == pytest.approx([score for _, score in expected], abs=1e-4)


def test_every_image_has_rows_in_order(address: list[str], tmp_path: Path) -> None:
    """A folder is searched recursively; a failure has one row with the reason."""
    (tmp_path / "more").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("1.png", "more/2.TIF", "more/4.png"):
        (tmp_path / name).write_bytes(image_file("TIFF" if name.endswith("TIF") else "PNG"))
    (tmp_path / "more" / "3.jpg").write_bytes(b"no image")
    (tmp_path / "more" / "5.HEIC").write_bytes(HEIC)
    (tmp_path / "notes.txt").write_text("ignored")
    named = [f"{tmp_path}/nowhere.jpg", f"{tmp_path}/*.nothing", f"{tmp_path}/empty", ""]
    named += ["http://example.org/cat.jpg?size=1"]
    done = run("--format", "csv", "-k", 2, "--jobs", 4, *address, tmp_path, *named, COFFEE)
    assert done.status == 1
    files = ["1.png", "more/2.TIF", "more/3.jpg", "more/4.png", "more/5.HEIC"]
    rows = rows_of(done)
    images = list(dict.fromkeys(row["image"] for row in rows))
    assert images == [*(f"{tmp_path}/{file}" for file in files), *named, str(COFFEE)]
    labels = [row["label"] for row in rows if row["image"] == str(COFFEE)]
    assert labels[0] == LABEL and len(labels) == 2
    assert [row["rank"] for row in rows[:2]] == ["1", "2"] and 0 < float(rows[0]["score"]) < 1
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert errors == {
        f"{tmp_path}/more/3.jpg": f"{tmp_path}/more/3.jpg: Pillow cannot read this image.",
        f"{tmp_path}/more/5.HEIC": f"{tmp_path}/more/5.HEIC: HEIC is not supported: "
        "convert it to JPEG.",
        named[0]: f"Cannot read {named[0]}: No such file or directory.",
        named[1]: f"No images found in '{named[1]}'.",
        named[2]: f"No images found in '{named[2]}'.",
        "": "No images found in ''.",
        named[4]: f"URLs are not fetched: download {named[4]} and pass the file.",
    }
    assert done.errors.splitlines() == list(errors.values())


def test_every_format_that_the_server_accepts_is_found(server: LocalServer, tmp_path: Path) -> None:
    for kind in FORMATS:
        (tmp_path / f"image.{kind.lower()}").write_bytes(image_file(kind))
    (tmp_path / "image.jpg").write_bytes(image_file("JPEG"))
    for encoding in ("array", "image"):
        done = run("--json", "--encoding", encoding, "--url", server.url, tmp_path)
        assert (done.status, done.errors) == (0, "")
        assert len(json.loads(done.output)) == len(FORMATS) + 1


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_large_images_over_grpc(server: LocalServer, tmp_path: Path, encoding: str) -> None:
    """12 megapixels, as from a phone, get the same answer as over REST."""
    image = tmp_path / "large.jpg"
    Image.open(COFFEE).convert("RGB").resize((4000, 3000)).save(image)
    answers = [
        transport.ask(image, 3, encoding, embedding=True)
        for transport in (Grpc(server.grpc, "tinyvit"), Rest(server.url, "tinyvit"))
    ]
    (labels, scores), (expected_labels, expected_scores) = (
        zip(*answer.predictions, strict=True) for answer in answers
    )
    assert labels == expected_labels and labels[0] == LABEL and len(labels) == 3
    assert scores == pytest.approx(expected_scores, abs=1e-5)
    assert answers[0].embedding == pytest.approx(answers[1].embedding, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "status", "sentence"),
    [
        (["--model", "none"], 1, "none is not ready: "),
        (["--model", "none", "--grpc"], 1, "not found"),
        (["-k", "five"], 2, "invalid int value: 'five'"),
        (["--embeddings", "none/a.npz"], 2, "Cannot write none/a.npz: its folder does not exist"),
        (["--embeddings", "/tmp"], 2, "Cannot write /tmp: it is a folder."),
        (["--jobs", "0"], 2, "--top-k and --jobs must be at least 1"),
        (["--retries", "-1"], 2, "--retries at least 0"),
        (["--encoding", "jpeg"], 2, "invalid choice: 'jpeg'"),
        (["--url", "localhost:8080"], 2, "Invalid server URL 'localhost:8080': expected http://"),
        (["--url", "http://a..b"], 1, "No server answers at http://a..b"),
        (["--model", "tinyvit#x"], 1, "tinyvit%23x is not ready"),
        (["n" * 300], 1, "File name too long"),
        (["--grpc", "http://localhost:8081"], 2, "Invalid gRPC target 'http://localhost:8081'"),
    ],
)
def test_refusals(server: LocalServer, options: list[str], status: int, sentence: str) -> None:
    options = [*options, server.grpc] if options[-1] == "--grpc" else options
    done = run("--url", server.url, *options, CAT)
    assert done.status == status
    assert sentence in done.errors.splitlines()[-1]
    assert done.errors.count("\n") == 1 or "usage: " in done.errors


def test_interrupted_client_keeps_its_results(server: LocalServer) -> None:
    process = subprocess.Popen(
        [*CLASSIFY, "--json", "--encoding", "image", "--url", server.url, *[str(COFFEE)] * 3000],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline() for _ in range(4)]  # the bracket and three images
    process.send_signal(signal.SIGINT)
    output, errors = process.stdout.read(), process.stderr.read()
    assert (process.wait(60), errors) == (130, "Interrupted: the results above are complete.\n")
    assert 3 <= len(json.loads("".join(lines) + output)) < 3000


def test_a_second_interrupt_ends_a_client_whose_server_hangs() -> None:
    """Metadata is answered, inference is not."""
    asked, end = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        end.wait(60)

    with scripted(hang) as url:
        process = subprocess.Popen(
            [*CLASSIFY, "--url", url, str(COFFEE)], stdout=subprocess.DEVNULL
        )
        assert asked.wait(60)
        while process.poll() is None:  # the first signal may come before the second can end it
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.returncode == -signal.SIGINT
        end.set()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(server: LocalServer) -> None:
    def peak(count: int) -> int:
        """Return the maximum resident kilobytes."""
        code = (
            "import resource, sys; from client.classify import main; main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        options = ["--format", "csv", "--jobs", "4", "--url", server.url, "--encoding", "image"]
        done = run_program(sys.executable, "-c", code, *options, *[COFFEE] * count, timeout=300)
        assert done.output.count("\n") == 1 + 5 * count
        return int(done.errors)

    assert peak(1000) < 1.15 * peak(10)


@pytest.mark.slow
def test_it_runs_by_its_name_from_anywhere(server: LocalServer) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    assert LABEL in output_of(CLASSIFY[1], "--url", server.url, COFFEE, cwd="/", env=environment)


@pytest.mark.slow
def test_examples_of_the_help_run(server: LocalServer, tmp_path: Path) -> None:
    examples = re.findall(r"^  python (.+)$", EPILOG, re.M)
    assert len(examples) == 6
    for example in examples:
        command = example.replace("localhost:8081", server.grpc).partition(" > ")[0]
        words = shlex.split(command.replace("imgs.npz", str(tmp_path / "imgs.npz")))
        address = [] if "--grpc" in words else ["--url", server.url]
        assert output_of(sys.executable, *words, *address), example


@pytest.mark.slow
def test_progress_bar_on_a_terminal(server: LocalServer) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*CLASSIFY, "--url", server.url, str(CAT), str(COFFEE)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO is how a pseudo-terminal ends
        while chunk := os.read(ours, 65536):
            shown += chunk
    assert b"2/2" in shown
    assert LABEL.encode() in done.stdout and b"\r" not in done.stdout


def test_requests_alone_suffices_for_files(server: LocalServer) -> None:
    done = without_packages("--encoding", "image", "--url", server.url, COFFEE, CAT)
    assert (done.status, done.errors) == (0, "")
    assert LABEL in done.output


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ([], "numpy"),
        (["--encoding", "image", "--grpc", "localhost:1"], "grpc"),
        (["--encoding", "image", "--embeddings", "no.npz"], "numpy"),
    ],
)
def test_a_missing_package_is_reported_before_anything_is_sent(
    options: list[str], module: str
) -> None:
    """No server runs at this address."""
    done = without_packages("--url", "http://localhost:1", *options, COFFEE)
    assert (done.status, done.output, done.errors.count("\n")) == (2, "", 1)
    assert f"Module {module} is not installed: `pip install " in done.errors


def without_packages(*arguments: object) -> Run:
    """Run classify.py where only requests is installed."""
    code = """
import importlib.abc, runpy, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlserver", "numpy", "PIL", "tqdm", "grpc", "pydantic"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv = ["client/classify.py", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    return run_program(sys.executable, "-c", code, *arguments)
