"""Unreadable gRPC tensors are the client's fault, in a sentence."""

from pathlib import Path

import grpc
import pytest
from mlserver.grpc import dataplane_pb2 as pb

from conftest import Serve
from local import LocalServer
from probes import OTHER, OURS, message, repository, stub

INVALID = ("INVALID_ARGUMENT", "The request's tensors cannot be read")


def failure(server: LocalServer, model: str) -> tuple[str, str]:
    """Code and text for a tensor of three numbers in four bytes."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="told", shape=[3], datatype="FP64")
    short = pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[b"four"])
    with pytest.raises(grpc.RpcError) as failure:
        stub(server).ModelInfer(short, timeout=30)
    return failure.value.code().name, failure.value.details()


def test_sentence_for_our_model(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, OTHER))
    code, text = failure(server, "ours")
    assert (code, text[: len(INVALID[1])]) == INVALID
    assert failure(server, "other")[0] == "INTERNAL"
    reserved = message("echo:x")
    reserved.parameters["content_type"].int64_param = 1
    with pytest.raises(grpc.RpcError, match="content_type"):
        stub(server).ModelInfer(reserved, timeout=30)


def test_without(serve: Serve, tmp_path: Path) -> None:
    server = serve(folder=repository(tmp_path, OURS, without="grpc_tensors"))
    assert failure(server, "ours")[0] == "INTERNAL"
