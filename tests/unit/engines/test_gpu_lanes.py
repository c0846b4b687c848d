"""The lanes of a GPU with a small network on the CPU: a fake replaces CUDA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mlserver_timm.inference.engines import torch_lanes
from mlserver_timm.inference.engines.torch_lanes import (
    CudaGraphLane,
    EagerLane,
    compiled,
    fast_lanes,
)

CPU = torch.device("cpu")


class Tiny(torch.nn.Module):
    """Two outputs, different for every image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4 * 4 * 3, 5)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.layer(pixels.flatten(1).float() / 255)
        return logits.softmax(1), logits


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), np.uint8)


class Graph:
    """Repeats the captured computation in the same memory."""

    capturing: "Graph | None" = None

    def __init__(self) -> None:
        self.again: Callable[[], None] = lambda: None

    def replay(self) -> None:
        self.again()


class Stream:
    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


def captured(network: torch.nn.Module) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    def run(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = network(pixels)
        if Graph.capturing:

            def again() -> None:
                with torch.inference_mode():
                    for output, new in zip(outputs, network(pixels), strict=True):
                        output.copy_(new)

            Graph.capturing.again = again
        return outputs

    return run


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def graph(one: Graph, stream: Stream) -> Iterator[None]:
        Graph.capturing = one
        yield
        Graph.capturing = None

    @contextmanager
    def stream(one: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self.clone())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_graphs_answer_for_every_size_of_batch(cuda: None, count: int) -> None:
    """Also if a batch is smaller than its graph, after a larger one."""
    network = Tiny().eval()
    lane = CudaGraphLane(captured(network), images=6, size=(4, 4))
    eager = EagerLane(network, CPU)
    lane(images(6), [0, 1])
    pixels = images(count)
    for result, expected in zip(lane(pixels, [1, 0]), eager(pixels, [1, 0]), strict=True):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_answers_outlive_the_next_batch(cuda: None) -> None:
    network = Tiny().eval()
    lane = CudaGraphLane(captured(network), images=2, size=(4, 4))
    (first,) = lane(images(2), [0])
    kept = first.copy()
    lane(images(1), [0])
    assert np.array_equal(first, kept)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put EagerLane on the CPU for any device."""
    monkeypatch.setattr(torch_lanes, "EagerLane", lambda network, device: EagerLane(network, CPU))


def test_lanes_with_different_answers_are_not_used(
    cuda: None, no_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = Tiny().eval(), Tiny().eval()
    with torch.no_grad():
        wrong.layer.bias += torch.arange(5.0)
    program = captured(right)
    assert len(fast_lanes(right, program, 2, images=4, size=(4, 4), bound=0.01)) == 2
    assert not fast_lanes(right, captured(wrong), 2, images=4, size=(4, 4), bound=0.01)
    assert "eagerly" in caplog.text


def test_a_failed_compilation_leaves_the_eager_engine(
    cuda: None, no_gpu: None, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("no compiler")

    assert not fast_lanes(Tiny(), fails, 2, images=4, size=(4, 4), bound=0.01)
    assert "no compiler" in caplog.text


@pytest.mark.slow
def test_compiled_answers_as_eager() -> None:
    network = Tiny().eval()
    lane, eager = EagerLane(compiled(network), CPU), EagerLane(network, CPU)
    for count in (1, 2, 3):
        (result,), (expected,) = lane(images(count), [0]), eager(images(count), [0])
        np.testing.assert_allclose(result, expected, atol=1e-6)
