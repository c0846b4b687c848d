"""What a run of the benchmark has measured so far, on disk, so that it can be broken off."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

from inputs import ROOT
from results import Results, dump, load, no_results

MAX_AGE = 6 * 3600
"""Seconds after which figures of a broken-off run are too old to be compared with new ones."""


class Progress:
    """The state of a run, and the folder that it works in."""

    def __init__(self, folder: Path, settings: list[Any], fresh: bool = False) -> None:
        """Goes on with the last run where that had the same settings and the same code."""
        self.folder = folder
        self.results: Results = no_results()
        self.left_out: dict[str, str] = {}
        """Peers that failed, and why."""
        self.labels: dict[str, list[str]] = {}
        """The right answer for each network."""
        self.busy: list[float] = []
        """The share of the processor that others took before each round."""
        self._steps: list[str] = []
        self._key = [*settings, _code()]
        if fresh or not self._read():
            self.remove()
            folder.mkdir(parents=True)

    @property
    def _file(self) -> Path:
        return self.folder / "progress.json"

    def _read(self) -> bool:
        try:
            if time.time() - self._file.stat().st_mtime > MAX_AGE:
                return False
            content = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return False
        if content["key"] != self._key:
            return False
        self.results = load(content["results"])
        self.left_out, self.labels = content["left_out"], content["labels"]
        self.busy, self._steps = content["busy"], content["steps"]
        print(f"Going on after {self._steps[-1]}; --fresh begins anew.")
        return True

    def done(self, step: str) -> bool:
        """Whether this step was finished."""
        return step in self._steps

    def finish(self, step: str) -> None:
        """Keeps what was measured up to the end of this step."""
        self._steps.append(step)
        content = {
            "key": self._key,
            "results": dump(self.results),
            "left_out": self.left_out,
            "labels": self.labels,
            "busy": self.busy,
            "steps": self._steps,
        }
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps(content))
        draft.replace(self._file)

    def leave_out(self, server: str, engine: str, reason: str) -> None:
        """Forgets a peer's figures: they are not of the same rounds as the others'."""
        self.left_out[f"{server}, {engine}"] = reason
        for row in [row for row in self.results if (row.server, row.engine) == (server, engine)]:
            del self.results[row]

    def remove(self) -> None:
        """Forgets the run."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _code() -> str:
    """Names the code that is measured and measures."""
    digest = hashlib.sha256()
    for folder in ("benchmarks", "tinyvit", "client"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
