"""gRPC messages that would make far more in memory than they have bytes."""

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from clients import assert_sentence, message, resident, stub
from local import LocalServer

MOST_GROWTH = 200 * 2**20
MODEL = pb.ModelInferRequest(model_name="tinyvit").SerializeToString()
NOBODY = pb.ModelInferRequest(model_name="nobody").SerializeToString()
EMPTY_INPUT, EMPTY_OUTPUT, EMPTY_ELEMENT = b"\x2a\x00", b"\x32\x00", b"\x3a\x00"
BOMBS = {
    "15 million raw elements": MODEL + EMPTY_ELEMENT * 15_000_000,
    "15 million raw elements for no model": NOBODY + EMPTY_ELEMENT * 15_000_000,
    "a million inputs": MODEL + EMPTY_INPUT * 1_000_000,
    "a million outputs": MODEL + EMPTY_OUTPUT * 1_000_000,
}


def send(server: LocalServer, body: bytes, method: str = "ModelInfer") -> grpc.RpcError:
    """How a message, compressed, is refused."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as refusal:
            call(body, compression=grpc.Compression.Gzip, timeout=60)
    return refusal.value


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_is_parsed(server: LocalServer, kind: str) -> None:
    before = resident(server)
    refusal = send(server, BOMBS[kind])
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(refusal.details())
    assert resident(server) - before < MOST_GROWTH


@pytest.mark.parametrize("body", [b"\xff" * 100, MODEL + b"\x2a\x05x", b"\x0a\x80"])
def test_what_is_no_message_is_refused_in_a_sentence(server: LocalServer, body: bytes) -> None:
    refusal = send(server, body)
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
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
