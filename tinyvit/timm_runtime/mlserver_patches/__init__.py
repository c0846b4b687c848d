"""Where MLServer 1.7.1 falls short, and what is done about it: one file a fault, see README.md.

Each file has FAULT (one sentence), UPSTREAM (where it is reported), AFFECTS (the versions of
MLServer that have it) and `apply()`.
"""

import hashlib
import logging
from pathlib import Path
from types import ModuleType

import mlserver
from packaging.specifiers import SpecifierSet

from . import (
    dead_workers,
    given_up_requests,
    graceful_stop,
    grpc_bombs,
    grpc_kept_requests,
    grpc_parameters,
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
    grpc_parameters,
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

APPLIED = "_timm_runtime_patches"
"""The attribute of the mlserver package that tells every copy of this one what has been applied in
the process: a patch's name, and the digest of its file."""

logger = logging.getLogger("mlserver.tinyvit")


def apply_all() -> None:
    """Applies what this process needs and does not have yet.

    To be called before MLServer loads a model of this runtime, in every process. Raises
    PatchDoesNotFit where MLServer is not what a patch expects.
    """
    applied: dict[str, str] = vars(mlserver).setdefault(APPLIED, {})
    needed = {_name(patch): patch for patch in _needed() if _is_affected(patch)}
    new = [name for name in needed if name not in applied]
    for name in new:
        needed[name].apply()
        applied[name] = _digest(needed[name])
    if new:
        logger.info("MLServer %s is patched: %s.", mlserver.__version__, ", ".join(new))
    _warn_of_others([n for n in needed if applied[n] not in ("told", _digest(needed[n]))], applied)


def _needed() -> tuple[ModuleType, ...]:
    if processes.in_worker():
        return IN_A_WORKER
    return IN_THE_SERVER + WITH_WORKERS if processes.workers() else IN_THE_SERVER


def _is_affected(patch: ModuleType) -> bool:
    return SpecifierSet(patch.AFFECTS).contains(mlserver.__version__, prereleases=True)


def _name(patch: ModuleType) -> str:
    return patch.__name__.rpartition(".")[2]


def _digest(patch: ModuleType) -> str:
    return DIGESTS[_name(patch)]


DIGESTS = {
    _name(patch): hashlib.sha256(Path(str(patch.__file__)).read_bytes()).hexdigest()
    for patch in {*IN_THE_SERVER, *WITH_WORKERS, *IN_A_WORKER}
}
"""Of the files as they were imported."""


def _warn_of_others(names: list[str], applied: dict[str, str]) -> None:
    """Says once that patches from another copy of this package, or an older state, are in force."""
    if not names:
        return
    logger.warning(
        "The patches of MLServer in this process come from another copy or an earlier state of "
        "timm_runtime, and differ: %s. A restart with one copy makes them the same.",
        ", ".join(names),
    )
    applied.update(dict.fromkeys(names, "told"))
