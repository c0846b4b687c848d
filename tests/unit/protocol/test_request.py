"""The checks of every transport's requests, and image files sent as arrays."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from mlserver_timm.errors import InvalidImage, InvalidRequest
from mlserver_timm.images.sources import FORMATS
from mlserver_timm.protocol.request import (
    MAX_ASPECT,
    ClassificationRequest,
    InferRequest,
    InputTensor,
    classification_request,
    files_request,
    unwrap_files,
)
from tests.support.clients import assert_sentence, image_file
from tests.support.fuzz_targets import NETWORK_OUTPUTS
from tests.support.refusals import GOOD

WITHOUT_LOGITS = {"probabilities": 3}
"""Outputs of a network that was exported with probabilities alone."""


def pixels(shape: list[int], values: Any = None, datatype: str = "UINT8") -> InputTensor:
    count = max(0, int(np.prod(shape, dtype=object)))
    data = np.zeros(count if count < 10**7 else 12, np.uint8) if values is None else values
    return InputTensor("payload", datatype, shape, np.array(data, np.uint8))


def request_of(*inputs: InputTensor, **more: Any) -> ClassificationRequest:
    request = unwrap_files(InferRequest(list(inputs), **more))
    return classification_request(request, NETWORK_OUTPUTS)


def files(*data: bytes, shape: list[int] | None = None) -> InputTensor:
    return InputTensor("payload", "BYTES", [len(data)] if shape is None else shape, list(data))


# --- Images -----------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, 1, 3, 4]))
def test_arrays(count: int, height: int, width: int, channels: int | None) -> None:
    shape = [height, width] if channels is None else [count, height, width, channels]
    values = np.random.default_rng(0).integers(0, 255, np.prod(shape), np.uint8)
    images = request_of(pixels(shape, values)).images
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    full = [1, *shape, 1] if channels is None else shape
    np.testing.assert_array_equal(np.stack(arrays), values.reshape(full))


def test_arrays_are_views_of_the_data() -> None:
    values = np.zeros(2 * 8 * 8 * 3, np.uint8)
    tensor = InputTensor("payload", "UINT8", [2, 8, 8, 3], values)
    for image in request_of(tensor).images:
        assert isinstance(image, np.ndarray)
        assert np.shares_memory(image, values)


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files(shape: list[int]) -> None:
    assert request_of(files(GOOD, b"\xffx", shape=shape)).images == [
        GOOD,
        b"\xffx",
    ]


WAYS = {
    "[N]": lambda file: (file, [len(file)]),
    "[1,N]": lambda file: (file, [1, len(file)]),
    "[1,N,1]": lambda file: (file, [1, len(file), 1]),
    "[1,1,N,1]": lambda file: (file, [1, 1, len(file), 1]),
    "[1,N/3,3]": lambda file: (file + bytes(-len(file) % 3), [1, -(-len(file) // 3), 3]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_sent_as_an_array(kind: str, way: str) -> None:
    """`np.fromfile("cat.jpg", "uint8")[None]`, as Triton's clients send it, is that file."""
    data, shape = WAYS[way](image_file(kind))
    values = np.frombuffer(data, np.uint8)
    assert request_of(pixels(shape, values)).images == [data]


@pytest.mark.parametrize("kind", FORMATS)
def test_files_in_rows(kind: str) -> None:
    """Rows of several files are padded with zeros, which decoders ignore."""
    small, large = image_file(kind, (16, 16)), image_file(kind, (80, 60))
    width = len(large) + 7
    rows = [file + bytes(width - len(file)) for file in (large, small)]
    values = np.frombuffer(b"".join(rows), np.uint8)
    for shape in ([2, width], [2, 1, width, 1]):
        images = request_of(pixels(shape, values)).images
        assert images == list(rows)
    for file, row in zip((large, small), rows, strict=True):
        seen, expected = (Image.open(io.BytesIO(data)).convert("RGB") for data in (row, file))
        np.testing.assert_array_equal(np.asarray(seen), np.asarray(expected))


