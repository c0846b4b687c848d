"""gRPC messages that take far more memory than their size, and compressed ones."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer
from mlserver_timm.server.grpc import FREE_BYTES
from tests.support.clients import COFFEE, assert_sentence, message, resident, stub
from tests.support.resource_monitor import MEGABYTE, resource_monitor

MAX_GROWTH = 200 * MEGABYTE
MODEL = pb.ModelInferRequest(model_name="tinyvit").SerializeToString()
UNKNOWN = pb.ModelInferRequest(model_name="nobody").SerializeToString()
EMPTY_INPUT, EMPTY_OUTPUT, EMPTY_ELEMENT = b"\x2a\x00", b"\x32\x00", b"\x3a\x00"
BOMBS: dict[str, Callable[[], bytes]] = {
    "15 million raw elements": lambda: MODEL + EMPTY_ELEMENT * 15_000_000,
    "15 million raw elements for an unknown model": lambda: UNKNOWN + EMPTY_ELEMENT * 15_000_000,
    "a million inputs": lambda: MODEL + EMPTY_INPUT * 1_000_000,
    "a million outputs": lambda: MODEL + EMPTY_OUTPUT * 1_000_000,
}


INFERENCE = "inference.GRPCInferenceService"
REPOSITORY = "inference.model_repository.ModelRepositoryService"
REPOSITORY_METHODS = ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"]
OTHER_METHODS = ["ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"]
METHODS = [
    *[f"{INFERENCE}/{name}" for name in ("ModelInfer", *OTHER_METHODS, *REPOSITORY_METHODS)],
    *[f"{REPOSITORY}/{name}" for name in REPOSITORY_METHODS],
]


def send(
    server: LocalServer,
    body: bytes,
    compression: grpc.Compression = grpc.Compression.NoCompression,
    method: str = f"{INFERENCE}/ModelInfer",
) -> grpc.RpcError:
    """Return the error that a message gets."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        call = channel.unary_unary(f"/{method}")
        with pytest.raises(grpc.RpcError) as refusal:
            call(body, compression=compression, timeout=60)
    return refusal.value


@pytest.mark.slow
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_is_parsed(
    server: LocalServer, kind: str, compression: grpc.Compression
) -> None:
    before, body = resident(server), BOMBS[kind]()
    refusal = send(server, body, compression)
    codes = grpc.StatusCode
    if "unknown model" in kind:
        assert (refusal.code(), refusal.details()) == (codes.NOT_FOUND, "Model nobody not found")
    else:
        too_much = compression == grpc.Compression.Gzip and len(body) > FREE_BYTES
        assert refusal.code() == (codes.RESOURCE_EXHAUSTED if too_much else codes.INVALID_ARGUMENT)
        assert_sentence(refusal.details())
    assert resident(server) - before < MAX_GROWTH


@pytest.mark.parametrize("method", METHODS)
def test_malformed_messages_get_one_sentence(server: LocalServer, method: str) -> None:
    """Some only look compressed."""
    before = server.output().count("Traceback")
    for body in (b"\xff" * 100, b"\x0a\x80", b"\x1f\x8bxx", b"\x78\x9c\x00" * 100):
        refusal = send(server, body, method=method)
        assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert_sentence(refusal.details())
    assert server.output().count("Traceback") == before


@pytest.mark.parametrize("method", METHODS[1:])
def test_other_methods_have_a_small_limit(server: LocalServer, method: str) -> None:
    refusal = send(server, bytes(MEGABYTE), grpc.Compression.Gzip, method)
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_sentence(refusal.details())


def test_a_bomb_in_a_stream_is_refused(server: LocalServer) -> None:
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        with pytest.raises(grpc.RpcError) as refusal:
            list(call(iter([MODEL + EMPTY_ELEMENT * 30_000]), timeout=60))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(refusal.value.details())


def field(number: int, content: bytes) -> bytes:
    """Return a field in protobuf's wire format."""
    size, length = b"", len(content)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def tensor(datatype: str, shape: list[int], contents: bytes = b"", raw: bytes = b"") -> bytes:
    """Return a message with one tensor."""
    head = pb.ModelInferRequest.InferInputTensor(name="payload", datatype=datatype, shape=shape)
    one = head.SerializeToString() + (field(5, contents) if contents else b"")
    return MODEL + field(5, one) + (field(7, raw) if raw else b"")


