"""Answers over REST and gRPC are timm's, for every way to send a picture."""

import functools
import io
from typing import Any

import numpy as np
import pytest
import requests
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.types import InferenceResponse
from PIL import Image

from clients import (
    COFFEE,
    LABEL,
    body,
    classify,
    image_file,
    infer,
    message,
    stub,
    tensor,
    text,
)
from conftest import Serve
from local import LocalServer
from truth import TOLERANCE, truth

CAT = COFFEE.with_name("cat.jpg")
CLASSES = 200
RNG = np.random.default_rng(1)


def photo(width: int, height: int, path: Any = CAT) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((width, height)))


def pixels(array: np.ndarray, datatype: str = "UINT8") -> dict[str, Any]:
    return tensor(array.ravel().tolist(), list(array.shape), datatype)


def answers(server: LocalServer, request: Any) -> list[tuple[list[str], list[float]]]:
    """Labels and scores of each image."""
    response = infer(server, request)
    assert response.status_code == 200, response.text
    labels, scores = response.json()["outputs"]
    assert (labels["name"], labels["datatype"]) == ("labels", "BYTES")
    assert (scores["name"], scores["datatype"]) == ("scores", "FP32")
    assert labels["shape"] == scores["shape"]
    count, k = labels["shape"]
    assert len(labels["data"]) == len(scores["data"]) == count * k
    return [(labels["data"][i : i + k], scores["data"][i : i + k]) for i in range(0, count * k, k)]


def assert_true(server: LocalServer, request: Any, *pictures: Image.Image, k: int = 5) -> None:
    """That the answer is timm's for these pictures, in this order."""
    told = answers(server, request)
    assert len(told) == len(pictures)
    for picture, (labels, scores) in zip(pictures, told, strict=True):
        assert len(labels) == k
        truth().assert_tells(picture, labels, scores)


# --- Arrays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(451, 300), (300, 451), (64, 64), (63, 65), (1, 1), (2, 3), (500, 8), (8, 500)]
)
def test_arrays(either_server: LocalServer, size: tuple[int, int]) -> None:
    array = photo(*size)
    picture = Image.fromarray(array)
    assert_true(either_server, body(pixels(array)), picture)
    assert_true(either_server, body(pixels(array[None])), picture)


@pytest.mark.parametrize("count", [2, 9])
def test_array_batches(either_server: LocalServer, count: int) -> None:
    """Also of more images than the engine's batch holds."""
    arrays = np.stack([np.roll(photo(70, 50), 7 * i, axis=1) for i in range(count)])
    assert_true(either_server, body(pixels(arrays)), *map(Image.fromarray, arrays))


def test_grey_arrays(either_server: LocalServer) -> None:
    grey = photo(70, 50)[:, :, :1]
    picture = Image.fromarray(grey.repeat(3, axis=2))
    assert_true(either_server, body(pixels(grey)), picture)
    assert_true(either_server, body(pixels(np.stack([grey] * 2))), picture, picture)


def test_arrays_with_alpha(either_server: LocalServer) -> None:
    """What is transparent is white."""
    colour = photo(70, 50)
    alpha = np.where(np.arange(70) % 20 < 10, 255, 0)[None, :, None].repeat(50, axis=0)
    expected = Image.fromarray(np.where(alpha, colour, 255).astype(np.uint8))
    request = body(pixels(np.concatenate([colour, alpha.astype(np.uint8)], axis=2)))
    assert_true(either_server, request, expected)


INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


@pytest.mark.parametrize("datatype", INTEGERS)
def test_integer_types(either_server: LocalServer, datatype: str) -> None:
    """Whatever the type, values from 0 to 255 are a picture."""
    array = photo(70, 50) // (2 if datatype == "INT8" else 1)
    assert_true(either_server, body(pixels(array, datatype)), Image.fromarray(array))


def test_numpy_codec(either_server: LocalServer) -> None:
    """As MLServer's own codec encodes an array, content type included."""
    array = photo(70, 50)
    one = NumpyCodec.encode_input("payload", array).model_dump(exclude_none=True, mode="json")
    assert one["datatype"] == "UINT8"
    assert_true(either_server, {"inputs": [one]}, Image.fromarray(array))


