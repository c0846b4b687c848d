"""From images to the network's outputs: decoder processes, the batcher and the engine."""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
from mlserver.settings import ModelSettings

from mlserver_timm.checkpoints.exported import ExportedModel
from mlserver_timm.checkpoints.hub import find_checkpoint
from mlserver_timm.checkpoints.network import PROBABILITIES
from mlserver_timm.errors import CheckpointError, EngineFailed, RequestTimedOut
from mlserver_timm.images.pool import DecoderLimits, DecoderPool, shared_pool
from mlserver_timm.images.sources import ImageSource
from mlserver_timm.images.transforms import EvaluationTransform
from mlserver_timm.inference.batcher import Batcher
from mlserver_timm.inference.engines.base import Outputs
from mlserver_timm.inference.engines.cpu import available_cores
from mlserver_timm.inference.engines.factory import create_engine
from mlserver_timm.metrics import RuntimeMetrics, decoder_restarts, loaded_models
from mlserver_timm.settings import (
    RuntimeSettings,
    batcher_limits,
    explicit_uri,
    model_folder,
    settings_of,
)

logger = logging.getLogger("mlserver.tinyvit")


async def load_pipeline(model: ModelSettings) -> "InferencePipeline":
    """Return the pipeline that a model's settings ask for, loaded, warmed up and running.

    The decoders start while the engine is compiled, on a thread. Raises SettingsError,
    CheckpointError or EngineUnavailable.
    """
    settings = settings_of(model)
    threads = settings.num_threads or available_cores()
    limits = DecoderLimits(threads, settings.decode_memory(threads))
    pool = await shared_pool().join(limits, decoder_restarts().inc)
    try:
        pipeline = await asyncio.to_thread(InferencePipeline, model, settings, pool, limits)
        await pool.check()
    except BaseException:
        await shared_pool().leave(limits)
        raise
    pipeline.start(RuntimeMetrics(model))
    return pipeline


class InferencePipeline:
    """A loaded checkpoint that classifies images, many requests at a time."""

    def __init__(
        self,
        model: ModelSettings,
        settings: RuntimeSettings,
        decoders: DecoderPool,
        decoder_limits: DecoderLimits,
    ) -> None:
        """Find the checkpoint, and load and warm up its network, which takes seconds."""
        checkpoint = find_checkpoint(
            explicit_uri(model), settings.pretrained_model, settings.fallback, model_folder(model)
        )
        self.checkpoint = checkpoint
        self._settings = settings
        self._limits = limits = batcher_limits(model, settings)
        self._broken = False
        self.engine, self.description = create_engine(
            checkpoint,
            settings,
            decoder_limits.threads,
            limits.max_batch_size,
            undivided=limits.max_batch_time > 0,  # a batch that was waited for stays whole
        )
        self._computed = {"engine": self.engine.name, "precision": self.engine.precision}
        if checkpoint.exported:
            self._computed["digest"] = f"sha256:{ExportedModel(checkpoint.folder).digest()}"
        blank = np.zeros((1, *self.description.input_size, 3), np.uint8)
        outputs = self.engine.infer_latency(blank, self.engine.outputs)
        self.network_outputs = {name: rows.shape[1] for name, rows in outputs.items()}
        self.labels = self.description.labels
        """Names of the classes, by index."""
        classes, labels = self.network_outputs[PROBABILITIES], len(self.labels)
        if classes != labels:
            raise CheckpointError(f"{checkpoint.name} has {classes} classes but {labels} labels.")
        self._decoders, self._decoder_limits = decoders, decoder_limits
        self._transform = EvaluationTransform(
            size=self.description.input_size,
            interpolation=self.description.interpolation,
            crop_pct=self.description.crop_pct,
            crop_mode=self.description.crop_mode,
            fill=tuple(round(255 * value) for value in self.description.mean),  # type: ignore[arg-type]
            exact=self.engine.precision != "bf16",
        )
        facts = ", ".join(f"{name} {value}" for name, value in self.facts().items())
        logger.info("Serving %s.", facts.rstrip("."))

    def start(self, metrics: RuntimeMetrics) -> None:
        """Accept requests; an event loop must be running."""
        self.metrics = metrics
        self._batcher = Batcher(
            self.engine, self._limits, metrics.observe, self._decoders.engine_call
        )
        loaded_models().inc()

    def check_room(self) -> None:
        """Raise QueueFull or ModelClosing if not one more image can be admitted now."""
        self._batcher.check_room(1)

    async def infer(self, images: Sequence[ImageSource], outputs: frozenset[str]) -> Outputs:
        """Return the network's `outputs` for N images, each float32 `[N,...]`.

        Raises InvalidImage, QueueFull, ModelClosing, RequestTimedOut or EngineFailed. If the caller
        is cancelled or one image fails, the other images are not computed.
        """
        with self._batcher.admit(len(images)):
            tasks = [asyncio.ensure_future(self._infer_one(image, outputs)) for image in images]
            try:
                rows = await self._rows(tasks)
                results = {name: np.stack([row[name] for row in rows]) for name in outputs}
                if not _are_numbers(results):
                    await self._check_network()
                    raise EngineFailed()
                return results
            finally:
                del images  # Python 3.10 keeps this frame with a cancelled request's exception
                while tasks:
                    tasks.pop().cancel()

    def is_broken(self) -> bool:
        """Return whether the network returns NaN for every image, so that it cannot answer."""
        return self._broken

    async def _check_network(self) -> None:
        """Mark the network broken if it also fails on a blank image, which it answered at load."""
        blank = np.zeros((*self.description.input_size, 3), np.uint8)
        results = await self._batcher.submit(blank, frozenset({PROBABILITIES}))
        was_broken, self._broken = self._broken, not _are_numbers(results)
        if self._broken and not was_broken:
            logger.error("The model returns NaN scores for every image; it is marked not ready.")
        elif not self._broken:
            logger.error(
                "The model returned NaN scores for a request, which is answered with status 500."
            )

    async def _rows(self, tasks: "Sequence[asyncio.Future[Outputs]]") -> list[Outputs]:
        """Return all results in order, or raise the first exception as soon as there is one."""
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
            # An exception refers to this frame. Without this, both would keep the request's data
            # in memory until the next garbage collection.
            del done, pending, task

    def facts(self) -> dict[str, str | int | bool]:
        """Return what is loaded: weights, architecture, engine, precision (in metadata and log)."""
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
        """Answer the requests that were accepted, then release decoders and network."""
        loaded_models().dec()
        try:
            await self._batcher.close()
        finally:
            await shared_pool().leave(self._decoder_limits)
        # Models refer to themselves: without this the network stays until the garbage collection.
        del self.engine

    async def _infer_one(self, image: ImageSource, outputs: frozenset[str]) -> Outputs:
        decoding = self._decoders.decode(
            image, self._transform, self._settings.max_pixels, self._batcher.admitted
        )
        del image
        decoded = await decoding
        self.metrics.observe("decode_seconds", decoded.seconds)
        return await self._batcher.submit(decoded.pixels, outputs)


def _are_numbers(results: Outputs) -> bool:
    """Return whether all values are finite."""
    return all(np.isfinite(values).all() for values in results.values())
