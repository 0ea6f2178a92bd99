"""The thread that exchanges a process's gradients while the others compute (CC-5, CC-6)."""

from __future__ import annotations

import queue
import threading

import torch

from workers.collectives.exchange import Abandoned, ExchangeError
from workers.comm.iterations import Iterations, Ready


class CommThread:
    """Takes buckets in the order in which they are put. What goes wrong becomes the result of all that are not done, and
    of all that follow: ranks that did not see it are elsewhere by now.
    """

    def __init__(self, iterations: Iterations, closing: threading.Event) -> None:
        self._iterations, self._closing = iterations, closing
        self._buckets: queue.SimpleQueue[Ready | None] = queue.SimpleQueue()
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
            while (after := self._buckets.get()) is not None:
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
        """The next bucket; until it is there, the others get on."""
        while self._iterations.waiting:
            try:
                return self._buckets.get(timeout=self._iterations.spare_seconds)
            except queue.Empty:
                self._iterations.get_on()
        return self._buckets.get()