# --- Encoded images ---------------------------------------------------------------------------


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def files() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Each kind of file, with the pixels that it shows where Pillow alone does not say so."""
    colour = photo(70, 50)
    rgb, grey = Image.fromarray(colour), Image.fromarray(colour).convert("L")
    holes = np.where(np.arange(70) % 20 < 10, 255, 0).astype(np.uint8)[None].repeat(50, axis=0)
    over_white = np.where(holes[:, :, None], colour, 255).astype(np.uint8)
    grey_over_white = np.where(holes, np.asarray(grey), 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([colour, holes]))
    palette = rgb.quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    without_first = np.where((np.asarray(palette) == 0)[:, :, None], 255, shown).astype(np.uint8)
    deep = (np.asarray(grey).astype(np.uint16) * 257).astype(np.uint16)
    others = [rgb.rotate(90), rgb.rotate(180)]
    animation = {"save_all": True, "append_images": others, "duration": 100}
    lossless = {"lossless": True, "exact": True}
    return {
        "JPEG": (saved(rgb, "JPEG", quality=90), None),
        "JPEG grey": (saved(grey, "JPEG"), None),
        "JPEG CMYK": (saved(rgb.convert("CMYK"), "JPEG"), None),
        "JPEG progressive": (saved(rgb, "JPEG", progressive=True), None),
        "JPEG cat": (CAT.read_bytes(), None),
        "PNG": (saved(rgb, "PNG"), colour),
        "PNG grey": (saved(grey, "PNG"), None),
        "PNG RGBA": (saved(rgba, "PNG"), over_white),
        "PNG LA": (
            saved(Image.fromarray(np.dstack([np.asarray(grey), holes])), "PNG"),
            np.dstack([grey_over_white] * 3),
        ),
        "PNG palette": (saved(palette, "PNG"), shown),
        "PNG palette transparent": (saved(palette, "PNG", transparency=0), without_first),
        "PNG 1 bit": (saved(grey.convert("1"), "PNG"), None),
        "PNG 16 bit": (saved(Image.fromarray(deep), "PNG"), np.dstack([np.asarray(grey)] * 3)),
        "WebP lossy": (saved(rgb, "WEBP"), None),
        "WebP lossless": (saved(rgb, "WEBP", lossless=True), colour),
        "WebP alpha": (saved(rgba, "WEBP", **lossless), over_white),
        "WebP animated": (saved(rgb, "WEBP", **lossless, **animation), colour),
        "GIF": (saved(palette, "GIF"), shown),
        "GIF animated": (
            saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
            shown,
        ),
        "GIF transparent": (saved(palette, "GIF", transparency=0), without_first),
        "BMP": (saved(rgb, "BMP"), colour),
        "BMP grey": (saved(grey, "BMP"), None),
    }


def shows(kind: str) -> Image.Image:
    file, expected = files()[kind]
    if expected is not None:
        return Image.fromarray(expected)
    return Image.open(io.BytesIO(file)).convert("RGB")


@pytest.mark.parametrize("kind", list(files()))
def test_files(either_server: LocalServer, kind: str) -> None:
    """Over infer and over classify, which is the same answer in fewer words."""
    file, picture = files()[kind][0], shows(kind)
    assert_true(either_server, body(tensor(file)), picture)
    assert_true(either_server, body(tensor(file, [1, 1])), picture)
    response = classify(either_server, file)
    assert response.status_code == 200, response.text
    told = [(one["label"], one["score"]) for one in response.json()]
    assert told == list(zip(*answers(either_server, body(tensor(file)))[0], strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(either_server: LocalServer, orientation: int) -> None:
    """A photograph stored on its side is seen upright, as if it had never been turned."""
    turns = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    upright = Image.fromarray(photo(70, 50, COFFEE))
    stored = functools.reduce(Image.Image.transpose, turns[orientation], upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_true(either_server, body(tensor(saved(stored, "PNG", exif=exif))), upright)


def test_encodings_agree(either_server: LocalServer) -> None:
    """To the bit, with the queue empty: both end in the same pixels."""
    array = photo(451, 300, COFFEE)
    png = saved(Image.fromarray(array), "PNG")
    assert answers(either_server, body(pixels(array))) == answers(either_server, body(tensor(png)))


def test_mixed_batches(either_server: LocalServer) -> None:
    """Every kind of file in one request, each answered in its place."""
    everything = [text(file) for file, _ in files().values()]
    assert_true(either_server, body(tensor(everything)), *[shows(kind) for kind in files()])
    request = body(tensor(everything, [len(everything), 1]), parameters={"top_k": 2})
    assert_true(either_server, request, *[shows(kind) for kind in files()], k=2)


# --- What is asked for ------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2, 5, 17, CLASSES - 1, CLASSES])
def test_top_k(either_server: LocalServer, top_k: int) -> None:
    file, picture = COFFEE.read_bytes(), Image.open(COFFEE).convert("RGB")
    request = body(tensor(file), parameters={"top_k": top_k})
    assert_true(either_server, request, picture, k=top_k)
    (labels, scores) = answers(either_server, request)[0]
    assert scores == sorted(scores, reverse=True)
    assert len(set(labels)) == top_k
    if top_k == CLASSES:
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    short = classify(either_server, file, params={"top_k": top_k}).json()
    assert [one["label"] for one in short] == labels


def test_labels_come_first(either_server: LocalServer) -> None:
    """The lab's own listing reads no more than this."""
    response = infer(either_server, body(tensor(COFFEE.read_bytes()))).json()
    assert response["outputs"][0]["data"] == truth().ranking(Image.open(COFFEE).convert("RGB"))[0]
    assert response["outputs"][0]["data"][0] == LABEL


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (["scores"], ["scores"]),
        (["labels"], ["labels"]),
        (["scores", "labels"], ["scores", "labels"]),
        (["labels", "scores"], ["labels", "scores"]),
        (["scores", "scores"], ["scores"]),
        ([], ["labels", "scores"]),
    ],
)
def test_outputs(either_server: LocalServer, asked: list[str], given: list[str]) -> None:
    one = tensor(image_file("PNG"))
    whole = infer(either_server, body(one)).json()["outputs"]
    part = infer(either_server, body(one, outputs=[{"name": name} for name in asked])).json()
    assert part["outputs"] == [
        next(output for output in whole if output["name"] == name) for name in given
    ]


