"""Four folders of settings in one server: one pool, timm's answers, nothing lost under load."""

import io
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests
from PIL import Image

from client.local import LocalServer
from tests.support.client_threads import ClientThreads
from tests.support.clients import CAT, classify, decoders, repository, until
from tests.support.paths import SAMPLE
from tests.support.servers import Serve, add_hook, write_model
from tests.support.timm_reference import make_checkpoint, timm_reference

IMAGE = CAT.read_bytes()
THREADS = 2
SHAPES = ["circle", "square", "star", "moon"]


@dataclass(frozen=True)
class Served:
    """A model of the repository."""

    name: str
    version: str
    uri: Path
    checkpoint: Path
    """Checkpoint from which timm computes the same answers."""

    @property
    def path(self) -> str:
        return f"{self.name}/versions/{self.version}"

    def assert_matches_timm(self, response: requests.Response) -> None:
        """Assert that an answer has timm's labels and scores."""
        answer = response.json()
        names, scores = zip(*((each["label"], each["score"]) for each in answer), strict=True)
        image = Image.open(io.BytesIO(IMAGE)).convert("RGB")
        timm_reference(self.checkpoint).assert_matches(image, list(names), scores)


def make_repository(root: Path, models: list[Served]) -> Path:
    """Return a repository whose model folders hold model-settings.json only."""
    root.mkdir()
    add_hook(root, debug=False, parallel_workers=0)
    for model in models:
        write_model(
            root / f"{model.name}-{model.version}",
            model.name,
            parameters={
                "uri": str(model.uri),
                "version": model.version,
                "extra": {"num_threads": THREADS},
            },
        )
    return root


class Clients(ClientThreads):
    """Two clients for each model, which check every answer."""

    def __init__(self, server: LocalServer, models: list[Served]) -> None:
        super().__init__([partial(self._ask, model) for model in models * 2])
        self.server = server
        self.counts: Counter[tuple[str, str]] = Counter()
        """By model and outcome: `right`, a status, or the name of an exception."""

    def _ask(self, model: Served) -> None:
        while not self.ended.is_set():
            try:
                response = classify(self.server, IMAGE, model=model.path)
                outcome = str(response.status_code)
                if response.status_code == 200:
                    model.assert_matches_timm(response)
                    outcome = "right"
            except (requests.RequestException, AssertionError) as error:
                outcome = f"{type(error).__name__}: {error}"
            self.counts[model.path, outcome] += 1

    def progress(self, models: list[Served], answers: int = 6) -> None:
        """Wait for further right answers of each of these models."""
        goals = {model.path: self.counts[model.path, "right"] + answers for model in models}
        until(lambda: all(self.counts[path, "right"] >= goals[path] for path in goals), 60)


def test_four_models_under_load(
    serve: Serve, tmp_path: Path, small_checkpoint: Path, exported_sample: Path
) -> None:
    """Two checkpoints, an export and a second version; one is reloaded, one unloaded and back."""
    shapes = make_checkpoint(
        tmp_path / "checkpoint",
        classes=len(SHAPES),
        preprocessing={"input_size": (3, 96, 96)},
        label_names=SHAPES,
    )
    models = [
        Served("animals", "1", SAMPLE, SAMPLE),
        Served("animals", "2", exported_sample, SAMPLE),
        Served("small", "1", small_checkpoint, small_checkpoint),
        Served("shapes", "1", shapes, shapes),
    ]
    server = serve(folder=make_repository(tmp_path / "repository", models))
    *others, last = models
    with Clients(server, models) as clients:
        clients.progress(models)
        assert len(decoders(server)) == THREADS + 1
        for name in ("animals", "small"):
            assert repository(server, "load", name).status_code == 200
            clients.progress(models)
        assert repository(server, "unload", last.name).status_code == 200
        clients.progress(others)
        assert clients.counts[last.path, "404"], clients.counts
        assert repository(server, "load", last.name).status_code == 200
        clients.progress(models)
    bad = {key: count for key, count in clients.counts.items() if key[1] != "right"}
    assert set(bad) <= {(last.path, "404"), (last.path, "503")}, bad
    assert len(decoders(server)) == THREADS + 1
    assert server.stop() == 0
