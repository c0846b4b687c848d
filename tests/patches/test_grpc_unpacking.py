"""Compressed gRPC messages are unpacked in proportion, and only for the model they are for."""

import threading
from pathlib import Path

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from client.local import LocalServer
from tests.support.clients import COFFEE, message, stub as stub_of
from tests.support.probes import OTHER, OURS, message as told, repository, stub
from tests.support.resource_monitor import MEGABYTE, watching
from tests.support.servers import Serve

PACKED = [grpc.Compression.Gzip, grpc.Compression.Deflate]
SIZE = 60 * MEGABYTE
AT_ONCE = 12


def refusal(server: LocalServer, body: bytes, compression: grpc.Compression) -> grpc.RpcError:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refusal:
            call(body, compression=compression, timeout=60)
    return refusal.value


def zeros(model: str, size: int) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="payload", datatype="UINT8", shape=[size])
    request = pb.ModelInferRequest(model_name=model, inputs=[tensor])
    request.raw_input_contents.append(bytes(size))
    return request.SerializeToString()


@pytest.mark.exclusive
@pytest.mark.parametrize("compression", PACKED)
def test_a_dozen_that_would_be_sixty_megabytes_each(
    server: LocalServer, compression: grpc.Compression
) -> None:
    body = zeros("tinyvit", SIZE)
    codes: list[grpc.StatusCode] = []
    with watching(server) as watch:
        threads = [
            threading.Thread(target=lambda: codes.append(refusal(server, body, compression).code()))
            for _ in range(AT_ONCE)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * AT_ONCE
    assert watch.growth < 200 * MEGABYTE, watch.growth / MEGABYTE
    assert watch.gap < 1
    assert not watch.failures


@pytest.mark.parametrize("compression", PACKED)
def test_packed_pictures_are_answered(server: LocalServer, compression: grpc.Compression) -> None:
    picture = COFFEE.read_bytes()
    size = len(picture).to_bytes(4, "little")
    whole, raw = message([1], bytes_contents=[picture]), message([1], raw=[size + picture])
    for request in (whole, raw):
        expected = stub_of(server).ModelInfer(request, timeout=30)
        answer = stub_of(server).ModelInfer(request, compression=compression, timeout=30)
        assert answer.outputs == expected.outputs
        assert answer.raw_output_contents == expected.raw_output_contents
    stream = stub_of(server).ModelStreamInfer(iter([whole, whole]), compression=compression)
    assert [each.outputs[0] for each in stream] == [
        stub_of(server).ModelInfer(whole).outputs[0]
    ] * 2
    metadata = pb.ModelMetadataRequest(name="tinyvit")
    packed = stub_of(server).ModelMetadata(metadata, compression=compression)
    assert packed == stub_of(server).ModelMetadata(metadata)


@pytest.mark.parametrize("cut", [b"\x1f\x8b\x08", b"\x78\x9c\x00"])
def test_what_looks_packed_and_is_not(server: LocalServer, cut: bytes) -> None:
    error = refusal(server, cut * 100, grpc.Compression.NoCompression)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", PACKED)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_neighbour_gets_what_it_got(
    serve: Serve, tmp_path: Path, compression: grpc.Compression, workers: int
) -> None:
    """Its own zeros are unpacked without regard to proportion, up to the server's own bound."""
    limit = {"grpc_max_message_length": 32 * MEGABYTE}

    def outcomes(*models: object) -> list[object]:
        folder = repository(tmp_path, *models, workers=workers, **limit)  # type: ignore[arg-type]
        server = serve(folder=folder)
        large = refusal(server, zeros("other", 33 * MEGABYTE), compression)
        fits = told("echo:x", "other")
        fits.parameters["padding"].string_param = "x" * 20 * MEGABYTE
        answer = stub(server).ModelInfer(
            fits, compression=compression, timeout=60, wait_for_ready=True
        )
        server.stop()
        return [large.code(), answer.outputs]

    assert outcomes(OTHER) == outcomes(OURS, OTHER)


def test_without(serve: Serve, tmp_path: Path) -> None:
    """Unpacked to a thousand times its size it reaches the model, which cannot read it."""
    body = zeros("ours", 5 * MEGABYTE)
    limit = {"grpc_max_message_length": 64 * MEGABYTE}
    server = serve(folder=repository(tmp_path, OURS, **limit))
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal(server, body, grpc.Compression.Gzip).code() == code
    server.stop()
    server = serve(folder=repository(tmp_path, OURS, without="grpc_unpacking", **limit))
    assert refusal(server, body, grpc.Compression.Gzip).code() != code