def test_codecs_decode_the_outputs(either_server: LocalServer) -> None:
    request = body(tensor([text(image_file("PNG"))] * 2), parameters={"top_k": 3})
    raw = infer(either_server, request).json()
    labels, scores = InferenceResponse(**raw).outputs
    assert StringCodec.decode_output(labels) == raw["outputs"][0]["data"]
    array = NumpyCodec.decode_output(scores)
    assert array.shape == (2, 3) and array.dtype == np.float32
    assert array.ravel().tolist() == raw["outputs"][1]["data"]
    assert NumpyCodec.decode_output(labels).shape == (2, 3)


@pytest.mark.parametrize("identifier", ["a", "cat 1/2: #7", "x" * 256])
def test_id_is_echoed(either_server: LocalServer, identifier: str) -> None:
    answer = infer(either_server, body(tensor(image_file("PNG")), id=identifier)).json()
    assert answer["id"] == identifier
    assert answer["model_name"] == "tinyvit"
    request = message(bytes_contents=[image_file("PNG")], identifier=identifier)
    assert stub(either_server).ModelInfer(request, timeout=60).id == identifier


def test_without_an_id(either_server: LocalServer) -> None:
    request = body(tensor(image_file("PNG")))
    given = {infer(either_server, request).json()["id"] for _ in range(2)}
    assert len(given) == 2 and all(given)


# --- gRPC -------------------------------------------------------------------------------------


def told(response: pb.ModelInferResponse) -> tuple[list[str], list[float]]:
    """Raw requests have raw answers: each text is preceded by its length in four bytes."""
    labels, scores = response.outputs
    assert labels.shape == scores.shape
    if not response.raw_output_contents:
        texts = [label.decode() for label in labels.contents.bytes_contents]
        return texts, list(scores.contents.fp32_contents)
    packed, numbers = response.raw_output_contents
    texts = []
    while packed:
        end = 4 + int.from_bytes(packed[:4], "little")
        texts.append(packed[4:end].decode())
        packed = packed[end:]
    return texts, np.frombuffer(numbers, np.float32).tolist()


def rest(server: LocalServer, request: Any) -> tuple[list[str], list[float]]:
    ((labels, scores),) = answers(server, request)
    return labels, scores


FIELDS = {"UINT8": "uint_contents", "INT32": "int_contents", "INT64": "int64_contents"} | {
    "UINT64": "uint64_contents"
}


