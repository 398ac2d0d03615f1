"""The keepalives of one pod, one call each or over a stream, and what became of them."""

import asyncio
import json
import random
import secrets
import time

import grpc
from google.protobuf import json_format, struct_pb2

from kontrol.v1 import keepalive_pb2 as pb

# What a keepalive's error code of a stream means, by its number.
CODES = {code.value[0]: code for code in grpc.StatusCode}


def say(**event):
    """Every line that a client prints is a JSON object."""
    print(json.dumps(event), flush=True)


class Pod:
    def __init__(self, app, id, ip, role):
        # Another nonce is another start of the same pod.
        self.nonce = secrets.token_hex(8)
        self.said = pb.PingRequest(
            app=app, id=id, ip=ip, role=role, nonce=self.nonce,
            labels={"app": app, "role": role},
            # Any JSON value: a dictionary does not fit into a Value by itself.
            payload=json_format.ParseDict({"client": "python"}, struct_pb2.Value()),
        )

    def ping(self, beat, down=False):
        ping = pb.PingRequest(beat=beat, down=down)
        ping.MergeFrom(self.said)
        return ping


class Unary:
    """A keepalive as a call of its own."""

    def __init__(self, tier):
        self.tier = tier

    async def send(self, ping, limit):
        attempt = lambda master: master.keepalives.Ping(ping, timeout=limit)
        return await self.tier.until_accepted(attempt)


class Stream:
    """Keepalives over one stream: whole at first, and then a number is enough."""

    def __init__(self, tier):
        self.tier = tier
        self.master = None
        self.call = None
        self.beats = self.again = 0

    async def send(self, ping, limit):
        return await self.tier.until_accepted(lambda master: self.attempt(master, ping, limit))

    async def attempt(self, master, ping, limit):
        try:
            # A stream has no deadline for a message; without this one, a master that hangs would hold the pod.
            async with asyncio.timeout(limit):
                answer = None
                if self.call and self.master is master:
                    answer = await self.exchange(pb.PingStreamRequest(beat=ping.beat))
                    self.beats += 1
                if answer is None or answer.again:
                    # A new stream, or a master that can't tell what still holds: the whole keepalive, at once.
                    self.again += answer is not None
                    if self.master is not master or not self.call:
                        self.master, self.call = master, master.keepalives.PingStream()
                    answer = await self.exchange(pb.PingStreamRequest(ping=ping))
        except BaseException as error:
            if self.call:
                self.call.cancel()
                self.call = None
            # The caller's own deadline, or its end, is passed on as it is.
            if isinstance(error, TimeoutError):
                raise failure(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time") from None
            # A stream that broke between two keepalives says so by this when it is written to.
            if isinstance(error, asyncio.InvalidStateError):
                raise failure(grpc.StatusCode.UNAVAILABLE, "the stream is over") from None
            raise
        if answer.HasField("error"):
            # A refusal does not end the stream.
            raise failure(CODES[answer.error.code], answer.error.message)
        return answer.response

    async def exchange(self, request):
        await self.call.write(request)
        answer = await self.call.read()
        if answer is grpc.aio.EOF:
            raise failure(grpc.StatusCode.UNAVAILABLE, "the master closed the stream")
        return answer


def failure(code, message):
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, none, none, details=message)


class Keepalives:
    """Sends one each interval that the last answer told, until it is stopped; then says goodbye."""

    def __init__(self, tier, pod, way):
        self.tier, self.pod, self.way = tier, pod, way
        self.beat = 0
        self.sent = self.accepted = self.lost = 0
        # Until a master tells; long enough for a first connection on a busy machine.
        self.interval = 5.0
        self.slowest = 0.0
        # Set to have the next one sent at once.
        self.hurry = asyncio.Event()
        # Who answered last, for what goes over the same connection.
        self.answered = asyncio.Condition()
        self.master = self.key = None

    async def run(self, stopping):
        while not stopping.is_set():
            began = time.monotonic()
            await self.once()
            # A little luck keeps pods from reporting in step.
            pause = self.interval * random.uniform(0.9, 1.0) - (time.monotonic() - began)
            self.hurry.clear()
            waits = [asyncio.ensure_future(wait.wait()) for wait in (stopping, self.hurry)]
            await asyncio.wait(waits, timeout=max(0.0, pause), return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def once(self):
        self.beat += 1
        self.sent += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.interval):
                # Time for each of some masters within an interval.
                master, answer = await self.way.send(self.pod.ping(self.beat), self.interval / 3)
        except (TimeoutError, grpc.aio.AioRpcError) as error:
            # The pod lives on: it reports again. FAILED_PRECONDITION is for a person to read.
            self.lost += 1
            say(lost=self.beat, error=str(getattr(error, "details", lambda: "no master in time")()))
            return
        self.accepted += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.interval = answer.interval.ToTimedelta().total_seconds() or self.interval
        say(beat=self.beat, master=master.url, seq=answer.seq)
        async with self.answered:
            self.master, self.key = master, answer.key
            self.answered.notify_all()

    async def goodbye(self):
        """Leaves the roster at once, instead of when the TTL is over."""
        self.beat += 1
        ping = self.pod.ping(self.beat, down=True)
        await self.tier.call(lambda master, limit: master.keepalives.Ping(ping, timeout=limit))

    def summary(self):
        say(
            sent=self.sent, accepted=self.accepted, lost=self.lost, slowest_seconds=round(self.slowest, 3),
            beats=getattr(self.way, "beats", 0), again=getattr(self.way, "again", 0),
        )