@pytest.mark.parametrize("height", [2, 40])
def test_images_that_begin_as_a_file_does_are_images(height: int) -> None:
    """An array that is higher than one pixel and has channels is not a row of bytes."""
    values = np.zeros(height * 40 * 3, np.uint8)
    values[:3] = np.frombuffer(b"\xff\xd8\xff", np.uint8)
    [image] = request_of(pixels([height, 40, 3], values)).images
    assert isinstance(image, np.ndarray)


@pytest.mark.parametrize("shape", [[1, 1], [2, 3], [1, 1, 3], [1, MAX_ASPECT], [8, 500], [500, 8]])
def test_small_and_long_arrays_are_images(shape: list[int]) -> None:
    assert isinstance(request_of(pixels(shape)).images[0], np.ndarray)


ARRAYS: list[tuple[str, InputTensor]] = [
    ("not that of an image", pixels([])),
    ("not that of an image", pixels([12])),
    ("not that of an image", pixels([1, 1, 2, 2, 3])),
    ("not that of an image", pixels([2, 3, 2])),
    ("not that of an image", pixels([2, 2, 0])),
    ("not that of an image", pixels([-2, -2, 3], [1] * 12)),
    ("not that of an image", pixels([-1, 2, 2, 3], [1] * 12)),
    ("transpose it to .H,W,C.", pixels([3, 2, 2])),
    ("transpose it to .H,W,C.", pixels([1, 3, 224, 224])),
    ("needs 12 values; the data has 11", pixels([2, 2, 3], [1] * 11)),
    ("needs 300000000 values", pixels([10_000, 10_000, 3])),
    ("one side is more than 64 times the other", pixels([2**70, 2, 3])),
    ("needs 13194139533312 values", pixels([2**40, 2, 2, 3], [1] * 12)),
    ("one side is more than 64 times the other", pixels([1, 65])),
    ("one side is more than 64 times the other", pixels([1, 150_528])),
    ("Send the bytes of a file as BYTES", pixels([1, 65])),
    ("needs 100 values", pixels([1, 100], list(b"\xff\xd8\xff") + [0] * 12)),
    ("multiply values from 0 to 1 by 255", InputTensor("payload", "FP32", [2, 2, 3], [])),
    ("Unsupported datatype 'BOOL'", InputTensor("payload", "BOOL", [2, 2, 3], [])),
    ("Unsupported datatype ''", InputTensor("payload", "", [1], [])),
    (r"\[H,W,C\].* or encoded images, BYTES", InputTensor("payload", "STRING", [1], [b"x"])),
    ("does not fit BYTES", files(GOOD, shape=[])),
    ("does not fit BYTES", files(GOOD, shape=[1, 2])),
    ("does not fit BYTES", files(GOOD, shape=[-1])),
    ("does not fit BYTES", files(shape=[0])),
    ("does not fit 1 elements", files(GOOD, shape=[2])),
    ("does not fit 2 elements", files(GOOD, GOOD, shape=[1])),
    ("is empty", files(GOOD, b"")),
    ("nothing is fetched", files(b"https://example.org/cat.jpg")),
]


@pytest.mark.parametrize(("reason", "tensor"), ARRAYS)
def test_refused_images(reason: str, tensor: InputTensor) -> None:
    with pytest.raises((InvalidRequest, InvalidImage), match=reason) as error:
        request_of(tensor)
    assert_sentence(str(error.value))


@given(
    st.sampled_from(["UINT8", "INT64", "BYTES", "FP32", ""]) | st.text(max_size=9),
    st.lists(st.integers(-1, 5) | st.integers(), max_size=6),
    st.integers(0, 40),
    st.lists(st.binary(max_size=20), max_size=3),
)
def test_any_tensor(datatype: str, shape: list[int], size: int, elements: list[bytes]) -> None:
    data: Any = elements if datatype == "BYTES" else np.zeros(size, np.uint8)
    try:
        request = request_of(InputTensor("payload", datatype, shape, data))
    except (InvalidRequest, InvalidImage) as error:
        assert_sentence(str(error))
        return
    assert len(request.images) == 1 or len(request.images) == shape[0]


