"""The weights that are asked for are the ones that are served, or it is said why not."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from checkpoint import CheckpointError, Source, describe, find_source, load_network
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo

from clients import COFFEE, body, infer, tensor
from conftest import ROOT, Serve, settings as copy_of_tinyvit
from local import LocalServer
from truth import SAMPLE, make_checkpoint, truth

CAT = COFFEE.with_name("cat.jpg")
REPOSITORY = "timm/somebody.finetuned"
REVISION = "0123456789abcdef0123456789abcdef01234567"
FALL_BACK_WITHIN = 15.0
NAMES = ["tabby", "coffee", "neither"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some other architecture, with names of its own; not to be changed."""
    return make_checkpoint(tmp_path_factory.mktemp("small") / "small", label_names=NAMES)


@pytest.fixture
def checkpoint(small: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


def edit(folder: Path, **values: Any) -> None:
    """Changes entries of a config.json; None takes one out."""
    content = json.loads((folder / "config.json").read_text()) | values
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def assert_one_sentence(error: Any) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 600, text


# --- Local checkpoints ------------------------------------------------------------------------


def test_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the settings' folder, wherever the server was started."""
    base = ROOT / "tinyvit"
    monkeypatch.chdir(tmp_path)
    for uri in ("sample", "./sample", "../tinyvit/sample", str(SAMPLE), SAMPLE.as_uri()):
        assert find_source(uri, REPOSITORY, None, base).folder == SAMPLE
    spaced = Path(shutil.copytree(SAMPLE, tmp_path / "a folder"))
    for uri in (str(spaced), spaced.as_uri()):
        assert find_source(uri, REPOSITORY, None, base).folder == spaced


@pytest.mark.parametrize(
    "uri", ["nowhere", "/nowhere/at/all", "s3://bucket/model", "sample/config.json"]
)
def test_uri_that_is_no_folder(uri: str) -> None:
    """An error, though there is a fallback."""
    with pytest.raises(CheckpointError) as failure:
        find_source(uri, REPOSITORY, "sample", ROOT / "tinyvit")
    assert_one_sentence(failure.value)


def facts(server: LocalServer) -> dict[str, Any]:
    return requests.get(f"{server.url}/v2/models/tinyvit", timeout=10).json()["parameters"]


def assert_serves(server: LocalServer, folder: Path) -> None:
    """That answers are timm's with these weights."""
    expected = truth(folder)
    for path in (CAT, COFFEE):
        outputs = infer(server, body(tensor(path.read_bytes()))).json()["outputs"]
        labels, scores = (output["data"] for output in outputs)
        assert set(labels) <= set(expected.labels)
        expected.assert_tells(Image.open(path).convert("RGB"), labels, scores)


def test_fine_tuned_folder(serve: Serve, tmp_path: Path) -> None:
    """Another input size, interpolation and labels than the sample's, by one variable."""
    folder = make_checkpoint(
        tmp_path / "finetuned",
        "tiny_vit_5m_224",
        classes=7,
        preprocessing={"input_size": (3, 96, 96), "crop_pct": 0.9, "interpolation": "bilinear"},
        model_args={"window_sizes": [4, 4, 4, 2]},
        label_names=[f"kind {i}" for i in range(7)],
    )
    server = serve(env={"MLSERVER_MODEL_URI": str(folder), "TINYVIT_ENGINE": "torch"})
    told = facts(server)
    assert told["weights"] == str(folder)
    assert not told["fallback"]
    assert (told["classes"], told["input_size"]) == (7, "3x96x96")
    assert_serves(server, folder)


# --- The hub ----------------------------------------------------------------------------------


def fill_cache(home: Path, folder: Path) -> None:
    """Puts a checkpoint where the hub's own client would, had it been downloaded."""
    cache = home / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = cache / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(REVISION)
    for i, name in enumerate(("config.json", "model.safetensors")):
        blob = cache / "blobs" / f"{i:040x}"
        shutil.copy(folder / name, blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)


def test_cached_model_offline(serve: Serve, tmp_path: Path, environment: Mapping[str, str]) -> None:
    """Another classifier by changing one setting, with no network at all."""
    checkpoint = make_checkpoint(tmp_path / "resnet", "resnet18", classes=10)
    edit(checkpoint, label_names=[f"n{i}" for i in range(10)])
    fill_cache(tmp_path / "home", checkpoint)
    folder = copy_of_tinyvit(tmp_path, workers=0)
    settings = json.loads((folder / "model-settings.json").read_text())
    settings["parameters"]["extra"]["pretrained_model"] = REPOSITORY
    (folder / "model-settings.json").write_text(json.dumps(settings))
    server = serve(folder=folder, env={"HF_HOME": str(tmp_path / "home")})
    told = facts(server)
    assert told["weights"] == REPOSITORY
    assert told["architecture"] == "resnet18"
    assert not told["fallback"]
    assert "FALLBACK" not in server.output()
    assert_serves(server, checkpoint)


FIND = f"""
import json, logging, sys, time
sys.path.insert(0, {str(ROOT / "tinyvit")!r})
from pathlib import Path
from checkpoint import CheckpointError, find_source

logging.basicConfig()
names, fallback = sys.argv[2:], sys.argv[1] or None
for name in names:
    started = time.monotonic()
    try:
        source = find_source(None, name, fallback, Path({str(ROOT / "tinyvit")!r}))
        found = dict(folder=str(source.folder), name=source.name, fallback=source.fallback)
    except CheckpointError as error:
        found = dict(error=str(error))
    print(json.dumps(found | dict(seconds=time.monotonic() - started)))
"""


class Finding(dict[str, Any]):
    """What find_source came to, in a process of its own, since the hub's client reads variables
    only once; with what it logged."""

    log: str


def find(endpoint: str, home: Path, fallback: str = "sample") -> Finding:
    return find_all(endpoint, home, [REPOSITORY], fallback)[0]


def find_all(endpoint: str, home: Path, names: list[str], fallback: str) -> list[Finding]:
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", FIND, fallback, *names],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    findings = [Finding(json.loads(line)) for line in done.stdout.splitlines()]
    for finding in findings:
        finding.log = done.stderr
    return findings


@contextmanager
def hub(files: Mapping[str, bytes] | int) -> Iterator[str]:
    """The address of a hub that has REPOSITORY with these files, or refuses all with a status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if isinstance(files, int):
                self.reply(files, b'{"error": "no"}')
            elif path.startswith(f"/api/models/{REPOSITORY}/tree"):
                entries = [
                    {"type": "file", "path": n, "size": len(f), "oid": "0" * 40}
                    for n, f in files.items()
                ]
                self.reply(200, json.dumps(entries).encode())
            elif path.startswith(f"/api/models/{REPOSITORY}"):
                siblings = [{"rfilename": n} for n in files]
                info = {"id": REPOSITORY, "sha": REVISION, "siblings": siblings, "tags": []}
                self.reply(200, json.dumps(info).encode())
            elif path == f"/{REPOSITORY}/resolve/{REVISION}/{name}" and name in files:
                self.reply(200, files[name], name)
            else:
                self.reply(404, b"{}")

        def reply(self, status: int, content: bytes, name: str = "json") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/json")
            if status == 200:
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{name}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def black_hole() -> Iterator[str]:
    """The address of something that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


UNREACHABLE = {
    "silent": black_hole,
    "closed": closed_port,
    "broken": lambda: hub(502),
}


def test_download(small: Path, tmp_path: Path) -> None:
    """From the hub once, and from its cache where the hub cannot be reached later. Only what is
    needed is fetched."""
    files = {path.name: path.read_bytes() for path in small.iterdir()}
    with hub(files | {"pytorch_model.bin": b"pickle"}) as endpoint:
        found = find(endpoint, tmp_path)
    assert found["name"] == REPOSITORY and not found["fallback"], found.log
    folder = Path(found["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    with closed_port() as endpoint:
        again = find(endpoint, tmp_path)
    assert again["folder"] == found["folder"] and not again["fallback"]


@pytest.mark.parametrize("how", UNREACHABLE)
def test_hub_out_of_reach(tmp_path: Path, how: str) -> None:
    """It is found out in time, and said once."""
    with UNREACHABLE[how]() as endpoint:
        found = find(endpoint, tmp_path)
    assert found["fallback"] and found["name"] == "sample"
    assert found["folder"] == str(SAMPLE)
    assert found["seconds"] < FALL_BACK_WITHIN
    assert found.log.count("SERVING THE FALLBACK") == 1


def test_cache_wins_over_the_fallback(small: Path, tmp_path: Path) -> None:
    with closed_port() as endpoint:
        without = find(endpoint, tmp_path, fallback="")
        assert REPOSITORY in without["error"] and "extra.fallback" in without["error"]
        fill_cache(tmp_path, small)
        cached = find(endpoint, tmp_path)
        assert cached["name"] == REPOSITORY and not cached["fallback"]
        assert REVISION in cached["folder"] and "FALLBACK" not in cached.log


@pytest.mark.parametrize("status", [401, 404])
def test_hub_refuses(tmp_path: Path, status: int) -> None:
    """A model that the hub does not have, or not for us: to serve another would be a surprise."""
    with hub(status) as endpoint:
        found = find(endpoint, tmp_path)
    assert REPOSITORY in found["error"]
    assert_one_sentence(found["error"])


def test_names_that_no_hub_has(tmp_path: Path) -> None:
    names = ["not a name", "a/b/c", "timm/..", ""]
    with closed_port() as endpoint:
        for found in find_all(endpoint, tmp_path, names, "sample"):
            assert "Name one such as" in found["error"]


def test_hub_without_safetensors(tmp_path: Path) -> None:
    """Pickles run code when they are read; they are not even fetched."""
    with hub({"config.json": b"{}", "pytorch_model.bin": b"pickle"}) as endpoint:
        found = find(endpoint, tmp_path)
    assert "model.safetensors" in found["error"]
    assert not list(tmp_path.rglob("pytorch_model.bin"))


def test_fallback_is_told_once(server: LocalServer) -> None:
    assert server.output().count("SERVING THE FALLBACK") == 1
    assert facts(server)["fallback"] is True
    assert facts(server)["weights"] == "sample"


# --- Broken checkpoints -----------------------------------------------------------------------


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{'architecture': ")


def json_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def empty_json(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(bytes(range(256)))


def unknown_architecture(folder: Path) -> None:
    edit(folder, architecture="tiny_vit_6m_225")


def no_architecture(folder: Path) -> None:
    edit(folder, architecture=None)


def another_architecture(folder: Path) -> None:
    edit(folder, architecture="mobilenetv3_small_100")


def truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def other_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors")


def too_few_labels(folder: Path) -> None:
    edit(folder, label_names=NAMES[:-1])


def too_many_labels(folder: Path) -> None:
    edit(folder, label_names=[*NAMES, "more"])


def labels_with_a_gap(folder: Path) -> None:
    edit(folder, label_names={"0": "a", "1": "b", "3": "d"})


def labels_that_are_none(folder: Path) -> None:
    edit(folder, label_names="tabby")


def labels_of_numbers(folder: Path) -> None:
    edit(folder, label_names=[1, 2, 3])


def other_class_count(folder: Path) -> None:
    edit(folder, num_classes=4, label_names=[*NAMES, "more"], model_args={"num_classes": 4})


def labels_half_described(folder: Path) -> None:
    edit(folder, label_descriptions={NAMES[0]: "a cat"})


BREAKS: list[Callable[[Path], None]] = [
    without_config,
    without_weights,
    only_a_pickle,
    no_json,
    json_of_another_kind,
    empty_json,
    binary_config,
    unknown_architecture,
    no_architecture,
    another_architecture,
    truncated_weights,
    empty_weights,
    other_weights,
    not_a_number,
    too_few_labels,
    too_many_labels,
    labels_with_a_gap,
    labels_that_are_none,
    labels_of_numbers,
    other_class_count,
    labels_half_described,
]


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__)
def test_broken_checkpoint(checkpoint: Path, break_it: Callable[[Path], None]) -> None:
    """Never a reason to serve something else: an error, which names the folder."""
    break_it(checkpoint)
    with pytest.raises(CheckpointError) as failure:
        source = find_source(str(checkpoint), REPOSITORY, "sample", ROOT / "tinyvit")
        describe(source)
        load_network(source)
    assert str(checkpoint) in str(failure.value)
    assert_one_sentence(failure.value)


def test_checkpoint_for_grey_pictures(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "grey", model_args={"in_chans": 1}, label_names=NAMES)
    with pytest.raises(CheckpointError, match="only RGB") as failure:
        describe(Source(folder, "it"))
    assert_one_sentence(failure.value)


# --- Labels -----------------------------------------------------------------------------------


def labels(folder: Path) -> list[str]:
    return describe(Source(folder, "it")).labels


@pytest.mark.parametrize(
    "names", [NAMES, dict(enumerate(NAMES)), {2: NAMES[2], 0: NAMES[0], 1: NAMES[1]}]
)
def test_label_names(checkpoint: Path, names: Any) -> None:
    edit(checkpoint, label_names=names)
    assert labels(checkpoint) == NAMES


def test_label_descriptions(checkpoint: Path) -> None:
    """What people read, where there is such a thing besides the names."""
    described = {"n3": "neither", "n1": "cat", "n2": "a cup"}
    edit(checkpoint, label_names=["n1", "n2", "n3"], label_descriptions=described)
    assert labels(checkpoint) == ["cat", "a cup", "neither"]


def test_labels_of_nobody(checkpoint: Path) -> None:
    edit(checkpoint, label_names=None)
    assert labels(checkpoint) == ["0", "1", "2"]


def of_classes(folder: Path, count: int) -> list[str]:
    edit(folder, label_names=None, num_classes=count)
    return labels(folder)


@pytest.mark.parametrize(
    ("count", "subset"), [(1000, "imagenet-1k"), (21841, "imagenet-22k"), (11821, "imagenet-12k")]
)
def test_labels_of_imagenet(checkpoint: Path, count: int, subset: str) -> None:
    assert of_classes(checkpoint, count) == ImageNetInfo(subset).label_descriptions()


def test_order_of_imagenet_1k(checkpoint: Path) -> None:
    """Some that everybody knows by number."""
    told = of_classes(checkpoint, 1000)
    known = {0: "tench", 207: "golden retriever", 281: "tabby", 504: "coffee mug", 985: "daisy"}
    assert {i: told[i].split(",")[0] for i in known} == known


FROM_1K_TO_22K = {
    0: 359,
    1: 368,
    2: 460,
    3: 475,
    28: 908,
    29: 910,
    281: 2397,
    282: 2398,
    995: 21179,
    996: 21194,
    997: 21198,
    998: 21367,
    999: 21815,
}
"""Some lines of imagenet_1kto22k.txt, which the TinyViT authors fine-tuned with:
github.com/microsoft/Cream, TinyViT/imagenet_1kto22k.txt."""


def test_order_of_imagenet_22k(checkpoint: Path) -> None:
    """The order TinyViT was trained with; timm knows another one of nearly the same length."""
    few, many = of_classes(checkpoint, 1000), of_classes(checkpoint, 21841)
    assert len(many) == 21841
    for one, other in FROM_1K_TO_22K.items():
        assert many[other] == few[one]
    synsets = ImageNetInfo("imagenet-22k").label_names()
    assert synsets == sorted(synsets), "as the folders of the data set are read"
    assert ImageNetInfo("imagenet-22k-ms").label_names() != synsets


# --- What timm says of preprocessing ----------------------------------------------------------


def test_description(tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "it",
        preprocessing={
            "input_size": (3, 72, 56),
            "crop_pct": 0.875,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
        },
        label_names=NAMES,
    )
    told = describe(Source(folder, "it"))
    assert told.input_size == (72, 56)
    assert (told.crop_pct, told.crop_mode, told.interpolation) == (0.875, "squash", "bilinear")
    assert told.mean == (0.5, 0.4, 0.3) and told.std == (0.2, 0.3, 0.4)
    assert told.architecture == "mobilenetv3_small_050"


def test_digest_changes_with_every_byte(checkpoint: Path) -> None:
    seen = {Source(checkpoint, "it").digest()}
    for name in ("config.json", "model.safetensors"):
        content = bytearray((checkpoint / name).read_bytes())
        content[-1] ^= 1
        (checkpoint / name).write_bytes(content)
        seen.add(Source(checkpoint, "another name").digest())
    assert len(seen) == 3


def test_weights_are_timms(small: Path) -> None:
    network = load_network(Source(small, "it"))
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64))).float()
    with torch.inference_mode():
        torch.testing.assert_close(network(x), truth(small).network(x))
