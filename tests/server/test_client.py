"""The client as people run it: a real process against a real server."""

import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.classify import EPILOG, classify
from client.transport import Grpc, Rest
from tests.support.clients import FORMATS, image_file

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
    assert "out of reach" in done.stdout
    assert re.search(r"9[45]\.\d%\s+█{22,}\s+espresso$", done.stdout, re.M)
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
    assert {row["error"] for row in rows} == {""}


def test_csv_has_a_row_for_each_picture_that_failed(server, folder) -> None:
    pictures = folder / "00.png", folder / "05-broken.png", folder / "nowhere.png"
    done = run("--format", "csv", "--top-k", 1, "--url", server.url, *pictures)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1
    assert [row["image"] for row in rows] == list(map(str, pictures))
    assert [bool(row["label"]) for row in rows] == [True, False, False]
    assert [row["error"].rpartition(" ")[0] for row in rows[1:]] == [
        f"{pictures[1]} is no image that can be",
        f"{pictures[2]} cannot be read: No such file or",
    ]


def test_names_that_stand_for_no_picture_have_a_row(server, tmp_path) -> None:
    """The others are answered, and the working directory is not searched."""
    (tmp_path / "empty").mkdir()
    shutil.copy(COFFEE, tmp_path / "coffee.jpg")
    names = ["empty", "coffee.jpg", "*.nothing", ""]
    done = run("--format", "csv", "-k", 1, "--url", server.url, *names, cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1
    assert [row["image"] for row in rows] == names
    assert [row["label"] for row in rows] == ["", "espresso", "", ""]
    told = [f"There is no picture in '{name}'." for name in names if name != "coffee.jpg"]
    assert [row["error"] for row in rows if row["error"]] == told == done.stderr.splitlines()


def test_every_kind_of_file_that_the_server_takes_is_found_in_a_folder(server, tmp_path) -> None:
    for kind in FORMATS:
        (tmp_path / f"one.{kind.lower()}").write_bytes(image_file(kind))
    (tmp_path / "two.TIF").write_bytes(image_file("TIFF"))
    (tmp_path / "two.jpg").write_bytes(image_file("JPEG"))
    for encoding in ("array", "image"):
        done = run("--json", "--encoding", encoding, "--url", server.url, tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == len(FORMATS) + 2


@pytest.mark.parametrize("encoding", ["array", "image"])
def test_large_pictures_over_grpc(server, tmp_path, encoding) -> None:
    """Twelve megapixels, as cameras have them; the answer is REST's."""
    picture = tmp_path / "large.jpg"
    Image.open(COFFEE).convert("RGB").resize((4000, 3000)).save(picture)
    grpc, rest = Grpc(server.grpc, "tinyvit"), Rest(server.url, "tinyvit")
    answer = grpc.ask(picture, 3, encoding, embedding=True)
    expected = rest.ask(picture, 3, encoding, embedding=True)
    assert answer.predictions[0].label == "espresso" and len(answer.predictions) == 3
    assert [one.label for one in answer.predictions] == [one.label for one in expected.predictions]
    for ours, theirs in (
        ([one.score for one in answer.predictions], [one.score for one in expected.predictions]),
        (answer.embedding, expected.embedding),
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)


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
    said = process.stderr.read()
    assert (process.wait(60), said) == (130, "Interrupted; what is above was done.\n")
    assert 3 <= len(answers) < 3000


@pytest.mark.parametrize("interrupted", [True, False])
def test_interrupted_while_a_lock_changes_hands(interrupted) -> None:
    """Python then says that the lock is not held; whatever else says so has its traceback."""
    program = f"""
import sys, threading
from client import classify

def run(options):
    try:
        if {interrupted}:
            raise KeyboardInterrupt
    finally:
        threading.Lock().release()

classify.run, sys.argv = run, ["classify.py", "cat.jpg"]
sys.exit(classify.main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if interrupted:
        assert (done.returncode, done.stderr) == (130, "Interrupted; what is above was done.\n")
    else:
        assert done.returncode == 1 and "release unlocked lock" in done.stderr


def test_many_pictures_take_no_more_memory(server, folder) -> None:
    def peak(count: int) -> int:
        """Kilobytes resident at most."""
        code = (
            "import resource, sys; from client.classify import main; main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
        )
        pictures = [str(folder / "00.png")] * count
        options = ["--format", "csv", "--jobs", "4", "--url", server.url, "--encoding", "image"]
        done = subprocess.run(
            [sys.executable, "-c", code, *options, *pictures],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        assert done.stdout.count("\n") == 1 + 5 * count
        return int(done.stderr)

    assert peak(1000) < 1.15 * peak(10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-k", "0"], "'0' is not a whole number, 1 or more."),
        (["-k", "five"], "'five' is not a whole number, 1 or more."),
        (["--retries", "-1"], "'-1' is not a whole number, 0 or more."),
        (["--url", "localhost:8080"], "one begins with http:// or https://"),
        (["--url", "http://"], "one begins with http:// or https://"),
        (["--grpc", "http://localhost:8081"], "one is HOST:PORT without a scheme"),
        (["--grpc", "localhost"], "one is HOST:PORT without a scheme"),
    ],
)
def test_a_wrong_call_is_told_how_it_is_right(arguments, sentence) -> None:
    done = run(*arguments, CAT)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]


def test_it_is_a_program(server) -> None:
    """Run by its name, from anywhere, with the python of the path."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [CLASSIFY[1], "--url", server.url, str(COFFEE)],
        cwd="/",
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "espresso" in done.stdout


def test_help_examples_run(server, tmp_path) -> None:
    examples = re.findall(r"^  python (.+)$", EPILOG, re.M)
    assert len(examples) == 6
    for example in examples:
        command = example.replace("localhost:8081", server.grpc)
        for name in ("labels.csv", "imgs.npz"):
            command = command.replace(name, shlex.quote(str(tmp_path / name)))
        words = shlex.split(command)
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
