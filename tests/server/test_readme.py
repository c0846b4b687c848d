"""The README tells the truth: its listings are the files, its commands run and print what it says.

A fenced block is run where `<!-- run -->` stands before it, with the server's real address; the
block after it, if it is text or JSON, must be its output, in which `...` stands for anything.
`python tests/server/test_readme.py` writes the listings anew.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import requests

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FENCE = re.compile(
    r"(?:<!-- (?P<mark>run|run: fails|listing: (?P<path>\S+)) -->\n)?```(?P<language>\w*)\n"
    r"(?P<body>.*?)^```$",
    re.M | re.S,
)


class Block(NamedTuple):
    mark: str
    language: str
    body: str
    start: int
    end: int


def blocks() -> list[Block]:
    found = FENCE.finditer(README.read_text())
    return [Block(m["mark"] or "", m["language"], m["body"], *m.span()) for m in found]


def runnable() -> list[tuple[Block, Block | None]]:
    """The blocks that are run, each with its output where that comes directly after it."""
    everything = blocks()
    return [
        (block, after if after and after.start == block.end + 1 and not after.mark else None)
        for block, after in zip(everything, [*everything[1:], None], strict=True)
        if block.mark.startswith("run")
    ]


def listings() -> list[tuple[str, str]]:
    return [(m["path"], m["body"]) for m in FENCE.finditer(README.read_text()) if m["path"]]


@pytest.mark.parametrize(("path", "body"), listings(), ids=[path for path, _ in listings()])
def test_listings_are_the_files(path: str, body: str) -> None:
    assert body == (ROOT / path).read_text(), "python tests/server/test_readme.py writes it anew"


@pytest.mark.parametrize(
    ("block", "output"),
    runnable(),
    ids=[block.body.strip().splitlines()[-1][:40] for block, _ in runnable()],
)
def test_commands_run_and_print_what_is_said(block, output, server, environment, tmp_path) -> None:
    command = re.sub(r"(?:http://)?localhost:8080", server.url, block.body)
    command = command.replace("localhost:8082", f"127.0.0.1:{server.metrics_port}")
    program = [sys.executable, "-c"] if block.language == "python" else ["bash", "-ec"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*program, command],
        cwd=ROOT,
        env={**os.environ, **environment, "PATH": path, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == (block.mark == "run: fails"), said
    if output:
        assert matches(output.body, said), f"{said}\n--- is not ---\n{output.body}"


def matches(expected: str, actual: str) -> bool:
    pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, actual.strip(), re.S) is not None


def test_every_file_it_links_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_every_section_it_names_exists() -> None:
    text = README.read_text()
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_every_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"`?make ([a-z][a-z-]+)", README.read_text())) - {"a"}
    known = set(re.findall(r"^([a-z][a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert targets <= known


def test_mlserver_batching_loses_answers_of_the_straightforward_runtime(serve, tmp_path) -> None:
    """The experiment of the fourth turn: eight clients at once, and one batch
    of them: the first gets all five labels."""
    folder = _straightforward(tmp_path, max_batch_size=8, max_batch_time=2.0)
    server = serve(folder=folder)
    assert sorted(_eight_cats(server, "straightforward")) == [0] * 7 + [5]


def test_the_same_settings_lose_nothing_here(serve, tmp_path) -> None:
    folder = tmp_path / "tinyvit"
    _copy(ROOT / "tinyvit", folder, max_batch_size=8, max_batch_time=0.1)
    assert _eight_cats(serve(folder=folder), "tinyvit") == [5] * 8


def _eight_cats(server, model: str) -> list[int]:
    """How many labels each of eight simultaneous requests is answered."""
    import numpy as np
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest
    from PIL import Image

    pixels = np.asarray(Image.open(ROOT / "imgs" / "cat.jpg").convert("RGB").resize((60, 40)))
    request = InferenceRequest(inputs=[NumpyCodec.encode_input("payload", pixels)]).model_dump()

    def one(_: int) -> int:
        url = f"{server.url}/v2/models/{model}/infer"
        answer = requests.post(url, json=request, timeout=60)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["outputs"][0]["data"])

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(8)))


def _straightforward(tmp_path: Path, **settings: float) -> Path:
    folder = tmp_path / "straightforward"
    _copy(ROOT / "benchmarks" / "peers" / "straightforward", folder, **settings)
    path = folder / "model-settings.json"
    content = json.loads(path.read_text())
    content["parameters"] = {"uri": str(_imagenet(tmp_path / "checkpoint"))}
    path.write_text(json.dumps(content))
    return folder


def _imagenet(folder: Path) -> Path:
    """A checkpoint with ImageNet's classes, whose labels the straightforward runtime knows."""
    import timm

    timm.models.save_for_hf(
        timm.create_model("mobilenetv3_small_050"), str(folder), safe_serialization=True
    )
    return folder


def _copy(source: Path, folder: Path, **settings: float) -> None:
    import shutil

    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "model-settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def write_listings() -> None:
    """Puts the files into the README's listings."""

    def fill(match: "re.Match[str]") -> str:
        if not match["path"]:
            return match[0]
        text = (ROOT / match["path"]).read_text()
        return textwrap.dedent(f"<!-- listing: {match['path']} -->\n```{match['language']}\n") + (
            f"{text}```"
        )

    README.write_text(FENCE.sub(fill, README.read_text()))


if __name__ == "__main__":
    write_listings()