# --- Names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [[], ["image"], ["Payload"], ["payload", "mask"], [""], ["x" * 999]]
)
def test_other_inputs(names: list[str]) -> None:
    tensors = [InputTensor(name, "BYTES", [1], [GOOD]) for name in names]
    with pytest.raises(InvalidRequest, match="exactly one input, 'payload'") as error:
        request_of(*tensors)
    assert_sentence(str(error.value))


@pytest.mark.parametrize("identifier", ["a", "cat 1/2: #7", "x" * 256, "", None])
def test_ids(identifier: str | None) -> None:
    assert request_of(files(GOOD), id=identifier).id == identifier


@pytest.mark.parametrize("identifier", ["a\r\nb", "a\0b", "ключ", "x" * 257, "\x7f"])
def test_refused_ids(identifier: str) -> None:
    with pytest.raises(InvalidRequest, match="printable ASCII"):
        request_of(files(GOOD), id=identifier)


def named(*names: str) -> dict[str, Any]:
    return {name: {} for name in names}


@pytest.mark.parametrize(
    ("requested", "outputs"),
    [
        ([], ("labels", "scores")),
        (["scores", "labels"], ("scores", "labels")),
        (["embedding", "logits"], ("embedding", "logits")),
    ],
)
def test_outputs(requested: list[str], outputs: tuple[str, ...]) -> None:
    assert request_of(files(GOOD), outputs=named(*requested)).outputs == outputs


@pytest.mark.parametrize("names", [["boxes"], ["labels", "x" * 9999], [""]])
def test_unknown_outputs(names: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="'scores', 'logits' and 'embedding'") as error:
        request_of(files(GOOD), outputs=named(*names))
    assert_sentence(str(error.value))


def test_outputs_that_the_network_lacks() -> None:
    request = InferRequest([files(GOOD)], named("logits"))
    with pytest.raises(InvalidRequest, match="the outputs are 'labels' and 'scores'"):
        classification_request(request, WITHOUT_LOGITS)


@pytest.mark.parametrize("all_outputs", [True, False, None])
@pytest.mark.parametrize("own", [True, False, None])
def test_binary_outputs(all_outputs: bool | None, own: bool | None) -> None:
    """An output's own `binary_data` counts, else the request's `binary_data_output`."""
    outputs: dict[str, Any] = {"labels": {}, "scores": {"binary_data": own}}
    parameters = {"binary_data_output": all_outputs}
    request = request_of(files(GOOD), outputs=outputs, parameters=parameters)
    expected = {"labels"} if all_outputs else set()
    if own or own is None and all_outputs:
        expected |= {"scores"}
    assert request.binary_outputs == expected


@pytest.mark.parametrize("value", [1, "true", 0.0])
def test_binary_outputs_are_booleans(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="'binary_data_output' must be true or false"):
        request_of(files(GOOD), parameters={"binary_data_output": value})
    outputs = {"labels": {"binary_data": value}}
    with pytest.raises(InvalidRequest, match="'binary_data' must be true or false"):
        request_of(files(GOOD), outputs=outputs)


# --- Parameters -------------------------------------------------------------------------------


def top_k(own: Any = None, request: Any = None) -> int:
    tensor = InputTensor("payload", "BYTES", [1], [GOOD], {"top_k": own})
    content = InferRequest([tensor], parameters={"top_k": request})
    return classification_request(content, NETWORK_OUTPUTS).top_k


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), 3),
        ((None, 1), 1),
        ((2, 1), 2),
        ((None, "1"), 1),
        (("2",), 2),
        ((4,), 3),
        ((10**9,), 3),
        ((2**70,), 3),
        (("1000000",), 3),
    ],
)
def test_the_innermost_top_k_counts(given: tuple[Any, ...], expected: int) -> None:
    """More than there are classes gives all of them; the default is five."""
    assert top_k(*given) == expected


