"""gRPC messages that take far more memory than they have bytes, and compressed ones."""

import threading

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from client.local import LocalServer
from mlserver_timm.server.grpc import DEFAULT_LIMIT
from tests.support.clients import COFFEE, assert_sentence, message, resident, stub
from tests.support.resource_monitor import MEGABYTE, watching

MOST_GROWTH = 200 * MEGABYTE
MODEL = pb.ModelInferRequest(model_name="tinyvit").SerializeToString()
NOBODY = pb.ModelInferRequest(model_name="nobody").SerializeToString()
EMPTY_INPUT, EMPTY_OUTPUT, EMPTY_ELEMENT = b"\x2a\x00", b"\x32\x00", b"\x3a\x00"
BOMBS = {
    "15 million raw elements": MODEL + EMPTY_ELEMENT * 15_000_000,
    "15 million raw elements for no model": NOBODY + EMPTY_ELEMENT * 15_000_000,
    "a million inputs": MODEL + EMPTY_INPUT * 1_000_000,
    "a million outputs": MODEL + EMPTY_OUTPUT * 1_000_000,
}


INFERENCE, REPOSITORY = (
    "inference.GRPCInferenceService",
    "inference.model_repository.ModelRepositoryService",
)
REPOSITORY_METHODS = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")
METHODS = [
    f"{INFERENCE}/ModelInfer",
    *[
        f"{INFERENCE}/{method}"
        for method in (
            *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"),
            *REPOSITORY_METHODS,
        )
    ],
    *[f"{REPOSITORY}/{method}" for method in REPOSITORY_METHODS],
]


def send(
    server: LocalServer,
    body: bytes,
    compression: grpc.Compression = grpc.Compression.NoCompression,
    method: str = f"{INFERENCE}/ModelInfer",
) -> grpc.RpcError:
    """How a message is refused."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        call = channel.unary_unary(f"/{method}")
        with pytest.raises(grpc.RpcError) as refusal:
            call(body, compression=compression, timeout=60)
    return refusal.value


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_is_parsed(
    server: LocalServer, kind: str, compression: grpc.Compression
) -> None:
    before, body = resident(server), BOMBS[kind]
    refusal = send(server, body, compression)
    too_much = compression == grpc.Compression.Gzip and len(body) > DEFAULT_LIMIT
    codes = grpc.StatusCode
    assert refusal.code() == (codes.RESOURCE_EXHAUSTED if too_much else codes.INVALID_ARGUMENT)
    assert_sentence(refusal.details())
    assert resident(server) - before < MOST_GROWTH


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "body", [b"\xff" * 100, b"\x0a\x80", b"\x1f\x8bxx", b"\x78xx", b"\x78\x9c\x00" * 100]
)
def test_no_method_shows_how_it_is_read(server: LocalServer, method: str, body: bytes) -> None:
    """Nor where the bytes look packed and are not."""
    before = server.output().count("Traceback")
    refusal = send(server, body, method=method)
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(refusal.details())
    assert server.output().count("Traceback") == before


@pytest.mark.parametrize("method", METHODS[1:])
def test_more_than_any_method_takes_is_refused(server: LocalServer, method: str) -> None:
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


def test_pixels_in_contents_are_within_the_bounds(server: LocalServer) -> None:
    request = message([100, 200, 3], "UINT8", uint_contents=[7] * 60_000)
    assert stub(server).ModelInfer(request, timeout=60).outputs[0].name == "labels"


def field(number: int, content: bytes) -> bytes:
    """Of protobuf's wire format."""
    size, length = b"", len(content)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def tensor(datatype: str, shape: list[int], contents: bytes = b"", raw: bytes = b"") -> bytes:
    """A message with one."""
    head = pb.ModelInferRequest.InferInputTensor(name="payload", datatype=datatype, shape=shape)
    one = head.SerializeToString() + (field(5, contents) if contents else b"")
    return MODEL + field(5, one) + (field(7, raw) if raw else b"")


SIZE = 45 * MEGABYTE
PICTURES = [15, 1024, 1024, 3]
LARGE = {
    "raw pictures": (tensor("UINT8", PICTURES, raw=bytes(SIZE)), None),
    "pictures in contents": (tensor("UINT8", PICTURES, field(4, bytes(SIZE))), None),
    "raw pixels of no picture": (tensor("UINT8", [SIZE], raw=bytes(SIZE)), "that of an image"),
    "raw empty files": (tensor("BYTES", [SIZE // 4], raw=bytes(SIZE)), "elements of BYTES"),
    "numbers that are no pixels": (tensor("INT32", [1], field(2, b"\x80" * SIZE)), "0 to 255"),
    "numbers of four bytes": (tensor("FP32", [SIZE // 4], field(6, bytes(SIZE))), "FP32"),
    "numbers for files": (tensor("BYTES", [SIZE], field(2, bytes(SIZE))), "elements"),
}
"""Messages, and what the refusal says where there is one."""


@pytest.mark.exclusive
@pytest.mark.parametrize("kind", LARGE)
def test_forty_five_megabytes_take_little_more(server: LocalServer, kind: str) -> None:
    """gRPC itself has a message three times as it hands it over."""
    message, refusal = LARGE[kind]
    options = [("grpc.max_send_message_length", -1)]
    with watching(server) as watch, grpc.insecure_channel(server.grpc, options) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(3):
            if refusal:
                with pytest.raises(grpc.RpcError, match=refusal):
                    ask(message, timeout=60)
            else:
                answer = pb.ModelInferResponse.FromString(ask(message, timeout=60))
                assert answer.outputs[0].shape == [15, 5]
    most = MOST_GROWTH if refusal else 5 * SIZE
    assert watch.growth < most, watch.growth / MEGABYTE
    assert not watch.failures


@pytest.mark.exclusive
def test_more_messages_than_are_held_at_once(server: LocalServer) -> None:
    """Those that are too many are told to come again; the others are answered."""
    request = message(PICTURES, "UINT8", raw=[bytes(SIZE)])
    outcomes: list[str] = []

    def ask() -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            try:
                GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
                outcomes.append("answered")
            except grpc.RpcError as refusal:
                assert "are held" in refusal.details()
                outcomes.append(refusal.code().name)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"answered", "UNAVAILABLE"}
    one = message([1], bytes_contents=[COFFEE.read_bytes()])
    assert stub(server).ModelInfer(one, timeout=60).outputs[0].contents.bytes_contents


# --- Compression --------------------------------------------------------------------------------

COMPRESSIONS = [grpc.Compression.Gzip, grpc.Compression.Deflate]


@pytest.mark.exclusive
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_dozen_that_decompress_to_sixty_megabytes_each(
    server: LocalServer, compression: grpc.Compression
) -> None:
    body = tensor("UINT8", [60 * MEGABYTE], raw=bytes(60 * MEGABYTE))
    codes: list[grpc.StatusCode] = []
    with watching(server) as watch:
        threads = [
            threading.Thread(target=lambda: codes.append(send(server, body, compression).code()))
            for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 12
    assert watch.growth < MOST_GROWTH, watch.growth / MEGABYTE
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
