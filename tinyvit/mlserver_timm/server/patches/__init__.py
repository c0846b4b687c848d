"""Where MLServer 1.7.1 falls short, and what is done about it: one file a fault, see README.md.

Each file has FAULT (one sentence), UPSTREAM (where it is reported), AFFECTS (the versions of
MLServer that have it) and `apply()`.
"""

import logging
from types import ModuleType

import mlserver
from packaging.specifiers import SpecifierSet

from mlserver_timm.server.patches import (
    dead_workers,
    given_up_requests,
    graceful_stop,
    grpc_bombs,
    grpc_kept_requests,
    grpc_status,
    grpc_unpacking,
    late_answers,
    loading_workers,
    locked_answers,
    middleware_place,
    not_ready_status,
    orphaned_workers,
    parallel_stream,
    processes,
    readiness,
    refusal_tracebacks,
    removed_metrics_dir,
    repository_race,
    signals_captured,
    taken_port,
    unanswered_requests,
    unbounded_heads,
    worker_errors,
)

IN_THE_SERVER = (
    refusal_tracebacks,
    signals_captured,
    graceful_stop,
    taken_port,
    unbounded_heads,
    middleware_place,
    readiness,
    repository_race,
    not_ready_status,
    grpc_status,
    grpc_kept_requests,
    grpc_bombs,
    grpc_unpacking,
)
"""In the process that takes requests."""

WITH_WORKERS = (
    dead_workers,
    loading_workers,
    late_answers,
    locked_answers,
    unanswered_requests,
    parallel_stream,
    removed_metrics_dir,
)
"""In the same process, where it has `parallel_workers`."""

IN_A_WORKER = (refusal_tracebacks, worker_errors, given_up_requests, orphaned_workers)
"""In each of the `parallel_workers`."""

_applied: set[str] = set()
"""Names of the patches that are applied in this process."""

logger = logging.getLogger("mlserver.tinyvit")


def apply_all() -> None:
    """Applies what this process needs and does not have yet.

    To be called before MLServer loads a model of this runtime, in every process. Raises
    PatchDoesNotFit where MLServer is not what a patch expects.
    """
    needed = {_name(patch): patch for patch in _needed() if _is_affected(patch)}
    new = [name for name in needed if name not in _applied]
    for name in new:
        needed[name].apply()
        _applied.add(name)
    if new:
        logger.info("MLServer %s is patched: %s.", mlserver.__version__, ", ".join(new))


def _needed() -> tuple[ModuleType, ...]:
    if processes.in_worker():
        return IN_A_WORKER
    return IN_THE_SERVER + WITH_WORKERS if processes.workers() else IN_THE_SERVER


def _is_affected(patch: ModuleType) -> bool:
    return SpecifierSet(patch.AFFECTS).contains(mlserver.__version__, prereleases=True)


def _name(patch: ModuleType) -> str:
    return patch.__name__.rpartition(".")[2]
