"""Every error that a client or an operator sees, each with its HTTP status.

MLServer answers a request that raises an `MLServerError` with its text and status; over gRPC the
status becomes a status code.
"""

from typing import ClassVar

from mlserver.errors import MLServerError

SHORT = 80
"""Characters of a client's text that an error message or a log line repeats."""


def short(text: str, size: int = SHORT) -> str:
    """Return the start of a client's text, with everything but printable characters replaced."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text[:size])


class TimmRuntimeError(MLServerError):
    """An error with the HTTP status of its class, and one sentence for people."""

    status: ClassVar[int] = 500
    sentence: ClassVar[str] = "{}"
    """With a place for each argument."""
    request_id: str | None = None
    """The id of the request, if it is known where the error is raised; for the log."""
    retry_after: int | None = None
    """Seconds after which the same request may succeed; None if it never will."""

    def __init__(self, *details: object) -> None:
        super().__init__(self.sentence.format(*details), self.status)


class SettingsError(TimmRuntimeError):
    """A setting is unknown or has an invalid value."""


class CheckpointError(TimmRuntimeError):
    """A checkpoint is missing, incomplete or damaged."""


class EngineUnavailable(TimmRuntimeError):
    """The engine that the settings name is not installed."""


class InvalidRequest(TimmRuntimeError):
    """The model cannot answer the request, whatever its state."""

    status = 400


class InvalidImage(TimmRuntimeError):
    """The bytes are not a supported image; the sentence says why, and what is accepted."""

    status = 400


class BodyTooLarge(TimmRuntimeError):
    """A request's body exceeds the limit."""

    status = 413
    sentence = "The body is too large; at most {} bytes are accepted."


class BodiesFull(TimmRuntimeError):
    """The bodies of all requests together exceed their limit."""

    status = 503
    retry_after = 1
    sentence = (
        "The server is busy: the requests that it holds would exceed {} bytes. Try again in a "
        "moment."
    )


class BodyTimedOut(TimmRuntimeError):
    """A request's body took too long to arrive."""

    status = 408
    sentence = "The request's body was not complete within {:g} seconds: send a smaller body."


class UnsupportedEncoding(TimmRuntimeError):
    """A request's body has an unsupported Content-Encoding."""

    status = 415
    sentence = "Unsupported Content-Encoding '{}': send the body as it is, or with gzip or deflate."


class QueueFull(TimmRuntimeError):
    """The queue has no room for the images of a request; the request may succeed a little later."""

    status = 503
    sentence = (
        "The server is busy: its queue of {} images has no room for this request. Try again in a "
        "moment."
    )

    def __init__(self, max_queue: int, retry_after: int = 1) -> None:
        super().__init__(max_queue)
        self.retry_after = retry_after


class ModelClosing(TimmRuntimeError):
    """The model is being unloaded and accepts no further requests."""

    status = 503
    retry_after = 5
    sentence = "The model is being unloaded. Try again in a moment."


class ModelNotReady(TimmRuntimeError):
    """The model is still loading; MLServer answers 400, which clients do not retry."""

    status = 503
    retry_after = 5
    sentence = "The model '{}' is not ready. Try again in a moment."


class RequestTimedOut(TimmRuntimeError):
    """A request took longer than the settings allow."""

    status = 504
    sentence = (
        "The request was not answered within {:g} seconds. Try again, or send fewer images in a "
        "request."
    )


class EngineFailed(TimmRuntimeError):
    """The engine raised an exception on a batch; details are in the log."""

    sentence = "The engine failed on these images; the server's log says why."


class RequestFailed(TimmRuntimeError):
    """A fault of the server; details are in the log."""

    sentence = "The server failed on this request; its log says why."
