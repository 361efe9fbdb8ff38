"""A gRPC client by the `grpcio` package, without generated code.

    grpc_client.py talk HOST:PORT [CA]       tries what there is, one line for each: name, TAB, `ok` or `bad`, TAB, what was seen
    grpc_client.py refused HOST:PORT [CA]    the same for calls that the proxy refuses by itself; `/killed.Echo` must be killed
    grpc_client.py held HOST:PORT [CA]       opens a stream both ways, prints `open`, and when it ends `ended` and its status;
                                             `held` after ten seconds
"""

import queue
import sys
import time
from concurrent import futures

import grpc

MOST = 32 * 1024 * 1024
OPTIONS = [
    ("grpc.max_receive_message_length", MOST),
    ("grpc.max_send_message_length", MOST),
    # What is refused is to be seen, and not tried again behind our back.
    ("grpc.enable_retries", 0),
]
LIMIT = 20


def connect(target, ca):
    if ca:
        with open(ca, "rb") as file:
            trusted = grpc.ssl_channel_credentials(file.read())
        return grpc.secure_channel(target, trusted, OPTIONS)
    return grpc.insecure_channel(target, OPTIONS)


def refusal(call):
    """The status of a call that must not succeed."""
    try:
        call()
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return error.code().name, error.details(), trailing.get("grpc-retry-pushback-ms")
    raise AssertionError("it was answered")


def unary(channel):
    ask = channel.unary_unary("/test.Echo/Unary")
    for size in [0, 1, 16383, 16384, 1 << 20, 16 << 20]:
        message = bytes(index % 251 for index in range(251)) * (size // 251) + b"x" * (size % 251)
        answer, call = ask.with_call(message, timeout=LIMIT)
        assert answer == message, size
        assert dict(call.trailing_metadata())["x-length"] == str(size)
    return "messages of up to 16 MiB came back, with their trailers"


def up(channel):
    ask = channel.stream_unary("/test.Echo/Up")
    answer = ask((b"x" * 1000 for _ in range(1000)), timeout=LIMIT)
    assert answer == b"1000000", answer
    return "1000 messages went up"


def down(channel):
    heard = list(channel.unary_stream("/test.Echo/Down")(b"1000", timeout=LIMIT))
    assert heard == [b"%d" % number for number in range(1000)]
    return "1000 messages came down, in their order"


def both(channel):
    say = queue.Queue()
    heard = channel.stream_stream("/test.Echo/Both")(iter(say.get, None), timeout=LIMIT)
    for turn in range(200):
        say.put(b"%d" % turn)
        assert next(heard) == b"%d" % turn, turn
    say.put(None)
    assert list(heard) == []
    return "200 messages, each answered before the next was sent"


def status(channel):
    code, words, _ = refusal(lambda: channel.unary_unary("/test.Echo/Fail")(b"", timeout=LIMIT))
    assert code == "FAILED_PRECONDITION" and words == "100 % as you wish: \N{SNOWMAN}", (code, words)
    return "the server's status came with its words"


def unknown(channel):
    code, words, _ = refusal(lambda: channel.unary_unary("/test.Echo/None")(b"", timeout=LIMIT))
    assert code == "UNIMPLEMENTED", (code, words)
    return "the server's own UNIMPLEMENTED came"


def deadline(channel):
    begun = time.monotonic()
    code, words, _ = refusal(lambda: channel.unary_unary("/test.Echo/Late")(b"", timeout=0.3))
    assert code == "DEADLINE_EXCEEDED" and time.monotonic() - begun < 5, (code, words)
    return "a deadline of the client ends its call"


def many(channel):
    ask = channel.unary_unary("/test.Echo/Unary")

    def one(number):
        return ask(b"%d" % number, timeout=LIMIT) == b"%d" % number

    with futures.ThreadPoolExecutor(50) as pool:
        assert all(pool.map(one, range(2000)))
    return "2000 calls, 50 at once, over one connection"


def limited(channel):
    ask = channel.unary_unary("/limited.Echo/Unary")
    # The first is let through, whatever comes of it.
    try:
        ask(b"", timeout=LIMIT)
    except grpc.RpcError:
        pass
    code, words, push = refusal(lambda: ask(b"", timeout=LIMIT))
    assert code == "RESOURCE_EXHAUSTED" and words.startswith("limited: ") and int(push) > 0, (code, words, push)
    return f"{code}, with {words!r}, to be tried again in {push} ms"


def killed(channel):
    code, words, push = refusal(lambda: channel.unary_unary("/killed.Echo/Unary")(b"", timeout=LIMIT))
    assert code == "UNAVAILABLE" and words.startswith("killed: ") and push == "-1", (code, words, push)
    return f"{code}, with {words!r}, not to be tried again"


def unrouted(channel):
    code, words, _ = refusal(lambda: channel.unary_unary("/nobody.Echo/Unary")(b"", timeout=LIMIT))
    assert code == "UNIMPLEMENTED" and words.startswith("unrouted: "), (code, words)
    return f"{code}, with {words!r}"


def judge(channel, checks):
    for check in checks:
        try:
            seen, word = check(channel), "ok"
        except Exception as error:
            seen, word = f"{type(error).__name__}: {error}".replace("\n", " ").replace("\t", " "), "bad"
        print(f"{check.__name__}\t{word}\t{seen}", flush=True)


def held(channel):
    say = queue.Queue()
    heard = channel.stream_stream("/test.Echo/Both")(iter(say.get, None), timeout=10)
    say.put(b"there")
    assert next(heard) == b"there"
    print("open", flush=True)
    begun = time.monotonic()
    try:
        next(heard)
        print("spoken to", flush=True)
    except StopIteration:
        print("ended well", flush=True)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            print("held", flush=True)
        else:
            took = (time.monotonic() - begun) * 1000
            print(f"ended {took:.0f} {error.code().name} {error.details()}", flush=True)
    say.put(None)


verb, target = sys.argv[1:3]
with connect(target, sys.argv[3] if len(sys.argv) > 3 else None) as channel:
    if verb == "talk":
        judge(channel, [unary, up, down, both, status, unknown, deadline, many])
    elif verb == "refused":
        judge(channel, [limited, killed, unrouted])
    else:
        held(channel)
