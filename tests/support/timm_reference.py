"""The reference for all answers: timm's own pipeline on the same checkpoint."""

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import (
    CustomDatasetInfo,
    ImageNetInfo,
    create_transform,
    infer_imagenet_subset,
    resolve_data_config,
)

from mlserver_timm.images.transforms import EvaluationTransform
from tests.support.paths import SAMPLE

TOLERANCE = 1e-4
"""Largest difference of a probability between timm's pipeline and an answer in fp32."""


@dataclass(frozen=True)
class TimmReference:
    """A checkpoint's network, transform and labels, made by timm."""

    network: Any
    transform: Any
    labels: list[str]

    @functools.cached_property
    def _cache(self) -> dict[Any, np.ndarray]:
        return {}

    def probabilities(self, image: Image.Image) -> np.ndarray:
        """Return float32 `[classes]` of an RGB image; each image is computed once."""
        assert image.mode == "RGB"
        key = image.size, image.tobytes()
        if key not in self._cache:
            with torch.inference_mode():
                logits = self.network(self.transform(image)[None])
            self._cache[key] = logits.softmax(-1)[0].numpy()
        return self._cache[key]

    def features(self, image: Image.Image) -> np.ndarray:
        """Return float32 `[D]`: what the network's last layer gets for an RGB image."""
        with torch.inference_mode():
            features = self.network.forward_features(self.transform(image)[None])
            return self.network.forward_head(features, pre_logits=True)[0].numpy()

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Return float32 `[N,classes]` of uint8 `[N,H,W,3]` in the network's size."""
        config = resolve_data_config({}, model=self.network)
        mean, std = (np.asarray(config[name], np.float32) for name in ("mean", "std"))
        normalized = (pixels.astype(np.float32) / 255 - mean) / std
        with torch.inference_mode():
            logits = self.network(torch.from_numpy(normalized.transpose(0, 3, 1, 2)))
        return logits.softmax(-1).numpy()

    def ranking(self, image: Image.Image, k: int = 5) -> tuple[list[str], np.ndarray]:
        """Return the k best labels and their probabilities, best first."""
        row = self.probabilities(image)
        best = np.argsort(-row, kind="stable")[:k]
        return [self.labels[i] for i in best], row[best]

    def assert_matches(self, image: Image.Image, labels: list[str], scores: Any) -> None:
        """Assert that an answer's labels and scores are right, best first.

        Labels whose probabilities differ by less than the tolerance may swap. Two classes of
        ImageNet are called crane.
        """
        expected, probabilities = self.ranking(image, len(labels))
        np.testing.assert_allclose(scores, probabilities, rtol=0, atol=TOLERANCE)
        if labels != expected:
            row = self.probabilities(image)
            assert Counter(labels) <= Counter(self.labels), "a label occurs too often"
            for label, probability in zip(labels, probabilities, strict=True):
                of_label = row[[i for i, other in enumerate(self.labels) if other == label]]
                assert np.abs(of_label - probability).min() <= 2 * TOLERANCE, label


@functools.cache
def timm_reference(folder: Path = SAMPLE) -> TimmReference:
    """Return timm's pipeline for a checkpoint folder."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).float().eval()
    config = network.pretrained_cfg
    transform = create_transform(**resolve_data_config({}, model=network))
    if config.get("label_names"):
        info = CustomDatasetInfo(config["label_names"], config.get("label_descriptions"))
    else:
        info = ImageNetInfo(infer_imagenet_subset(network))
    return TimmReference(
        network, transform, [info.index_to_description(i) for i in info.label_indices()]
    )


@functools.cache
def _evaluation(size: tuple[int, int], interpolation: str, crop_pct: float, crop_mode: str) -> Any:
    return create_transform(
        (3, *size),
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        use_prefetcher=True,
    )


def timms_pixels(image: Image.Image, how: EvaluationTransform) -> np.ndarray:
    """Return the uint8 `[H,W,3]` of timm's evaluation transform."""
    transform = _evaluation(how.size, how.interpolation, how.crop_pct, how.crop_mode)
    return np.asarray(transform(image)).transpose(1, 2, 0)


def make_checkpoint(
    folder: Path,
    architecture: str = "mobilenetv3_small_050",
    classes: int = 3,
    preprocessing: dict[str, Any] | None = None,
    model_args: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Save a checkpoint with timm; its seeded weights distinguish images."""
    torch.manual_seed(0)
    network = timm.create_model(
        architecture, pretrained=False, num_classes=classes, **(model_args or {})
    )
    with torch.no_grad():
        for parameter in network.get_classifier().parameters():
            parameter.normal_(std=0.3)
    timm.models.save_for_hf(
        network,
        folder,
        safe_serialization=True,
        model_config=config,
        model_args=model_args,
        data_config=preprocessing,
    )
    return folder
