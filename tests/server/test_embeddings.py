"""The features that labels are told from are timm's, and the client gathers them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.local import LocalServer
from client.transport import Grpc, Rest, Transport
from tests.support.clients import COFFEE, LABEL
from tests.support.paths import ROOT
from tests.support.timm_reference import SAMPLE, TOLERANCE, truth

CAT = COFFEE.with_name("cat.jpg")


def features(picture: Path) -> np.ndarray:
    """timm's, `[D]`."""
    network = truth(SAMPLE).network
    with torch.inference_mode():
        x = truth(SAMPLE).transform(Image.open(picture).convert("RGB"))[None]
        return network.forward_head(network.forward_features(x), pre_logits=True)[0].numpy()


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_embedding_is_timms(server: LocalServer, kind: str) -> None:
    transport: Transport = (
        Rest(server.url, "tinyvit") if kind == "rest" else Grpc(server.grpc, "tinyvit")
    )
    answer = transport.ask(COFFEE, 3, "image", embedding=True)
    assert answer.predictions[0].label == LABEL and len(answer.predictions) == 3
    wanted = features(COFFEE)
    assert wanted.std() > 0.05, "all alike would prove nothing"
    np.testing.assert_allclose(answer.embedding, wanted, rtol=0, atol=TOLERANCE * wanted.max())
    assert transport.ask(COFFEE, 3, "image").embedding is None


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_embeddings_of_a_folder(server: LocalServer, tmp_path: Path, way: str) -> None:
    """In the order of the pictures, without those that are none."""
    (tmp_path / "broken.jpg").write_bytes(b"none")
    out = tmp_path / "features.npz"
    where = ["--url", server.url] if way == "rest" else ["--grpc", server.grpc]
    pictures = [str(CAT), str(tmp_path / "broken.jpg"), str(COFFEE)]
    command = [sys.executable, "client/classify.py", *where, "--embeddings", str(out), *pictures]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, "one of them is no picture"
    with np.load(out) as written:
        assert written["images"].tolist() == [str(CAT), str(COFFEE)]
        assert written["labels"][1] == LABEL
        wanted = np.stack([features(CAT), features(COFFEE)])
        assert written["embeddings"].dtype == np.float32
        atol = TOLERANCE * wanted.max()
        np.testing.assert_allclose(written["embeddings"], wanted, rtol=0, atol=atol)


def test_file_that_cannot_be_written(server: LocalServer, tmp_path: Path) -> None:
    out = tmp_path / "nowhere" / "features.npz"
    command = [sys.executable, "client/classify.py", "--url", server.url]
    done = subprocess.run(
        [*command, "--embeddings", str(out), str(CAT)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"Cannot write {out}: No such file or directory."]