SIZE = 45 * MEGABYTE
IMAGES = [15, 1024, 1024, 3]
LARGE: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "raw images": (lambda: tensor("UINT8", IMAGES, raw=bytes(SIZE)), None),
    "images in contents": (lambda: tensor("UINT8", IMAGES, field(4, bytes(SIZE))), None),
    "raw pixels of no image": (
        lambda: tensor("UINT8", [SIZE], raw=bytes(SIZE)),
        "that of an image",
    ),
    "raw empty files": (
        lambda: tensor("BYTES", [SIZE // 4], raw=bytes(SIZE)),
        "elements of BYTES",
    ),
    "values above 255": (lambda: tensor("INT32", [1], field(2, b"\x80" * SIZE)), "0 to 255"),
    "floats": (lambda: tensor("FP32", [SIZE // 4], field(6, bytes(SIZE))), "FP32"),
}
"""Messages, and part of the error of those that are refused."""


@pytest.mark.slow
@pytest.mark.exclusive
@pytest.mark.parametrize("kind", LARGE)
def test_a_45_megabyte_message_takes_bounded_memory(server: LocalServer, kind: str) -> None:
    """gRPC itself holds three copies of a message."""
    make, refusal = LARGE[kind]
    message = make()
    options = [("grpc.max_send_message_length", -1)]
    with resource_monitor(server) as watch, grpc.insecure_channel(server.grpc, options) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(3):
            if refusal:
                with pytest.raises(grpc.RpcError, match=refusal):
                    ask(message, timeout=60)
            else:
                answer = pb.ModelInferResponse.FromString(ask(message, timeout=60))
                assert answer.outputs[0].shape == [15, 5]
    limit = MAX_GROWTH if refusal else 5 * SIZE
    assert watch.growth < limit, watch.growth / MEGABYTE
    assert not watch.failures


@pytest.mark.slow
@pytest.mark.exclusive
def test_messages_beyond_the_memory_limit_are_refused(server: LocalServer) -> None:
    """Those beyond the limit get UNAVAILABLE; the others are answered."""
    request = message(IMAGES, "UINT8", raw=[bytes(SIZE)])

    def ask(_: int) -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            try:
                GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
            except grpc.RpcError as refusal:
                assert "would exceed" in refusal.details()
                return refusal.code().name
        return "answered"

    with ThreadPoolExecutor(5) as clients:
        outcomes = list(clients.map(ask, range(5)))
    assert set(outcomes) == {"answered", "UNAVAILABLE"}
    one = message([1], bytes_contents=[COFFEE.read_bytes()])
    assert stub(server).ModelInfer(one, timeout=60).outputs[0].contents.bytes_contents


# --- Compression --------------------------------------------------------------------------------

COMPRESSIONS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


@pytest.mark.slow
@pytest.mark.exclusive
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_messages_that_decompress_to_60_megabytes_are_refused(
    server: LocalServer, compression: grpc.Compression
) -> None:
    body = tensor("UINT8", [60 * MEGABYTE], raw=bytes(60 * MEGABYTE))
    with resource_monitor(server) as watch, ThreadPoolExecutor(12) as clients:
        refusals = list(clients.map(lambda _: send(server, body, compression), range(12)))
    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert watch.growth < MAX_GROWTH, watch.growth / MEGABYTE
    assert not watch.failures


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_messages_are_answered(
    server: LocalServer, compression: grpc.Compression
) -> None:
    image = COFFEE.read_bytes()
    size = len(image).to_bytes(4, "little")
    whole, raw = message([1], bytes_contents=[image]), message([1], raw=[size + image])
    for request in (whole, raw):
        expected = stub(server).ModelInfer(request, timeout=30)
        answer = stub(server).ModelInfer(request, compression=compression, timeout=30)
        assert answer.outputs == expected.outputs
        assert answer.raw_output_contents == expected.raw_output_contents
    stream = stub(server).ModelStreamInfer(iter([whole, whole]), compression=compression)
    assert [each.outputs[0] for each in stream] == [stub(server).ModelInfer(whole).outputs[0]] * 2
    metadata = pb.ModelMetadataRequest(name="tinyvit")
    packed = stub(server).ModelMetadata(metadata, compression=compression)
    assert packed == stub(server).ModelMetadata(metadata)
