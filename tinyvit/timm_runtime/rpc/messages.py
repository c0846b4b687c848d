"""ModelInferRequests of gRPC, read without a copy of what is large in them."""

from dataclasses import dataclass

from mlserver.grpc import dataplane_pb2 as pb
from mlserver.types import InferenceRequest, TensorData

from ..binary_tensors import read_tensor
from ..errors import InvalidRequest
from .message_limits import check_message


@dataclass
class ReceivedMessage:
    """A message within the bounds, parsed but for its raw contents."""

    model_name: str
    model_version: str
    parsed: pb.ModelInferRequest
    raw_input_contents: tuple[memoryview, ...]
    """In the message's own memory."""
    size: int
    """Bytes of the whole message."""

    def release(self) -> None:
        """Lets go of all that is large: gRPC may keep what a refused call was about."""
        self.parsed, self.raw_input_contents, self.size = pb.ModelInferRequest(), (), 0


def read_message(message: bytes) -> ReceivedMessage:
    """Raises InvalidRequest beyond the bounds, and Malformed or DecodeError where it is none."""
    raw = check_message(message)
    view, rest, start = memoryview(message), [], 0
    for field in raw:
        rest.append(view[start : field.tag])
        start = field.end
    rest.append(view[start:])
    parsed = pb.ModelInferRequest.FromString(b"".join(rest))
    contents = tuple(view[field.start : field.end] for field in raw)
    name, version = parsed.model_name, parsed.model_version
    return ReceivedMessage(name, version, parsed, contents, len(message))


def put_raw_contents(request: InferenceRequest, contents: tuple[memoryview, ...]) -> None:
    """Gives the raw contents to the inputs that have no data of their own, in order; raises
    InvalidRequest."""
    empty = [tensor for tensor in request.inputs if not tensor.data.root]
    if contents and len(contents) != len(empty):
        raise InvalidRequest(
            f"There are {len(contents)} 'raw_input_contents' for {len(empty)} inputs without "
            f"'contents'."
        )
    for tensor, content in zip(empty, contents, strict=False):
        datatype = getattr(tensor.datatype, "value", tensor.datatype)
        data = read_tensor(content, datatype, tensor.shape)
        tensor.data = TensorData.model_construct(root=data)
