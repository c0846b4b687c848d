"""The client as people run it: a real process against a real server."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from classify import EPILOG, classify
from local import free_ports
from transport import ClientError, Grpc

ROOT = Path(__file__).resolve().parents[2]
CAT, COFFEE = ROOT / "imgs" / "cat.jpg", ROOT / "imgs" / "coffee.jpg"
CLASSIFY = [sys.executable, str(ROOT / "client" / "classify.py")]


def run(*arguments: object, **options) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*CLASSIFY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twelve pictures in two folders, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    noise = np.random.default_rng(0)
    for i in range(11):
        pixels = noise.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
        place = folder / "more" if i % 2 else folder
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    (folder / "05-broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def scores(done) -> list[tuple[str, float]]:
    return [
        (p["label"], p["score"])
        for one in json.loads(done.stdout)
        for p in one.get("predictions", [])
    ]


def test_names_coffee_in_a_table(server) -> None:
    done = run("--url", server.url, COFFEE)
    assert done.returncode == 0
    assert "weights sample" in done.stdout
    assert "fallback" in done.stdout
    assert re.search(r"86\.\d%\s+█{19,}\s+espresso$", done.stdout, re.M)
    assert done.stderr == ""


def test_encodings_and_protocols_agree(server) -> None:
    ways = [
        ("--encoding", "array"),
        ("--encoding", "image"),
        ("--encoding", "array", "--grpc", server.grpc),
        ("--encoding", "image", "--grpc", server.grpc),
    ]
    answers = [scores(run("--json", "--url", server.url, *way, CAT, COFFEE)) for way in ways]
    assert len(answers[0]) == 10
    for other in answers[1:]:
        assert [label for label, _ in other] == [label for label, _ in answers[0]]
        assert [s for _, s in other] == pytest.approx([s for _, s in answers[0]], abs=1e-4)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_encodings_agree_on_odd_pictures(server, tmp_path, mode, orientation) -> None:
    picture = tmp_path / "odd.png"
    image = Image.open(COFFEE).resize((90, 60)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(picture, exif=exif)
    by_array = classify(picture, url=server.url)
    by_file = classify(picture, url=server.url, encoding="image")
    assert [p.label for p in by_array] == [p.label for p in by_file]
    assert [p.score for p in by_array] == pytest.approx([p.score for p in by_file], abs=1e-4)


def test_top_k(server) -> None:
    assert len(scores(run("--json", "--top-k", 3, "--url", server.url, COFFEE))) == 3
    assert len(classify(COFFEE, url=server.url, top_k=7)) == 7


@pytest.mark.parametrize("way", [[], ["--grpc"]], ids=["rest", "grpc"])
def test_a_bad_file_is_reported_and_the_rest_go_on(server, folder, way) -> None:
    way = [*way, server.grpc] if way else way
    done = run("--json", "--jobs", 4, "--url", server.url, "--encoding", "image", *way, folder)
    assert done.returncode == 1
    answers = json.loads(done.stdout)
    names = [Path(one["image"]).name for one in answers]
    assert names == [p.name for p in sorted(folder.rglob("*.png"))]
    broken = [one for one in answers if "error" in one]
    assert [Path(one["image"]).name for one in broken] == ["05-broken.png"]
    assert all(len(one["predictions"]) == 5 for one in answers if one not in broken)
    assert done.stderr.count("\n") == 1
    assert "05-broken.png" in done.stderr


def test_csv(server, folder) -> None:
    done = run("--format", "csv", "--url", server.url, folder / "00.png", f"{folder}/more/*.png")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0
    assert len(rows) == 6 * 5
    assert [row["rank"] for row in rows[:5]] == list("12345")
    assert 0 < float(rows[0]["score"]) < 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.jpg"], "cannot be read"),
        (["*.nothing"], "no picture"),
        ([__file__], "no image"),
        ([CAT, "--model", "none"], "no model 'none'"),
        ([CAT, "--top-k", "9999"], "from 1 to 1000"),
        ([CAT, "--encoding", "image", "--model", "none", "--grpc"], "not found"),
    ],
)
def test_one_sentence_and_an_exit_status(server, arguments, sentence) -> None:
    way = [server.grpc] if arguments[-1] == "--grpc" else []
    done = run("--url", server.url, *arguments, *way)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_server_down() -> None:
    (port,) = free_ports(1)
    done = run("--url", f"http://127.0.0.1:{port}", CAT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "No server answers" in done.stderr
    with pytest.raises(ClientError, match="No server answers"):
        classify(CAT, url=f"http://127.0.0.1:{port}")


def test_not_ready(serve, tmp_path) -> None:
    """Asked while the network is being converted, which takes seconds."""
    server = serve(env={"TINYVIT_CACHE_DIR": str(tmp_path / "empty")}, ready=False)
    deadline = time.monotonic() + 60
    while "Converting" not in server.output():
        assert time.monotonic() < deadline, server.output()
        time.sleep(0.02)
    done = run("--url", server.url, CAT)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "not ready" in done.stderr


def test_busy_server_is_tried_again(serve, folder) -> None:
    server = serve(env={"TINYVIT_MAX_QUEUE": "1"})
    pictures = [folder / "00.png"] * 40
    done = run("--json", "--jobs", 8, "--retries", 20, "--url", server.url, *pictures)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 40
    assert "refused request" in server.output()


def test_broken_connection_is_tried_again(server) -> None:
    """Through a proxy that resets the first connection that posts."""
    with Breaking(server.http_port) as url:
        done = run("--json", "--url", url, COFFEE)
    assert done.returncode == 0, done.stderr
    assert scores(done)[0][0] == "espresso"


class Breaking:
    """An HTTP proxy that resets the connection of the first POST instead of answering it."""

    def __init__(self, port: int) -> None:
        import requests

        broken: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.forward("GET", None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not broken:
                    broken.append(self.path)
                    linger = b"\x01\0\0\0\0\0\0\0"
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    return
                self.forward("POST", body)

            def forward(self, verb: str, body: "bytes | None") -> None:
                headers = {"Content-Type": self.headers.get("Content-Type", "")}
                url = f"http://127.0.0.1:{port}{self.path}"
                answer = requests.request(verb, url, data=body, headers=headers, timeout=60)
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def finish(self) -> None:
                if not self.wfile.closed and not broken[1:]:
                    with contextlib.suppress(OSError, ValueError):
                        super().finish()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_interrupted_keeps_what_is_done(server, folder) -> None:
    pictures = [str(folder / "00.png")] * 3000
    process = subprocess.Popen(
        [*CLASSIFY, "--json", "--encoding", "image", "--url", server.url, *pictures],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    begun = [process.stdout.readline() for _ in range(4)]  # the bracket and some pictures
    process.send_signal(signal.SIGINT)
    answers = json.loads("".join(begun) + process.stdout.read())
    assert process.wait(60) == 130
    assert 3 <= len(answers) < 3000
    assert process.stderr.read() == "Interrupted; what is above was done.\n"


def test_many_pictures_take_no_more_memory(server, folder) -> None:
    def peak(count: int) -> int:
        """Kilobytes resident at most."""
        code = (
            "import resource, sys; sys.argv[0] = 'classify.py'; from classify import main; main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        pictures = [str(folder / "00.png")] * count
        options = ["--format", "csv", "--jobs", "4", "--url", server.url, "--encoding", "image"]
        done = subprocess.run(
            [sys.executable, "-c", code, *options, *pictures],
            cwd=ROOT / "client",
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert done.stdout.count("\n") == 1 + 5 * count
        return int(done.stderr)

    assert peak(1000) < 1.15 * peak(10)


def test_help_examples_run(server, tmp_path) -> None:
    examples = re.findall(r"^  python (.+)$", EPILOG, re.M)
    assert len(examples) == 5
    for example in examples:
        command = example.replace("localhost:8081", server.grpc)
        words = shlex.split(command.replace("labels.csv", shlex.quote(str(tmp_path / "out.csv"))))
        address = [] if "--grpc" in words else ["--url", server.url]
        words = words[: words.index(">")] if ">" in words else words
        done = subprocess.run(
            [sys.executable, *words, *address],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, (example, done.stderr)
        assert done.stdout


def test_progress_bar_only_on_a_terminal(server, folder) -> None:
    pictures = [folder / "00.png", folder / "02.png"]
    assert run("--url", server.url, *pictures).stderr == ""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run(
        [*CLASSIFY, "--url", server.url, *map(str, pictures)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
        check=True,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO is how a pseudo-terminal ends
        while chunk := os.read(ours, 65536):
            shown += chunk
    assert b"2/2" in shown


def test_grpc_server_down() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ClientError, match="No gRPC server answers"):
        Grpc(f"127.0.0.1:{port}", "tinyvit").facts()


def test_demo_serves_names_and_stops(environment) -> None:
    done = subprocess.run(
        [sys.executable, "client/demo.py", "imgs/coffee.jpg"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "espresso" in done.stdout
    port = int(re.search(r"127\.0\.0\.1:(\d+)", done.stdout)[1])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_leaves_nothing_running(environment, sig) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "client/demo.py"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert "Starting" in process.stdout.readline()
    deadline = time.monotonic() + 60
    while not (children := _children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(sig)
    process.communicate(timeout=60)
    assert process.returncode in (130, 143)
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]
