"""The thread that exchanges a process's gradients while the others compute (CC-5, CC-6)."""

from __future__ import annotations

import queue
import threading

import torch

from workers.collectives.exchange import Abandoned, ExchangeError
from workers.comm.iterations import Iterations
from workers.comm.ready import Ready


class CommThread:
    """Takes buckets in the order in which they are put. What goes wrong becomes the result of all that are not done, and
    of all that follow: ranks that did not see it are elsewhere by now.
    """

    def __init__(self, iterations: Iterations, closing: threading.Event) -> None:
        self._iterations, self._closing = iterations, closing
        self._buckets: queue.SimpleQueue[Ready | None] = queue.SimpleQueue()
        self._following: list[Ready | None] = []
        self._thread = threading.Thread(target=self._run, name="quantarion-comm", daemon=True)
        self._thread.start()

    def put(self, ready: Ready) -> None:
        self._buckets.put(ready)

    def close(self) -> None:
        """Give up what is on its way, and return when the thread has ended."""
        self._closing.set()
        self._buckets.put(None)
        self._thread.join()

    def _run(self) -> None:
        with torch.no_grad():
            error = self._exchange()
        if error is not None:
            for ready in self._iterations.abandon():
                ready.reduced.set_result(error)
            while (after := self._following.pop() if self._following else self._buckets.get()) is not None:
                after.reduced.set_result(error)

    def _exchange(self) -> Exception | None:
        """Until it is closed, or something goes wrong, which is returned."""
        try:
            while True:
                ready = self._next()
                if ready is None:
                    return ExchangeError("the CommState was closed") if self._iterations.waiting else None
                self._iterations.start(ready)
        except Abandoned:
            return ExchangeError("the CommState was closed")
        except Exception as error:
            return error

    def _next(self) -> Ready | None:
        """The next bucket whose gradients are computed; until it is there, the others get on."""
        while not self._following:
            try:
                waiting = self._iterations.waiting
                self._following.append(
                    self._buckets.get(timeout=self._iterations.spare_seconds) if waiting else self._buckets.get()
                )
            except queue.Empty:
                self._iterations.get_on()
        ready = self._following[0]
        while ready is not None and not ready.is_computed(wait=not self._iterations.waiting):
            self._iterations.get_on()
        return self._following.pop()