@pytest.mark.parametrize("datatype", FIELDS)
def test_grpc_arrays(either_server: LocalServer, datatype: str) -> None:
    """As contents and as raw bytes, equal to REST."""
    array = photo(70, 50)
    expected = rest(either_server, body(pixels(array)))
    one = stub(either_server)
    raw = array.astype(datatype.lower()).tobytes()
    for content in ({FIELDS[datatype]: array.ravel().tolist()}, {"raw": [raw]}):
        request = message(list(array.shape), datatype, **content)
        labels, scores = told(one.ModelInfer(request, timeout=60))
        assert labels == expected[0]
        assert scores == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("kind", ["JPEG cat", "PNG RGBA", "WebP lossy", "GIF animated"])
def test_grpc_files(either_server: LocalServer, kind: str) -> None:
    file = files()[kind][0]
    expected = rest(either_server, body(tensor(file)))
    one = stub(either_server)
    raw = len(file).to_bytes(4, "little") + file
    for content in ({"bytes_contents": [file]}, {"raw": [raw]}):
        labels, scores = told(one.ModelInfer(message(**content), timeout=60))
        assert labels == expected[0]
        assert scores == pytest.approx(expected[1], abs=1e-6)


def test_grpc_options(either_server: LocalServer) -> None:
    """A batch, top_k and the outputs that are asked for."""
    everything = [file for file, _ in files().values()]
    request = message(
        [len(everything)], bytes_contents=everything, asked={"top_k": 3}, outputs=("scores",)
    )
    (scores,) = stub(either_server).ModelInfer(request, timeout=60).outputs
    assert (scores.name, list(scores.shape)) == ("scores", [len(everything), 3])
    rows = np.reshape(scores.contents.fp32_contents, (-1, 3))
    for kind, row in zip(files(), rows, strict=True):
        np.testing.assert_allclose(row, truth().ranking(shows(kind), 3)[1], rtol=0, atol=TOLERANCE)


# --- What the server says of itself -----------------------------------------------------------

FACTS = {
    "weights": "sample",
    "fallback": True,
    "architecture": "tiny_vit_5m_224",
    "classes": CLASSES,
    "input_size": "3x64x64",
    "engine": "openvino",
    "precision": "fp32",
}


def test_metadata(either_server: LocalServer) -> None:
    url = f"{either_server.url}/v2/models/tinyvit"
    metadata = requests.get(url, timeout=10).json()
    assert metadata["name"] == "tinyvit"
    assert metadata["platform"] == "timm"
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("payload", "UINT8")]
    outputs = [(one["name"], one["datatype"]) for one in metadata["outputs"]]
    assert outputs == [("labels", "BYTES"), ("scores", "FP32")]
    assert metadata["parameters"].items() >= FACTS.items()


def test_metadata_over_grpc(either_server: LocalServer) -> None:
    request = pb.ModelMetadataRequest(name="tinyvit")
    metadata = stub(either_server).ModelMetadata(request, timeout=10)
    assert metadata.platform == "timm"
    assert [one.name for one in metadata.inputs] == ["payload"]
    assert [one.name for one in metadata.outputs] == ["labels", "scores"]
    parameters = metadata.parameters
    facts = {
        name: getattr(one, one.WhichOneof("parameter_choice")) for name, one in parameters.items()
    }
    assert facts.items() >= FACTS.items()


def test_page(either_server: LocalServer) -> None:
    response = requests.get(either_server.url + "/", timeout=10)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "tinyvit" in response.text and "{{" not in response.text


def test_first_request_after_a_cold_start(serve: Serve, tmp_path: Any) -> None:
    """Liveness is answered all the while that a network is converted and loaded; and the first
    answer is as right as those that follow."""
    server = serve(env={"TINYVIT_CACHE_DIR": str(tmp_path / "cold")}, ready=False)
    alive_while_loading = 0
    while True:
        ready = answers_ok(server, "ready")
        live = answers_ok(server, "live")
        if ready:
            break
        assert server.process.poll() is None, server.output()
        assert live or not alive_while_loading, "it was alive before"
        alive_while_loading += live
    assert alive_while_loading > 20
    picture = Image.open(COFFEE).convert("RGB")
    request = body(tensor(COFFEE.read_bytes()))
    assert_true(server, request, picture)
    first, second = answers(server, request), answers(server, request)
    assert first == second


def answers_ok(server: LocalServer, what: str) -> bool:
    """Within a second; False also where nothing listens yet."""
    try:
        return requests.get(f"{server.url}/v2/health/{what}", timeout=1).ok
    except requests.ConnectionError:
        return False
