"""The neighbour's own module of a name that others have too."""

from mlserver.types import InferenceRequest


def told(payload: InferenceRequest) -> str:
    """The text in the first input."""
    text = payload.inputs[0].data.root[0]
    return text.decode() if isinstance(text, bytes) else text
