"""Prints the KV events of a vLLM as JSON lines, each batch with its number: ENDPOINT.

Runs in the engine's environment. It waits at the endpoint until an engine connects to it.
"""

import sys

import msgspec
import zmq

if __name__ == "__main__":
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.subscribe(b"")
        socket.bind(sys.argv[1])
        while True:
            _, number, payload = socket.recv_multipart()
            _, events, *_ = msgspec.msgpack.decode(payload)
            line = msgspec.json.encode([int.from_bytes(number, "big"), events])
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
