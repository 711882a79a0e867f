"""Workers that are Ray actors, on one machine or many. The only module that imports Ray, and only when it is used."""

from __future__ import annotations

import dataclasses
import os
import platform
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertjax import machine
from bertjax.engines.backend import Backend, Logits, Shape
from bertjax.engines.workers.pool import AHEAD, START_SECONDS, About, Feed, WorkerLost, WorkerPool
from bertjax.errors import UserError, WorkFailed

LOCAL = "local"  # the address of a cluster that is started on this machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A worker's place: the `number`-th of `count` on its node, and its share of the node."""

    node: str
    number: int
    count: int
    cpus: float
    gpus: int


def open_ray(
    open_with: Callable[..., Backend], address: str, workers: int | None, *, streams: int | None, threads: int
) -> WorkerPool:
    """A pool of actors: one per GPU where the cluster has GPUs, else `workers` of them spread over its nodes.

    Close the pool, and then call `ray.shutdown`: `close_ray` does both.

    Args:
      open_with: each actor calls it with its `streams` and `threads`, on its own node.
      address: of a running cluster, or LOCAL to start one here.
      streams: of all workers together; None: as many as a worker's share of its node has cores for.

    Raises:
      UserError: Ray is missing, the cluster does not answer, or a worker cannot open its backend.
    """
    ray = _connect(address)
    try:
        places = plan_places(ray.nodes(), workers)
        own = None if streams is None else max(1, streams // len(places))
        return WorkerPool(lambda number: RayWorker(ray, places[number], open_with, own, threads), len(places))
    except BaseException:
        ray.shutdown()
        raise


def close_ray(pool: WorkerPool) -> None:
    """End the actors, leave the cluster, and end it too if it was started here."""
    pool.close()
    leave()


def leave() -> None:
    """Leave the cluster, and end it if it was started here: its processes would outlive this one by a minute or two."""
    shutdown = getattr(sys.modules.get("ray"), "shutdown", None)  # None too while it is being imported
    if shutdown is not None:
        shutdown()


def plan_places(nodes: Sequence[dict[str, Any]], workers: int | None) -> list[Place]:
    """Share workers out over a cluster's living nodes (`ray.nodes()`), the first of each node before all the second.

    Raises:
      UserError: there is no node to run on, or there are fewer GPUs than workers.
    """
    living = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    gpus = [int(node["Resources"].get("GPU", 0)) for node in living]
    if not living:
        raise UserError("--ray: the cluster has no living node with a CPU; start one with: ray start --head")
    if sum(gpus):
        if workers is not None and workers > sum(gpus):
            raise UserError(f"--workers {workers}: the Ray cluster has {sum(gpus)} GPUs, and each worker takes one")
        room = gpus
    else:
        room = [workers or 1] * len(living)
    count = workers or (sum(gpus) or len(living))
    turns = [(turn, index) for index, most in enumerate(room) for turn in range(most)]
    chosen = sorted(turns)[:count]
    counts = [sum(index == other for _, other in chosen) for index in range(len(living))]
    return [
        Place(
            node=living[index]["NodeID"],
            number=turn,
            count=counts[index],
            cpus=_cpus(living[index]["Resources"]["CPU"] / counts[index]),
            gpus=1 if sum(gpus) else 0,
        )
        for turn, index in chosen
    ]


def _cpus(share: float) -> float:
    """Ray counts processors in ten-thousandths below one and in whole ones above."""
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000


class RayWorker:
    """An actor that runs one backend. See `pool.Worker`."""

    about: About

    def __init__(
        self,
        ray: Any,
        place: Place,
        open_with: Callable[..., Backend],
        streams: int | None,
        threads: int,
    ):
        """Start the actor and wait until its backend is open; a node that is gone is replaced by any other.

        Raises:
          WorkerLost: it ended before that.
          UserError, WorkFailed: its backend did not open, or the cluster has no room for it.
        """
        self._ray = ray
        streams = streams or max(1, int(place.cpus) // threads)
        where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.node, soft=True)
        self._actor = (
            ray.remote(_Actor)
            .options(
                num_cpus=place.cpus, num_gpus=place.gpus, max_concurrency=streams + AHEAD + 1, scheduling_strategy=where
            )
            .remote()
        )
        try:
            self.about = self._get(self._actor.open.remote(open_with, place, streams, threads), START_SECONDS)
            self.pid: int = self._get(self._actor.pid.remote(), START_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            self.close()
            raise WorkFailed(f"--ray: no worker has started in {START_SECONDS:.0f} s; is the cluster full?") from None
        except BaseException:
            self.close()
            raise

    def infer(self, lane: int, batch: Feed, seconds: float) -> Logits:
        try:
            starts, ends = self._get(self._actor.infer.remote(*batch), seconds)
        except self._ray.exceptions.GetTimeoutError:
            raise WorkerLost(f"(process {self.pid}) did not answer within {seconds:.0f} s and was ended") from None
        return np.array(starts), np.array(ends)  # Ray's own are read-only views of its store

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        self._get(self._actor.compile_shapes.remote(shapes), None)

    def resident_bytes(self) -> int:
        return self._get(self._actor.resident_bytes.remote(), None)

    def close(self) -> None:
        if self._ray.is_initialized():  # else the actor ended with the session
            self._ray.kill(self._actor)

    def _get(self, answer: Any, seconds: float | None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer, timeout=seconds)
        except errors.GetTimeoutError:
            raise
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError | WorkFailed):
                raise type(error.cause)(*error.cause.args) from None
            raise WorkFailed(f"{type(error.cause).__name__}: {error.cause}") from None
        except errors.RayError as error:
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
            raise WorkerLost(f"ended: {type(error).__name__}: {line}") from None


class _Actor:
    """A worker's backend, in its process on its node."""

    def open(self, open_with: Callable[..., Backend], place: Place, streams: int, threads: int) -> About:
        if not place.gpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, machine.share(place.number, place.count))
        try:
            self._backend = open_with(streams=streams, threads=threads)
        except UserError as error:
            raise UserError(f"on the Ray node {platform.node()}: {error}") from None
        return About.of(self._backend, streams)

    def infer(self, *batch: np.ndarray) -> Logits:
        return self._backend.infer(*batch)

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        self._backend.compile_shapes(shapes)

    def resident_bytes(self) -> int:
        return self._backend.resident_bytes()

    def pid(self) -> int:
        return os.getpid()


def _connect(address: str) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report its use over the network
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a call after the end would start another cluster
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--ray: Ray is not installed; pip install -e '.[ray]'") from None
    import ray.util.scheduling_strategies

    _check_that_somebody_listens(address)
    try:
        ray.init(
            address=address,  # LOCAL is Ray's own word; None could join a cluster that someone else has started here
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ray {address}: no cluster that lets this process in ({line}); start one with: ray start --head,"
            " and one that wants a token wants it in RAY_AUTH_TOKEN"
        ) from None
    return ray


def host_and_port(address: str) -> tuple[str, int] | None:
    """Of `host:port`, `[IPv6]:port` or `ray://host:port`; None of an address without a port."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (port.isascii() and port.isdigit()):
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_that_somebody_listens(address: str) -> None:
    """Ray itself tries a wrong host:port for minutes."""
    place = host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: no cluster there ({getattr(error, 'strerror', None) or error})") from None
