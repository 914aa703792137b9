"""The stream that tells an open page what happens: progress of the running step, and changes of the workspace."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from alloop.serve.desk import Desk
from alloop.serve.step import Step

MOST_LISTENERS = 50
LOOK_SECONDS = 1.0  # between two looks at the database, for all listeners together
TICK_SECONDS = 0.3
HEARTBEAT_SECONDS = 15.0


class Events:
    """Server-sent events: `step` with the state of the step, `version` with that of the workspace.

    A listener gets both at once, and then what changes. Nothing is held open in the database between two looks.
    """

    def __init__(self, desk: Desk, step: Step) -> None:
        self._desk = desk
        self._step = step
        self._n_listeners = 0
        self._version, self._looked = "", -LOOK_SECONDS
        self._is_over = False

    def end(self) -> None:
        """End all streams, so that the server can end."""
        self._is_over = True

    async def stream(self, request: Request) -> Response:
        """Answer with the stream."""
        if self._n_listeners >= MOST_LISTENERS:
            return PlainTextResponse("Too many pages are open. They work, but do not follow changes.", 503)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._lines(), media_type="text/event-stream", headers=headers)

    async def _lines(self) -> AsyncIterator[str]:
        self._n_listeners += 1
        said: dict[str, str] = {}
        beat = time.monotonic()
        try:
            while not self._is_over:
                state = self._step.state()
                now = {
                    "step": json.dumps(dataclasses.asdict(state) | {"words": state.words}),
                    "version": await self._look(),
                }
                for name, text in now.items():
                    if said.get(name) != text:
                        yield f"event: {name}\ndata: {text}\n\n"
                        beat = time.monotonic()
                if time.monotonic() - beat > HEARTBEAT_SECONDS:
                    yield ":\n\n"
                    beat = time.monotonic()
                said = now
                await asyncio.sleep(TICK_SECONDS)
        finally:
            self._n_listeners -= 1

    async def _look(self) -> str:
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._version = await run_in_threadpool(self._desk.version)
        return self._version
