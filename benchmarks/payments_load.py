"""An open-loop load over HTTP: requests leave at their time whether or not the ones before are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Reply:
    """What became of a request.

    Attributes:
        seconds: from the moment it was due to its answer; infinite without one.
        status: of HTTP; 0 without an answer.
        body: of the answer.
    """

    seconds: float
    status: int = 0
    body: bytes = b""


def offer(
    port: int,
    path: str,
    bodies: list[bytes],
    rate: float,
    *,
    connections: int = 32,
    answered: Callable[[int], object] = lambda _: None,
) -> list[Reply]:
    """Send the bodies at ``rate`` requests a second to the loopback; one reply each, in their order.

    A request whose server goes away has no answer; those that are due later fail at once.

    Args:
        port: of the server.
        path: of all requests.
        bodies: of the requests, JSON.
        rate: requests a second.
        connections: at most, kept open.
        answered: called with the number of answers so far.
    """
    return asyncio.run(_offer(port, path, bodies, rate, connections, answered))


async def _offer(
    port: int, path: str, bodies: list[bytes], rate: float, connections: int, answered: Callable[[int], object]
) -> list[Reply]:
    replies = [Reply(float("inf"))] * len(bodies)
    answers = count(1)
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()

    async def send() -> None:
        reader = writer = None
        while (item := await due.get()) is not None:
            number, moment = item
            try:
                if writer is None or reader is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                status, body = await _post(reader, writer, path, bodies[number])
                replies[number] = Reply(time.perf_counter() - moment, status, body)
                answered(next(answers))
            except (OSError, EOFError):
                writer = None
        if writer is not None:
            writer.close()

    senders = [asyncio.create_task(send()) for _ in range(min(connections, len(bodies)))]
    start = time.perf_counter()
    for number in range(len(bodies)):
        moment = start + number / rate
        await asyncio.sleep(moment - time.perf_counter())
        due.put_nowait((number, moment))
    for _ in senders:
        due.put_nowait(None)
    await asyncio.gather(*senders)
    return replies


async def _post(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
) -> tuple[int, bytes]:
    head = f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}"
    writer.write("\r\n".join((*head, "", "")).encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in answer if line.startswith("content-length:"))
    return int(answer[0].split()[1]), await reader.readexactly(length)
