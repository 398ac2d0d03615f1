"""The masters of a tier: a channel to each, one of which is in use until it fails."""

import asyncio
import pathlib
from urllib.parse import urlsplit

import grpc

from kontrol.v1 import action_pb2_grpc, ensemble_pb2_grpc, keepalive_pb2_grpc

# What another master may do better. The rest is the caller's mistake, and everywhere the same.
ELSEWHERE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
}

OPTIONS = [
    # A master whose machine is gone closes nothing: pings find that out.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A master that was down is tried again soon. By default a channel sulks for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # The callback's state takes more than the 4 MiB of the default.
    ("grpc.max_receive_message_length", 8 << 20),
]


class Token(grpc.AuthMetadataPlugin):
    """Sends the token with each call. The file is read each time, for a token may be replaced."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __call__(self, context, callback):
        token = self.path.read_text().strip()
        callback([("authorization", f"Bearer {token}")], None)


class Master:
    def __init__(self, url, ca, token_file):
        self.url = url
        parts = urlsplit(url)
        target = parts.netloc if parts.port else f"{parts.netloc}:8000"
        # A token goes over TLS only: gRPC refuses to send it in clear.
        self.proved = parts.scheme == "https"
        if self.proved:
            credentials = grpc.ssl_channel_credentials(pathlib.Path(ca).read_bytes() if ca else None)
            if token_file:
                token = grpc.metadata_call_credentials(Token(token_file))
                credentials = grpc.composite_channel_credentials(credentials, token)
            channel = grpc.aio.secure_channel(target, credentials, OPTIONS)
        else:
            channel = grpc.aio.insecure_channel(target, OPTIONS)
        self.keepalives = keepalive_pb2_grpc.KeepaliveServiceStub(channel)
        self.ensemble = ensemble_pb2_grpc.EnsembleServiceStub(channel)
        self.actions = action_pb2_grpc.ActionServiceStub(channel)


class Tier:
    def __init__(self, urls, ca=None, token_file=None):
        self.masters = [Master(url, ca, token_file) for url in urls]

    @property
    def master(self):
        """The one in use."""
        return self.masters[0]

    def leave(self, master):
        """It failed: the next one is in use, unless another call went there already."""
        if master is self.master:
            self.masters.append(self.masters.pop(0))

    async def until_accepted(self, attempt):
        """Tries one master after the other until one accepts; the caller limits how long."""
        while True:
            for _ in self.masters:
                master = self.master
                try:
                    return master, await attempt(master)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in ELSEWHERE:
                        raise
                    self.leave(master)
            await asyncio.sleep(0.1)

    async def call(self, attempt, limit=10):
        """One unary call, of any master: `attempt(master, seconds)`."""
        async with asyncio.timeout(limit):
            _, answer = await self.until_accepted(lambda master: attempt(master, limit / 3))
            return answer
