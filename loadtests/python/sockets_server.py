"""A WebSocket server by the `websockets` package; prints its port, says back what it hears until it is ended."""

import asyncio
import logging

from websockets.asyncio.server import serve

# A connection that a kill ends is what is wanted, and no news.
logging.getLogger("websockets").setLevel(logging.CRITICAL)


async def talk(socket):
    async for message in socket:
        if message == "ping me":
            # Raises where no pong comes, which the client sees as an end it did not ask for.
            await asyncio.wait_for(await socket.ping(b"from the server"), 5)
            await socket.send("pong came")
        elif message == "close me":
            await socket.close(4001, "as you wish")
        elif message == "who am I":
            await socket.send(socket.request.headers.get("X-Forwarded-For", "nobody"))
        else:
            await socket.send(message)


def choose(_, offered):
    return "fix.v1" if "fix.v1" in offered else None


async def main():
    options = {"max_size": 32 * 1024 * 1024, "ping_interval": None, "select_subprotocol": choose}
    async with serve(talk, "127.0.0.1", 0, **options) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
