"""From images to the network's outputs: decoding threads, the batcher and the engine."""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from mlserver.settings import ModelSettings

from .batcher import Batcher
from .checkpoint import Checkpoint
from .engines.base import Outputs
from .engines.cpu import available_cores
from .engines.factory import create_engine
from .errors import RequestTimedOut
from .hub import find_checkpoint
from .images import ImageSource
from .metrics import RuntimeMetrics
from .settings import (
    BatcherLimits,
    RuntimeSettings,
    batcher_limits,
    explicit_uri,
    model_folder,
    processes_per_model,
    read_settings,
)
from .transforms import EvaluationTransform

logger = logging.getLogger("mlserver.tinyvit")


def load_pipeline(model: ModelSettings) -> "InferencePipeline":
    """The pipeline that a model's settings ask for, loaded and warmed up.

    It takes seconds, so it belongs on a thread. Raises SettingsError, CheckpointError or
    EngineUnavailable.
    """
    settings = read_settings(model.parameters.extra if model.parameters else None)
    checkpoint = find_checkpoint(
        explicit_uri(model), settings.pretrained_model, settings.fallback, model_folder(model)
    )
    limits = batcher_limits(model, settings)
    return InferencePipeline(checkpoint, settings, limits, RuntimeMetrics(model))


class InferencePipeline:
    """A loaded checkpoint that classifies images, many requests at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: RuntimeSettings,
        limits: BatcherLimits,
        metrics: RuntimeMetrics,
    ) -> None:
        self.checkpoint = checkpoint
        self.metrics = metrics
        self._settings = settings
        self._limits = limits
        num_threads = settings.num_threads or max(1, available_cores() // processes_per_model())
        self.engine, self.description = create_engine(
            checkpoint,
            settings,
            num_threads,
            limits.max_batch_size,
            undivided=limits.max_batch_time > 0,  # whoever waits for a batch to fill wants it whole
        )
        self._computed = {"engine": self.engine.name, "precision": self.engine.precision}
        self.network_outputs = self.engine.outputs
        self._transform = EvaluationTransform(
            size=self.description.input_size,
            interpolation=self.description.interpolation,
            crop_pct=self.description.crop_pct,
            crop_mode=self.description.crop_mode,
            fill=tuple(round(255 * value) for value in self.description.mean),  # type: ignore[arg-type]
            exact=self.engine.precision != "bf16",
        )
        self._decoders = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        logger.info("Serving %s.", ", ".join(f"{k} {v}" for k, v in self.facts().items()))

    @property
    def labels(self) -> list[str]:
        """One a class."""
        return self.description.labels

    @property
    def max_pixels(self) -> int:
        """Of the largest image accepted, width × height."""
        return self._settings.max_pixels

    def start(self) -> None:
        """Begins to take requests; needs a running event loop."""
        self._batcher = Batcher(self.engine, self._limits, self.metrics.observe)

    def check_room(self) -> None:
        """Raises QueueFull or ModelClosing where not one image more would be taken in now."""
        self._batcher.check_room(1)

    async def infer(self, images: Sequence[ImageSource], outputs: frozenset[str]) -> Outputs:
        """The network's `outputs`, each float32 `[N,...]`, for N images.

        Raises what an image raises when opened, QueueFull, ModelClosing, RequestTimedOut or
        EngineFailed; no image of a request that was given up is computed.
        """
        with self._batcher.admit(len(images)):
            tasks = [asyncio.ensure_future(self._infer_one(image, outputs)) for image in images]
            try:
                rows = await self._rows(tasks)
                return {name: np.stack([row[name] for row in rows]) for name in outputs}
            finally:
                while tasks:
                    tasks.pop().cancel()

    async def _rows(self, tasks: "Sequence[asyncio.Future[Outputs]]") -> list[Outputs]:
        """All results in order; else the first task's exception, as soon as there is any."""
        done, pending = await asyncio.wait(
            tasks, timeout=self._settings.timeout, return_when=asyncio.FIRST_EXCEPTION
        )
        try:
            for task in tasks:
                if task in done:
                    task.result()
            if pending:
                raise RequestTimedOut(self._settings.timeout)
            return [task.result() for task in tasks]
        finally:
            # Else an exception and this frame, which it knows, would hold each other, and the
            # request's data with them, until garbage is collected.
            del done, pending, task

    def facts(self) -> dict[str, str | int | bool]:
        """What is really loaded, in the types that the protocol's parameters have."""
        height, width = self.description.input_size
        notice = self.checkpoint.notice
        return {
            "weights": self.checkpoint.name,
            "fallback": self.checkpoint.fallback,
            "architecture": self.description.architecture,
            "classes": len(self.description.labels),
            "input_size": f"3x{height}x{width}",
            **self._computed,
            **({"notice": notice} if notice else {}),
        }

    async def close(self) -> None:
        """Answers what was taken in, then stops the threads and lets go of the network."""
        await self._batcher.close()
        self._decoders.shutdown(wait=False)
        # The network goes now, not when garbage is collected: a model refers to itself.
        del self.engine

    async def _infer_one(self, image: ImageSource, outputs: frozenset[str]) -> Outputs:
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._decode, image)
        return await self._batcher.submit(pixels, outputs)

    def _decode(self, image: ImageSource) -> np.ndarray:
        started = time.monotonic()
        pixels = self._transform(image.open())
        self.metrics.observe("decode_seconds", time.monotonic() - started)
        return pixels
