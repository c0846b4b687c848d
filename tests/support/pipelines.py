"""Pipelines in the test's own process, with the bundled checkpoint."""

from pathlib import Path
from typing import Any

from mlserver.settings import ModelParameters, ModelSettings

from mlserver_timm.inference.pipeline import InferencePipeline, load_pipeline
from tests.support.timm_reference import SAMPLE


async def sample_pipeline(cache_dir: Path, **extra: Any) -> InferencePipeline:
    """Return a running pipeline on two threads; `extra` are the runtime's settings."""
    settings = {"num_threads": 2, "cache_dir": str(cache_dir), **extra}
    model = ModelSettings(
        name="tested",
        implementation="mlserver.MLModel",
        max_batch_size=4,
        parameters=ModelParameters(uri=str(SAMPLE), extra=settings),
    )
    return await load_pipeline(model)
