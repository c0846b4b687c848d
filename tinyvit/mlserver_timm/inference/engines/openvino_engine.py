"""The forward pass by OpenVINO, on the CPU."""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mlserver_timm.checkpoints.openvino_import import import_openvino
from mlserver_timm.inference.engines.base import Outputs

if TYPE_CHECKING:
    import openvino

REQUESTS_PER_STREAM = 2
"""One that the stream computes, and one that waits in OpenVINO. So no stream is idle while Python
prepares the next batch."""


class OpenVINOEngine:
    """Compiles the network twice: a LATENCY model for single images, and a THROUGHPUT model.

    The LATENCY model computes one image on all threads, which gives the earliest answer. The
    THROUGHPUT model has streams of one thread each. They compute more images a second, because
    threads that share an image wait for each other after every layer. With one thread both are the
    same model, unless batches stay whole.
    """

    name = "openvino"

    def __init__(
        self,
        model: "openvino.Model",
        precision: str,
        num_threads: int,
        max_batch_size: int,
        max_streams: int,
    ) -> None:
        """`precision` is fp32 or bf16. Each infer request of the THROUGHPUT model takes an even
        share of `max_batch_size` images; with one thread, one image. If `max_streams` is 1, batches
        stay whole."""
        ov = import_openvino()
        self.outputs = frozenset(output.any_name for output in model.outputs)
        self.num_streams = min(num_threads, max_streams)
        # One stream by setting: nothing else is to be computed at the same time as a batch.
        self.num_infer_requests = REQUESTS_PER_STREAM * self.num_streams if max_streams > 1 else 1
        # Batches gain little on one thread (TinyViT-5M loses 11 %, EfficientNet-Lite0 gains 10 %),
        # and a network for them is a second one in memory: 90 MiB.
        one_by_one = num_threads == 1 < max_streams
        share = math.ceil(max_batch_size / self.num_infer_requests)
        self.images_per_request = 1 if one_by_one else share
        core = ov.Core()
        types = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16}
        settings = {
            # By default, OpenVINO computes in bfloat16 if the processor supports it.
            "INFERENCE_PRECISION_HINT": types[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            # By default, OpenVINO binds threads to cores, and each process to the same ones: two
            # servers with one thread each would share a core.
            "ENABLE_CPU_PINNING": False,
        }

        def compiled(network: "openvino.Model", streams: int) -> "openvino.CompiledModel":
            hint = "THROUGHPUT" if streams > 1 else "LATENCY"
            hints = {"PERFORMANCE_HINT": hint, "NUM_STREAMS": streams}
            return core.compile_model(network, "CPU", {**settings, **hints})

        single = _with_batch_of_one(model)
        many = model if self.images_per_request > 1 else single
        with ThreadPoolExecutor(2) as threads:  # compiling uses one core
            latency = throughput = threads.submit(compiled, single, 1)
            if many is not single or self.num_streams > 1:
                throughput = threads.submit(compiled, many, self.num_streams)
        latency_model, throughput_model = latency.result(), throughput.result()
        used = latency_model.get_property("INFERENCE_PRECISION_HINT")
        self.precision = next((name for name, kind in types.items() if kind == used), str(used))
        self._tensor = ov.Tensor  # copies pixels
        self._latency_request = latency_model.create_infer_request()
        self._idle_requests: SimpleQueue[openvino.InferRequest] = SimpleQueue()
        for _ in range(self.num_infer_requests):
            self._idle_requests.put(throughput_model.create_infer_request())

    def infer_latency(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """Return the outputs of the images, computed one after the other on all threads."""
        rows = [self._infer(self._latency_request, image[np.newaxis], outputs) for image in pixels]
        return {name: np.concatenate([row[name] for row in rows]) for name in outputs}

    def infer_throughput(self, pixels: np.ndarray, outputs: Collection[str]) -> Outputs:
        """Return the outputs of the images, computed as one batch on one stream."""
        request = self._idle_requests.get()
        try:
            return self._infer(request, pixels, outputs)
        finally:
            self._idle_requests.put(request)

    def _infer(
        self, request: "openvino.InferRequest", pixels: np.ndarray, outputs: Collection[str]
    ) -> Outputs:
        # Passing the pixels to `infer`, which takes any number of inputs, costs 0.1 ms more.
        request.set_input_tensor(self._tensor(pixels))
        request.infer(share_outputs=True)
        # The results are the request's own memory, which its next call overwrites.
        return {name: request.get_tensor(name).data.copy() for name in outputs}


def _with_batch_of_one(model: "openvino.Model") -> "openvino.Model":
    """Return the model for batches of one: with a fixed shape a call takes 2 to 7 % less time."""
    single = model.clone()
    shape = single.input(0).partial_shape
    shape[0] = 1
    single.reshape(shape)
    return single
