"""Machines that are taken away with notice, of which a training makes a checkpoint while they are still there.

A node is drained (a spot machine's last two minutes, `ray drain-node`): Ray Train tells its workers, and starts them
elsewhere once the node is gone. Or the command itself is asked to end, by SIGTERM (`osdface jobs stop`, a pod's end):
then training ends there, and the same command goes on with it.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.collective
from ray.train.v2.api.config import FailureConfig  # ray.train's, of which type checkers see the forerunner
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.store import Reference
from pipelines.training import checkpoints

EVERY = 10  # optimisation steps between two looks, which all ranks take together: one costs milliseconds


class Stopped(Exception):
    """Training ends here, as it was asked to, after a checkpoint."""


@dataclass
class Notice:
    """What a rank hears of its end. Every rank asks it after the same steps.

    asked: whether the command was asked to end. reclaimed: which nodes are being taken away, None while none is. Both
    answer the same on every rank.
    """

    asked: Callable[[], bool] = lambda: False
    reclaimed: Callable[[], Any] = lambda: None
    _asked: bool = field(init=False, default=False)
    _reclaimed: Any = field(init=False, default=None)

    def heard(self, step: int) -> bool:
        """Whether there is news after a step, for which a checkpoint should be written now."""
        if step % EVERY:
            return False
        before, self._reclaimed = self._reclaimed, self.reclaimed()
        self._asked = self.asked()
        return self._asked or self._reclaimed not in (None, before)

    def kept(self) -> None:
        """A checkpoint was written. Raises Stopped where the command was asked to end."""
        if self._asked:
            raise Stopped


def of_worker(flag: Queue) -> Notice:
    """What a worker of Ray Train hears. flag: the driver's."""
    first = ray.train.get_context().get_world_rank() == 0

    def asked() -> bool:
        return ray.train.collective.broadcast_from_rank_zero(first and not flag.empty())

    return Notice(asked, ray.train.get_preemption_info)


@contextlib.contextmanager
def of_process() -> Iterator[Notice]:
    """What a training without Ray hears while the block runs: SIGTERM to this process."""
    asked = threading.Event()
    with _on_sigterm(asked.set):
        yield Notice(asked.is_set)


@contextlib.contextmanager
def flag() -> Iterator[Queue]:
    """A flag for workers, which SIGTERM to this process raises while the block runs."""
    raised = beside()
    with _on_sigterm(lambda: raised.put(True)):
        yield raised
    raised.shutdown()


def beside() -> Queue:
    """A queue on this process's own node: on another it would be lost with that."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


@contextlib.contextmanager
def _on_sigterm(do: Callable[[], Any]) -> Iterator[None]:
    """The first SIGTERM does this; a second one, what it did before."""
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def first(*_: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        do()

    signal.signal(signal.SIGTERM, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def failures(most: int) -> FailureConfig:
    """What Ray Train starts again after. most: how often a group of workers that failed."""
    return FailureConfig(
        max_failures=most,  # bounded: a fault of the program's or the data's comes back with every start
        max_preemption_failures=-1,  # a spot node's end says nothing against the training
        controller_failure_limit=-1,  # such as workers that don't start in time, while a lost node's successor boots
        relax_collectives_on_preemption=False,  # a checkpoint takes seconds of the notice's minutes
    )


def refuse_unfinished(checkpoint: Reference) -> None:
    """Raise KeyboardInterrupt, as if nothing had caught the signal, where training was asked to end before its end."""
    if checkpoints.note(checkpoint)["exported"] is None:
        raise KeyboardInterrupt
