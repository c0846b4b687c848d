"""From pictures to probabilities: decoding threads, the queue and the engine, put together."""

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mlserver.errors import MLServerError

from batching import Batcher
from checkpoint import find_source
from configuration import Configuration
from engine import MAX_STREAMS, create_engine, warm_up
from images import Preprocessing
from monitoring import Monitor
from protocol import Picture

SERVED: "dict[str, Classifier]" = {}
"""The classifiers that take requests in this process, by the model's name."""

logger = logging.getLogger("mlserver.tinyvit")


def suit_interpreter() -> None:
    """Sets what Python's defaults cost a server of pictures a tenth of its speed for."""
    # Pixels in JSON are a list of 400 000 references, which every collection of young objects goes
    # through, at 700 new ones by default.
    gc.set_threshold(10_000)
    # A thread that comes back from the engine waits so long for the interpreter, 5 ms by default.
    sys.setswitchinterval(0.001)


class TimedOut(MLServerError):
    """A request took longer than the settings allow."""

    def __init__(self, timeout: float) -> None:
        super().__init__(f"The request was not answered within {timeout:g} seconds.", 504)


class Classifier:
    """A loaded checkpoint that classifies pictures, many requests at a time."""

    def __init__(
        self,
        config: Configuration,
        uri: str | None,
        base: Path,
        max_batch_size: int,
        max_batch_time: float,
        threads: int,
        monitor: Monitor,
    ) -> None:
        """Loads and warms up; takes seconds, so it belongs on a thread.

        `uri` and the configuration's paths are relative to `base`; `threads` holds where the
        configuration names no number. Raises CheckpointError or EngineError.
        """
        self._config = config
        self._limits = max_batch_size, max_batch_time, config.max_queue
        self.monitor = monitor
        suit_interpreter()
        threads = config.num_threads or threads
        self.source = find_source(uri, config.pretrained_model, config.fallback, base)
        self.engine, self.description = create_engine(
            config.engine,
            self.source,
            config.precision,
            threads,
            config.cache_dir,
            max_batch_size,
            # Who waits for a batch to fill wants it undivided.
            max_streams=1 if max_batch_time else MAX_STREAMS,
        )
        self._preprocess = Preprocessing(
            size=self.description.input_size,
            interpolation=self.description.interpolation,
            crop_pct=self.description.crop_pct,
            crop_mode=self.description.crop_mode,
            fill=tuple(round(255 * value) for value in self.description.mean),  # type: ignore[arg-type]
            exact=self.engine.precision != "bf16",
        )
        self._computed = {"engine": self.engine.name, "precision": self.engine.precision}
        logger.info("Serving %s.", ", ".join(f"{k} {v}" for k, v in self.facts().items()))
        warm_up(self.engine, self.description.input_size)
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    @property
    def labels(self) -> list[str]:
        return self.description.labels

    @property
    def max_pixels(self) -> int:
        return self._config.max_pixels

    def start(self) -> None:
        """Begins to take requests; needs a running event loop."""
        self._batcher = Batcher(
            self.engine.in_stream,
            *self._limits,
            self.monitor.observe,
            streams=self.engine.streams,
            lanes=self.engine.lanes,
            share=self.engine.share,
            alone=self.engine,
        )

    def check_room(self) -> None:
        """Raises QueueFull where not one image more would be taken in now."""
        self._batcher.check_room(1)

    async def __call__(self, pictures: Sequence[Picture]) -> np.ndarray:
        """float32 probabilities `[N,classes]`.

        Raises what a picture raises when opened, QueueFull, TimedOut or EngineFailed; no image of
        a request that was given up is computed.
        """
        with self._batcher.admit(len(pictures)):
            tasks = [asyncio.ensure_future(self._one(picture)) for picture in pictures]
            try:
                return np.stack(await self._rows(tasks))
            finally:
                while tasks:
                    tasks.pop().cancel()

    async def _rows(self, tasks: "Sequence[asyncio.Future[np.ndarray]]") -> list[np.ndarray]:
        """All results in order; else the first task's exception, as soon as there is any."""
        done, pending = await asyncio.wait(
            tasks, timeout=self._config.timeout, return_when=asyncio.FIRST_EXCEPTION
        )
        try:
            for task in tasks:
                if task in done:
                    task.result()
            if pending:
                raise TimedOut(self._config.timeout)
            return [task.result() for task in tasks]
        finally:
            # Else an exception and this frame, which it knows, would hold each other, and the
            # request's data with them, until garbage is collected.
            del done, pending, task

    def facts(self) -> dict[str, str | int | bool]:
        """What is really loaded, in the types that the protocol's parameters have."""
        height, width = self.description.input_size
        return {
            "weights": self.source.name,
            "fallback": self.source.fallback,
            "architecture": self.description.architecture,
            "classes": len(self.description.labels),
            "input_size": f"3x{height}x{width}",
            **self._computed,
        }

    async def close(self) -> None:
        """Answers what was taken in, then stops the threads and lets go of the network."""
        await self._batcher.close()
        self._decoders.shutdown(wait=False)
        # The network goes now, not when garbage is collected: a model refers to itself.
        del self.engine

    async def _one(self, picture: Picture) -> np.ndarray:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._decode, picture)
        return await self._batcher.submit(pixels)

    def _decode(self, picture: Picture) -> np.ndarray:
        started = time.monotonic()
        pixels = self._preprocess(picture())
        self.monitor.observe("decode_seconds", time.monotonic() - started)
        return pixels
