"""The client writes the embeddings of a folder, which are timm's."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.local import LocalServer
from tests.support.client import run
from tests.support.clients import CAT, COFFEE, LABEL
from tests.support.timm_reference import TOLERANCE, timm_reference


@pytest.mark.parametrize("transport", ["--url", "--grpc"])
def test_embeddings_are_in_the_images_order(
    server: LocalServer, tmp_path: Path, transport: str
) -> None:
    broken, out = tmp_path / "broken.jpg", tmp_path / "features.npz"
    broken.write_bytes(b"no image")
    address = server.url if transport == "--url" else server.grpc
    done = run("--embeddings", out, transport, address, CAT, broken, COFFEE)
    assert done.status == 1, "one of the files is not an image"
    with np.load(out) as written:
        assert written["images"].tolist() == [str(CAT), str(COFFEE)]
        assert written["labels"][1] == LABEL
        assert written["embeddings"].dtype == np.float32
        expected = np.stack(
            [timm_reference().features(Image.open(path).convert("RGB")) for path in (CAT, COFFEE)]
        )
        assert expected.std() > 0.05, "equal features would prove nothing"
        atol = TOLERANCE * expected.max()
        np.testing.assert_allclose(written["embeddings"], expected, rtol=0, atol=atol)