@pytest.mark.parametrize(
    "value", [0, -1, True, "x", "", "-1", "١" * 3, "9" * 30, 2.5, 1e300, 3.0, "2.5"]
)
def test_refused_top_k(value: Any) -> None:
    for place in range(2):
        with pytest.raises(InvalidRequest, match="whole number from 1 to 3") as error:
            top_k(*[None] * place, value)
    assert_sentence(str(error.value))


@pytest.mark.parametrize("name", ["topk", "k", "K", "top-k", "topK", "TOP_K", "__k"])
def test_misspelt_top_k_is_refused(name: str) -> None:
    tensor = InputTensor("payload", "BYTES", [1], [GOOD], {name: 1})
    for request in (InferRequest([tensor]), files_request([GOOD], {name: 1})):
        with pytest.raises(InvalidRequest, match=f"'{name}'.*'top_k'") as error:
            classification_request(request, NETWORK_OUTPUTS)
        assert_sentence(str(error.value))


@pytest.mark.parametrize("name", ["temperature", "sequence_id", "_fields_set", "cls", "self"])
def test_other_parameters_are_ignored(name: str) -> None:
    request = files_request([GOOD], {name: "x"})
    assert classification_request(request, NETWORK_OUTPUTS).top_k == 3


@pytest.mark.parametrize(
    ("function", "scored"),
    [
        (None, "probabilities"),
        ("softmax", "probabilities"),
        ("sigmoid", "logits"),
        ("none", "logits"),
    ],
)
def test_functions(function: str | None, scored: str) -> None:
    request = request_of(files(GOOD), parameters={"function_to_apply": function})
    assert request.scored_output == scored
    assert request.network_outputs == {scored}


@pytest.mark.parametrize("function", ["tanh", 5, True, ""])
def test_unknown_functions(function: Any) -> None:
    with pytest.raises(InvalidRequest, match="one of softmax, sigmoid, none"):
        request_of(files(GOOD), parameters={"function_to_apply": function})


@pytest.mark.parametrize("function", ["none", "sigmoid"])
def test_functions_without_logits(function: str) -> None:
    request = files_request([GOOD], {"function_to_apply": function})
    with pytest.raises(InvalidRequest, match="no logits"):
        classification_request(request, WITHOUT_LOGITS)
    softmax = files_request([GOOD], {"function_to_apply": "softmax"})
    assert classification_request(softmax, WITHOUT_LOGITS).scored_output == "probabilities"


@pytest.mark.parametrize(
    ("images", "top_k", "names", "is_sent"),
    [
        (1, 99_999, ["labels", "scores", "logits", "embedding"], True),
        (2, 21_841, ["labels", "scores"], True),
        (3, 21_841, ["labels", "scores"], False),
        (64, 781, ["labels", "scores"], True),
        (64, 782, ["labels", "scores"], False),
        (5, 1, ["logits"], False),
        (64, 1, ["binary logits"], True),
        (5, 21_841, ["binary labels"], False),
    ],
)
def test_the_size_of_an_answer(images: int, top_k: int, names: list[str], is_sent: bool) -> None:
    """100,000 labels and numbers, but for numbers in binary tensors."""
    network = {"probabilities": 21_841, "logits": 21_841, "embedding": 320}
    outputs = {
        name.removeprefix("binary "): {"binary_data": name.startswith("binary")} for name in names
    }
    request = InferRequest([files(*[GOOD] * images)], outputs, {"top_k": top_k})
    if is_sent:
        classification_request(request, network)
        return
    with pytest.raises(InvalidRequest, match=r"at most 100000 are sent\. Send fewer images"):
        classification_request(request, network)


def test_what_the_network_has_to_compute() -> None:
    request = request_of(files(GOOD), outputs=named("embedding", "labels", "logits"))
    assert request.network_outputs == {"embedding", "probabilities", "logits"}
