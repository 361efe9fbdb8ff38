"""A gRPC server by the `grpcio` package, without generated code: messages are bytes. Prints its port, and serves until it is ended."""

import time
from concurrent import futures

import grpc


def unary(message, call):
    call.set_trailing_metadata((("x-length", str(len(message))),))
    return message


def up(messages, _):
    """The sum of what came."""
    return str(sum(len(message) for message in messages)).encode()


def down(message, _):
    for number in range(int(message)):
        yield b"%d" % number


def both(messages, _):
    for message in messages:
        yield message


def fail(_, call):
    call.set_trailing_metadata((("x-why", "asked for"),))
    call.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % as you wish: \N{SNOWMAN}")


def late(_, call):
    """Says whether its caller went away before a time."""
    until = time.monotonic() + 10
    while call.is_active() and time.monotonic() < until:
        time.sleep(0.01)
    return b"late"


METHODS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "Up": grpc.stream_unary_rpc_method_handler(up),
    "Down": grpc.unary_stream_rpc_method_handler(down),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Late": grpc.unary_unary_rpc_method_handler(late),
}

MOST = 32 * 1024 * 1024
options = [("grpc.max_receive_message_length", MOST), ("grpc.max_send_message_length", MOST)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", METHODS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
try:
    server.wait_for_termination()
except KeyboardInterrupt:
    pass
