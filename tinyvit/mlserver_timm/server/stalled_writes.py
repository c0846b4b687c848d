"""A bound on the time in which a client takes nothing of what is sent to it."""

import asyncio
import contextlib
import fcntl
import struct
import termios

LOOKS = 4
"""In the time after which a connection is ended: that is by so much longer than it has to be."""


class StalledWrites:
    """Ends a connection whose client has taken nothing for `timeout` seconds, though something
    waited to be written. One that reads slowly goes on."""

    def __init__(self, transport: asyncio.Transport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._unsent = self._looks = 0
        self._look_later()

    def stop(self) -> None:
        self._timer.cancel()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timeout / LOOKS, self._look)

    def _look(self) -> None:
        before, self._unsent = self._unsent, self._count_unsent()
        self._looks = self._looks + 1 if self._unsent and self._unsent == before else 0
        if self._looks < LOOKS:
            self._look_later()
        else:
            self._transport.abort()

    def _count_unsent(self) -> int:
        """Bytes that wait here, and those that the system has taken and the client not: it takes
        more only once a third of these are gone, which with a slow client takes minutes."""
        here = self._transport.get_write_buffer_size()
        if not here:
            return 0
        queued = bytes(4)
        with contextlib.suppress(OSError):  # this system does not tell
            socket = self._transport.get_extra_info("socket")
            queued = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, queued)
        return here + int(struct.unpack("@i", queued)[0])
