"""gRPC messages that would make far more in memory than they have bytes."""

import threading

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from timm_runtime.mlserver_patches.grpc_bombs import UNSET
from watching import MEGABYTE, watching

from clients import COFFEE, assert_sentence, message, resident, stub
from local import LocalServer

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


def send(
    server: LocalServer, body: bytes, compression: grpc.Compression = grpc.Compression.NoCompression
) -> grpc.RpcError:
    """How a message is refused."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
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
    too_much = compression == grpc.Compression.Gzip and len(body) > UNSET
    codes = grpc.StatusCode
    assert refusal.code() == (codes.RESOURCE_EXHAUSTED if too_much else codes.INVALID_ARGUMENT)
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


@pytest.mark.alone
@pytest.mark.parametrize("shape", [[20, 1024, 1024, 3], [60 * MEGABYTE]])
def test_sixty_megabytes_of_raw_pixels_hold_nobody_up(
    server: LocalServer, shape: list[int]
) -> None:
    """Twenty pictures of a million pixels, or no picture at all."""
    request = message(shape, "UINT8", raw=[bytes(60 * MEGABYTE)])
    options = [("grpc.max_send_message_length", -1)]
    with (
        watching(server) as watch,
        grpc.insecure_channel(server.grpc, options) as channel,
    ):
        ask = GRPCInferenceServiceStub(channel).ModelInfer
        for _ in range(3):
            if len(shape) == 1:
                with pytest.raises(grpc.RpcError, match="not that of an image"):
                    ask(request, timeout=60)
            else:
                assert ask(request, timeout=60).outputs[0].shape == [20, 5]
    assert watch.growth < MOST_GROWTH, watch.growth / MEGABYTE
    assert watch.gap < 0.3
    assert not watch.failures


@pytest.mark.alone
def test_more_messages_than_are_held_at_once(server: LocalServer) -> None:
    """Those that are too many are told to come again; the others are answered."""
    request = message([20, 1024, 1024, 3], "UINT8", raw=[bytes(60 * MEGABYTE)])
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
