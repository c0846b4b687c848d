"""The processes that decode images, with limits of memory and CPU time.

The server starts one supervisor, which loads Pillow once and forks decoders when the server asks
for them: 2 ms and 5 MiB each, where a new interpreter takes 150 ms and 16 MiB. The server itself is
never forked, since it has threads. Where fork is unsafe (macOS), decoders are new interpreters.

A decoder reads one request after the other from a socket, each a line of JSON, and answers with
another line. The image's bytes come in memory that it shares with the server, and the pixels go
back there. A crash, an endless loop or a lack of memory in a C library ends the decoder and costs
one image. Everything is imported before the limits are set. This module imports Pillow, numpy and
this package's `images/` only.
"""

import contextlib
import ctypes
import io
import json
import logging
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from typing import Any

import numpy as np
from PIL import Image

from mlserver_timm.images.decode import (
    DamagedImage,
    InvalidImage,
    coefficients_of,
    configure_pillow,
    from_array,
    open_file,
    webp_size,
)
from mlserver_timm.images.limits import (
    cpu_seconds,
    is_expensive,
    memory_for_file,
    memory_for_image,
)
from mlserver_timm.images.transforms import EvaluationTransform

if sys.platform != "win32":
    import resource

NUMBER = struct.Struct("<I")
"""From the server to the supervisor: the number of a decoder, which is to be started if descriptors
come with it, and killed otherwise."""

EXITED = struct.Struct("<Ii")
"""From the supervisor to the server: the number of a decoder that has ended, and its exit status,
negative for a signal."""

CAN_FORK = sys.platform == "linux"
RETRY_MARGIN = 8
"""If an image fails with this many times the memory it is expected to need, memory is not why."""

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
"""Linux: a signal when the parent ends, and no more privileges (prctl(2))."""

THREAD_STACK = 2**19
"""Bytes. The default, 8 MiB, would count as memory of the image."""

FORK_DELAY = 0.5
"""Seconds that the supervisor waits after a decoder could not be started."""

MAX_OPEN_FILES = 16
SLACK = 8 * 2**20
"""Bytes of memory that a decoder may keep after a large image before it is replaced."""


class SharedFile(mmap.mmap):
    """A file in the shared memory."""

    def getvalue(self) -> mmap.mmap:
        """Return all bytes without a copy; Pillow calls this method to decode TIFF."""
        return self

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:  # type: ignore[override]
        """Go to the end for a position behind it, which mmap refuses and files allow."""
        start = (0, self.tell(), len(self))[whence]
        super().seek(min(start + offset, len(self)))
        return self.tell()


class Decoder:
    """Answers requests until the server closes the connection."""

    def __init__(self, connection: socket.socket, shared: int) -> None:
        """`shared` is the descriptor of the memory shared with the server."""
        self._socket = connection
        self._lines = connection.makefile("rb")
        self._shared = shared
        self._pixels: mmap.mmap | None = None
        self._base = address_space()
        self._grant = 0
        """Bytes of memory beyond the base."""
        self._is_last = False

    def run(self) -> None:
        """Answer requests until the connection ends, or an answer says that it is the last."""
        with contextlib.suppress(EOFError, ConnectionError):
            while not self._is_last:
                self._answer(self._receive())

    def _receive(self) -> dict[str, Any]:
        """Return the next message; raise EOFError if the server has gone."""
        line = self._lines.readline()
        if not line:
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _limit_memory(self, grant: int, max_grant: int) -> None:
        """Allow `grant` bytes beyond the base; a later call may allow up to `max_grant`."""
        if grant != self._grant:
            self._grant = grant
            limits = self._base + grant, self._base + max(grant, max_grant)
            with contextlib.suppress(OSError, ValueError):  # macOS does not limit address space
                resource.setrlimit(resource.RLIMIT_AS, limits)

    def _answer(self, request: dict[str, Any]) -> None:
        self._limit_memory(request["grant"], request["max_grant"])
        limit_cpu_time(cpu_seconds(0, 0))
        try:
            answer: dict[str, Any] = {"seconds": self._decode(request)}
        except _Dropped:
            return
        except InvalidImage as error:
            answer = {"error": str(error), "may_lack_memory": self._may_lack_memory(error)}
        except (MemoryError, OSError, RuntimeError):  # no room for an object, a mapping, a thread
            answer = {"error": "", "may_lack_memory": True}
        finally:
            limit_cpu_time(0)
        if request["is_expensive"]:
            kept = address_space() - self._base
            self._is_last = max(kept, request["size"]) > SLACK
        self._send({**answer, "is_last": self._is_last})

    def _decode(self, request: dict[str, Any]) -> float:
        """Put the pixels of an image into the shared memory; return the seconds that it took."""
        self._needed = 0
        transform = EvaluationTransform(**request["transform"])
        started = time.perf_counter()
        image, threads = self._open(request)
        pixels = transform(image, threads)
        seconds = time.perf_counter() - started
        if self._pixels is None or len(self._pixels) < pixels.size:
            self._pixels = mmap.mmap(self._shared, pixels.size)
        self._pixels[: pixels.size] = pixels.tobytes()
        return seconds

    def _open(self, request: dict[str, Any]) -> tuple[Image.Image, int]:
        """Return the opened image, and the threads for it, once there is memory to decode it."""
        payload: Any = io.BytesIO()
        if request["size"]:  # a length of 0 would map the whole shared memory
            payload = SharedFile(self._shared, request["size"], access=mmap.ACCESS_READ)
        if request["shape"]:
            image = from_array(np.frombuffer(payload, np.uint8).reshape(request["shape"]))
        else:
            size = webp_size(payload.read(30))
            if size:
                self._await_grant(request, "WEBP", "RGBA", size)
            image = open_file(payload)
        kind, coefficients = image.format or "array", coefficients_of(image)
        return image, self._await_grant(request, kind, image.mode, image.size, coefficients)

    def _await_grant(
        self,
        request: dict[str, Any],
        kind: str,
        mode: str,
        size: tuple[int, int],
        coefficients: float = 0,
    ) -> int:
        """Return the threads that the image may use, once the server has granted the memory.

        Raises InvalidImage if the image is too large, and _Dropped if the server will send it
        again later.
        """
        check_size(*size, request["max_pixels"])
        image = memory_for_image(kind, mode, *size, coefficients)
        self._needed = memory_for_file(request["size"], kind) + image
        expensive = is_expensive(*size, request["size"], coefficients)
        if self._needed > self._grant or (expensive and not request["is_expensive"]):
            self._send({"needs": self._needed})
            limit_cpu_time(0)
            reply = self._receive()
            if "grant" not in reply:
                raise _Dropped
            request.update(reply)
            self._limit_memory(request["grant"], request["max_grant"])
        limit_cpu_time(cpu_seconds(*size))
        return int(request["threads"])

    def _may_lack_memory(self, error: InvalidImage) -> bool:
        too_little = self._grant < max(RETRY_MARGIN * self._needed, 1)
        return isinstance(error, DamagedImage) and too_little


