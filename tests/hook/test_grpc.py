"""gRPC calls for models of this runtime: status codes, details, the log, and memory."""

import gc

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from mlserver_timm.protocol.request import InferRequest
from mlserver_timm.server import grpc as grpc_server
from tests.support.clients import assert_sentence
from tests.support.in_process import calling, loaded
from tests.support.probes import OTHER, OURS, message

Stub = GRPCInferenceServiceStub


async def failures(stub: Stub, *requests: pb.ModelInferRequest) -> list[tuple[str, str]]:
    """Return the code and details of each call; all fail."""
    outcomes = []
    for request in requests:
        with pytest.raises(grpc.RpcError) as error:
            await stub.ModelInfer(request, timeout=20)
        outcomes.append((error.value.code().name, error.value.details()))
    return outcomes


CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


async def test_every_status_has_a_code(grpc_stub: Stub) -> None:
    """MLServer does not know the codes of 413, 503 and 504."""
    outcomes = await failures(grpc_stub, *[message(f"refuse:{http}") for http in CODES])
    assert outcomes == [(code, "The probe refuses.") for code in CODES.values()]
    (other,) = await failures(grpc_stub, message("refuse:503", "other"))
    assert other == ("UNKNOWN", "The probe refuses.")


async def test_a_fault_is_logged_and_answered_with_a_sentence(
    grpc_stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = await failures(grpc_stub, message("crash"), message("crash", "other"))
    assert ours[0] == "INTERNAL"
    assert_sentence(ours[1])
    assert "no such kernel" in caplog.text
    assert other == ("INTERNAL", "no such kernel")


@pytest.mark.parametrize("model", ["ours", "other"])
async def test_a_refusal_has_no_traceback(
    grpc_stub: Stub, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    await failures(grpc_stub, message("refuse:400", model))
    assert ("Traceback" in caplog.text) == (model == "other")


@pytest.mark.parametrize("name", ["content_type", "headers"])
async def test_reserved_parameters_of_a_wrong_type(grpc_stub: Stub, name: str) -> None:
    """MLServer fails on them before it calls the model."""
    requests = [message("refuse:400", model) for model in ("ours", "other")]
    for request in requests:
        request.parameters[name].int64_param = 1
    ours, other = await failures(grpc_stub, *requests)
    assert ours == ("INVALID_ARGUMENT", "The probe refuses.")
    assert other[0] == "INTERNAL"


def texts(responses: list[pb.ModelInferResponse]) -> list[bytes]:
    return [each.outputs[0].contents.bytes_contents[0] for each in responses]


@pytest.mark.parametrize("model", ["ours", "other"])
async def test_streams(grpc_stub: Stub, model: str) -> None:
    """Each request has an answer; an error ends the stream."""
    requests = [message(verb, model) for verb in ("echo:a", "echo:b", "refuse:400", "echo:c")]
    good = [each async for each in grpc_stub.ModelStreamInfer(iter(requests[:2]), timeout=20)]
    assert texts(good) == [b"a", b"b"]
    answers = []
    with pytest.raises(grpc.RpcError) as error:
        async for each in grpc_stub.ModelStreamInfer(iter(requests), timeout=20):
            answers.append(each)
    assert texts(answers) == [b"a", b"b"]
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("models", [("ours", "other"), ("other", "ours")])
async def test_a_stream_for_models_of_two_runtimes(
    grpc_stub: Stub, models: tuple[str, str]
) -> None:
    """They are read in different ways."""
    requests = iter([message("echo:a", model) for model in models])
    with pytest.raises(grpc.RpcError) as error:
        async for _ in grpc_stub.ModelStreamInfer(requests, timeout=20):
            pass
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert_sentence(error.value.details())


@pytest.mark.parametrize("before", ["", "ours"])
async def test_the_name_of_another_runtimes_model_after_the_inputs(before: str) -> None:
    """The last of several names counts."""
    rest = message("echo:a", "other")
    rest.model_name = ""
    parts = [
        pb.ModelInferRequest(model_name=before),
        rest,
        pb.ModelInferRequest(model_name="other"),
    ]
    data = b"".join(part.SerializeToString() for part in parts)

    async with (
        loaded(OURS, OTHER) as (_, server),
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = await infer(data, timeout=20)
    assert texts([pb.ModelInferResponse.FromString(answer)]) == [b"a"]


async def test_stream_without_requests_has_no_answer(grpc_stub: Stub) -> None:
    assert [each async for each in grpc_stub.ModelStreamInfer(iter([]), timeout=20)] == []


async def test_refused_requests_are_not_kept(grpc_stub: Stub) -> None:
    """gRPC keeps the exception of a call until garbage is collected."""
    gc.collect()
    gc.disable()
    try:
        for verb in ("refuse:400", "refuse:503"):
            with pytest.raises(grpc.RpcError):
                await grpc_stub.ModelInfer(message(verb), timeout=20)
        assert not any(isinstance(each, InferRequest) for each in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("setting", "sizes"), [(None, (1, 3)), (4, (3, 5)), (-1, (5, 60))], ids=["share", "4", "none"]
)
async def test_message_size_is_a_share_of_the_container(
    monkeypatch: pytest.MonkeyPatch, setting: int | None, sizes: tuple[int, int]
) -> None:
    """Unless `grpc_max_message_length` is set. Sizes are in MiB; the first is accepted."""
    monkeypatch.setattr(grpc_server, "MAX_GRPC_BYTES", 2 * 2**20)
    limit = setting and (setting * 2**20 if setting > 0 else setting)
    last = "OK" if setting == -1 else "RESOURCE_EXHAUSTED"
    async with calling(OURS, OTHER, grpc_max_message_length=limit) as stub:
        assert [await outcome(stub, size) for size in sizes] == ["OK", last]


async def outcome(stub: Stub, size: int, compression: grpc.Compression | None = None) -> str:
    """Return the code that another model's client gets for a message of `size` MiB."""
    request = message("echo:x", "other")
    request.parameters["padding"].string_param = "x" * size * 2**20
    try:
        await stub.ModelInfer(request, compression=compression, timeout=30)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


async def test_messages_of_other_models_decompress_to_the_servers_limit() -> None:
    """The ratio does not matter, as in gRPC itself."""
    async with calling(OURS, OTHER, grpc_max_message_length=32 * 2**20) as stub:
        outcomes = [await outcome(stub, size, grpc.Compression.Gzip) for size in (20, 33)]
    assert outcomes == ["OK", "RESOURCE_EXHAUSTED"]
