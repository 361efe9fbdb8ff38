"""A WebSocket client by the `websockets` package.

    sockets_client.py talk URL [CA]    tries what there is, one line for each: name, TAB, `ok` or `bad`, TAB, what was seen
    sockets_client.py refused URL [CA] the same for a place that must not become a WebSocket
    sockets_client.py held URL [CA]    connects, prints `open`, and when it ends `ended` and how; `held` after ten seconds
"""

import asyncio
import os
import ssl
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus


def options(ca):
    told = {"max_size": 32 * 1024 * 1024, "ping_interval": None, "open_timeout": 10, "proxy": None}
    if ca:
        told["ssl"] = ssl.create_default_context(cafile=ca)
    return told


async def text(url, told):
    async with connect(url, **told) as socket:
        for message in ["", "a", "\N{SNOWMAN}" * 1000]:
            await socket.send(message)
            assert await socket.recv() == message
    return "text of 0, 1 and 3000 bytes came back"


async def large(url, told):
    async with connect(url, **told) as socket:
        for size in [125, 126, 65535, 65536, 1 << 20, 16 << 20]:
            message = os.urandom(size)
            await socket.send(message)
            assert await socket.recv() == message, size
    return "binary messages of up to 16 MiB came back"


async def plain(url, told):
    async with connect(url, compression=None, **told) as socket:
        message = b"x" * (4 << 20)
        await socket.send(message)
        assert await socket.recv() == message
    return "without compression, 4 MiB came back"


async def pieces(url, told):
    async with connect(url, **told) as socket:
        await socket.send(["one ", "two ", "three"])
        assert await socket.recv() == "one two three"
    return "a message in three frames came back whole"


async def pings(url, told):
    async with connect(url, **told) as socket:
        for _ in range(20):
            await asyncio.wait_for(await socket.ping(), 5)
        await socket.send("ping me")
        assert await socket.recv() == "pong came"
    return "20 pings were answered, and one of the server's"


async def subprotocol(url, told):
    async with connect(url, subprotocols=["other", "fix.v1"], **told) as socket:
        assert socket.subprotocol == "fix.v1", socket.subprotocol
    return "the server's choice came down"


async def farewell(url, told):
    async with connect(url, **told) as socket:
        await socket.send("close me")
        try:
            await socket.recv()
            raise AssertionError("it went on")
        except ConnectionClosed as end:
            assert (end.rcvd.code, end.rcvd.reason) == (4001, "as you wish"), end
    return "code and reason of the server's close came down"


async def address(url, told):
    async with connect(url, additional_headers={"X-Forwarded-For": "6.6.6.6"}, **told) as socket:
        await socket.send("who am I")
        said = await socket.recv()
        assert said == "127.0.0.1", said
    return "the server was told the client's own address, not the one it made up"


async def many(url, told):
    async def one(number):
        async with connect(url, **told) as socket:
            for turn in range(50):
                await socket.send(f"{number} {turn}")
                assert await socket.recv() == f"{number} {turn}"

    await asyncio.gather(*(one(number) for number in range(50)))
    return "50 at once, 50 messages each"


async def refused(url, told):
    try:
        async with connect(url, **told):
            raise AssertionError("it was let through")
    except InvalidStatus as end:
        assert end.response.status_code < 600
        return f"answered {end.response.status_code}"


async def judge(url, told, checks):
    for check in checks:
        try:
            seen, word = await asyncio.wait_for(check(url, told), 30), "ok"
        except (Exception, asyncio.CancelledError) as error:
            seen, word = f"{type(error).__name__}: {error}".replace("\n", " "), "bad"
        print(f"{check.__name__}\t{word}\t{seen}", flush=True)


async def held(url, told):
    async with connect(url, **told) as socket:
        await socket.send("there")
        assert await socket.recv() == "there"
        print("open", flush=True)
        begun = time.monotonic()
        try:
            await asyncio.wait_for(socket.recv(), 10)
            print("spoken to", flush=True)
        except ConnectionClosed as end:
            print(f"ended {(time.monotonic() - begun) * 1000:.0f} {type(end).__name__}", flush=True)
        except TimeoutError:
            print("held", flush=True)


verb, url = sys.argv[1:3]
told = options(sys.argv[3] if len(sys.argv) > 3 else None)
if verb == "talk":
    asyncio.run(judge(url, told, [text, large, plain, pieces, pings, subprotocol, farewell, address, many]))
elif verb == "refused":
    asyncio.run(judge(url, told, [refused]))
else:
    asyncio.run(held(url, told))