class _Dropped(Exception):
    """The server takes the image back."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise InvalidImage for an image without pixels or with more than `max_pixels`."""
    if width < 1 or height < 1:
        raise InvalidImage(f"An image of {width}x{height} pixels has nothing to classify.")
    if width * height > max_pixels:
        raise InvalidImage(
            f"An image of {width}x{height} pixels is too large: the setting max_pixels allows "
            f"{max_pixels} pixels."
        )


def limit_cpu_time(seconds: float) -> None:
    """End this process by SIGPROF after `seconds` of CPU time; 0 ends the limit."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def address_space() -> int:
    """Return the bytes of this process's address space; 0 if the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * mmap.PAGESIZE
    except OSError:
        return 0


def run_decoder(connection: int, shared: int) -> None:
    """Limit this process and answer requests from the server."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # C libraries write warnings about images to stderr
        os.dup2(null, descriptor)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_OPEN_FILES, MAX_OPEN_FILES))
    Decoder(socket.socket(fileno=connection), shared).run()


class Supervisor:
    """Starts decoders as the server asks, and reports how each ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._numbers: dict[int, int] = {}
        """The server's number of each decoder, by process id."""

    def run(self) -> None:
        """Serve until the server closes the connection; then end all decoders."""
        signal.signal(signal.SIGCHLD, lambda *_: self._report_exits())
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._obey()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pid in self._numbers:
            os.kill(pid, signal.SIGKILL)

    def _obey(self) -> None:
        data, descriptors, _, _ = socket.recv_fds(self._control, NUMBER.size, 2)
        if len(data) < NUMBER.size:
            raise EOFError
        (number,) = NUMBER.unpack(data)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # its handler takes numbers out
        if descriptors:
            try:
                self._numbers[self._start(descriptors)] = number
            except OSError:  # the system has no room for a process; the server asks again
                time.sleep(FORK_DELAY)
        else:
            for pid, each in self._numbers.items():
                if each == number:
                    os.kill(pid, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for descriptor in descriptors:
            os.close(descriptor)

    def _start(self, descriptors: list[int]) -> int:
        """Return the process id of a new decoder with a socket and shared memory."""
        if not CAN_FORK:
            arguments = ["decoder", *map(str, descriptors)]
            command = [sys.executable, "-m", f"{__package__}.worker", *arguments]
            for descriptor in descriptors:
                os.set_inheritable(descriptor, True)
            close = [(os.POSIX_SPAWN_CLOSE, self._control.fileno())]
            # subprocess.Popen would take the exit status of a decoder that has ended.
            return os.posix_spawn(sys.executable, command, os.environ, file_actions=close)
        supervisor = os.getpid()
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            end_with_parent(supervisor)
            self._control.close()
            run_decoder(*descriptors)
            status = 0
        finally:
            os._exit(status)

    def _report_exits(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                code = os.waitstatus_to_exitcode(status)
                self._control.sendall(EXITED.pack(self._numbers.pop(pid), code))


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, also if that is killed (Linux)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def main(role: str, *arguments: str) -> None:
    """Run as the supervisor (a descriptor and the server's process id) or as a decoder (two
    descriptors)."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C: accepted requests are still answered
        signal.signal(number, signal.SIG_IGN)
    logging.disable()
    threading.stack_size(THREAD_STACK)
    configure_pillow()
    first, second = map(int, arguments)
    if role == "supervisor":
        end_with_parent(second)
        Supervisor(socket.socket(fileno=first)).run()
    else:
        run_decoder(first, second)


if __name__ == "__main__":
    main(*sys.argv[1:])
