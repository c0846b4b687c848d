"""OpenTelemetry spans reach a real receiver."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from client.local import free_ports
from tests.support.background_load import IMAGE
from tests.support.clients import body, classify, infer, message, stub, tensor
from tests.support.servers import Serve


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects the service and name of each span."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            attributes = {
                each.key: each.value.string_value for each in resource.resource.attributes
            }
            for scope in resource.scope_spans:
                self.spans += [(attributes["service.name"], span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_receiver(serve: Serve) -> None:
    receiver = Receiver()
    (port,) = free_ports(1)
    with ThreadPoolExecutor(2) as pool:
        collector = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)
        collector.add_insecure_port(f"127.0.0.1:{port}")
        collector.start()
        try:
            server = serve(
                env={
                    "MLSERVER_TRACING_SERVER": f"http://127.0.0.1:{port}",
                    "MLSERVER_SERVER_NAME": "tinyvit-server",
                }
            )
            assert infer(server, body(tensor(IMAGE))).ok
            assert classify(server, IMAGE).ok
            stub(server).ModelInfer(message(bytes_contents=[IMAGE]), timeout=20)
            server.stop()  # sends the remaining spans
        finally:
            collector.stop(None).wait()
    names = {name for _, name in receiver.spans}
    assert {service for service, _ in receiver.spans} == {"tinyvit-server"}
    assert "POST /v2/models/{model_name}/infer" in names
    assert "POST /v2/models/{model_name}/classify" in names
    assert not any("{verb}" in name or "{path" in name for name in names)
    assert "/inference.GRPCInferenceService/ModelInfer" in names
    assert not any("health" in name for name in names)
