"""A minimal slave: the channel over which masters send commands, beside the keepalives on the same connection.

What holds, as `proto/kontrol/v1/action.proto` asks for it: no action runs twice in this incarnation; what a master has not
taken is kept and told again on the next channel, until it says `forget`; no more output is on its way than the window allows.
"""

import asyncio
import os
import signal

import grpc

from keepalive import say
from kontrol.v1 import action_pb2 as pb

# Most of each stream that is passed on, whatever the order says; it stays in memory until the end was taken.
MOST_OUTPUT = 1 << 20
PIECE = 16 << 10
# Most pieces that are sent before a credit: it comes after 8, and no more than 32 may be on their way.
PIECES = 16
# How soon a keepalive follows the end of a channel; doubled while none opens.
HASTE = 0.2
SETTINGS = ("KONTROL_", "NAMESPACE")


class Action:
    """A command, and what there is to tell of it."""

    def __init__(self, run):
        self.id = run.action_id
        self.window = run.window or 64 << 10
        self.most = min(run.max_output or MOST_OUTPUT, MOST_OUTPUT)
        self.output = {pb.STREAM_STDOUT: bytearray(), pb.STREAM_STDERR: bytearray()}
        self.written = dict.fromkeys(self.output, 0)
        self.started = False
        self.result = None
        self.process = None
        self.cancelled = asyncio.Event()
        self.resume(0, 0)

    def resume(self, stdout, stderr):
        """A new channel goes on from here: the rest is told again."""
        self.taken = {pb.STREAM_STDOUT: stdout, pb.STREAM_STDERR: stderr}
        self.sent = dict(self.taken)
        self.pieces = 0
        self.told_start = self.told_end = False

    def next(self):
        """The next message, if there is one that may be sent: the start, output as far as the window goes, the end."""
        if self.started and not self.told_start:
            self.told_start = True
            return pb.AttachRequest(started=pb.AttachRequest.Started(action_id=self.id))
        for stream, output in self.output.items():
            sent = self.sent[stream]
            on_its_way = sum(self.sent.values()) - sum(self.taken.values())
            data = bytes(output[sent : sent + min(PIECE, self.window - on_its_way)])
            if data and self.pieces < PIECES:
                self.sent[stream] += len(data)
                self.pieces += 1
                piece = pb.AttachRequest.Output(action_id=self.id, stream=stream, offset=sent, data=data)
                return pb.AttachRequest(output=piece)
        everything = all(self.sent[stream] == len(output) for stream, output in self.output.items())
        if self.result and everything and not self.told_end:
            self.told_end = True
            return pb.AttachRequest(finished=pb.AttachRequest.Finished(action_id=self.id, result=self.result))
        return None

    async def run(self, run, pod, key, ring):
        """Runs the command to its end; `ring` is called when there is more to tell."""
        command = run.command
        argv = list(command.argv) or ["/bin/sh", "-c", command.shell]
        env = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
        env |= dict(command.env)
        env |= {"KONTROL_ACTION": self.id, "KONTROL_KEY": key, "KONTROL_ID": pod.said.id}
        given = command.input_json + b"\n" if command.input_json else b""
        if 0 < len(given) < 128 << 10:
            env["INPUT"] = command.input_json.decode()
        try:
            self.process = await asyncio.create_subprocess_exec(
                *argv, env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE, start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self.end(pb.OUTCOME_REFUSED, error=str(error))
            return ring()
        self.started = True
        ring()
        work = asyncio.gather(
            self.feed(given), self.read(self.process.stdout, pb.STREAM_STDOUT, ring),
            self.read(self.process.stderr, pb.STREAM_STDERR, ring), self.process.wait(),
        )
        cancelled = asyncio.ensure_future(self.cancelled.wait())
        limit = run.timeout.ToTimedelta().total_seconds() or 60
        await asyncio.wait([work, cancelled], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            outcome, error = pb.OUTCOME_EXITED, ""
        elif cancelled.done():
            outcome, error = pb.OUTCOME_CANCELLED, "it was cancelled"
        else:
            outcome, error = pb.OUTCOME_TIMED_OUT, f"it took longer than {limit} s"
        cancelled.cancel()
        if not work.done():
            self.signal(signal.SIGTERM)
            await asyncio.wait([work], timeout=2)
        # Whatever else it started ends with it.
        self.signal(signal.SIGKILL)
        await work
        code = self.process.returncode
        self.end(outcome, code=128 - code if code < 0 else code, signal=max(0, -code), error=error)
        ring()

    async def feed(self, given):
        try:
            self.process.stdin.write(given)
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass  # It did not want to know.
        self.process.stdin.close()

    async def read(self, pipe, stream, ring):
        """Reads all of it, keeps as much as is passed on."""
        while data := await pipe.read(PIECE):
            self.written[stream] += len(data)
            self.output[stream] += data[: self.most - len(self.output[stream])]
            ring()

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self, outcome, code=-1, signal=0, error=""):
        out, err = (self.written[stream] for stream in (pb.STREAM_STDOUT, pb.STREAM_STDERR))
        self.result = pb.ActionResult(
            outcome=outcome, exit_code=code, signal=signal, error=error, stdout_bytes=out, stderr_bytes=err,
            truncated=max(out, err) > self.most,
        )
        say(action=self.id, outcome=pb.Outcome.Name(outcome), exit_code=code)


class Slave:
    def __init__(self, keepalives):
        self.keepalives = keepalives
        # What is at hand, and all that ever was.
        self.actions = {}
        self.known = set()
        self.cancelled = set()
        self.attachments = 0
        self.tasks = set()
        self.bell = asyncio.Event()

    async def run(self):
        """Opens the channel at the master that answered a keepalive, and again when it breaks or the keepalives moved."""
        seen, haste = 0, HASTE
        while True:
            async with self.keepalives.answered:
                await self.keepalives.answered.wait_for(lambda: self.keepalives.accepted > seen)
                seen, master, key = self.keepalives.accepted, self.keepalives.master, self.keepalives.key
            channel = asyncio.ensure_future(self.attach(master, key))
            moved = asyncio.ensure_future(self.moved(master))
            await asyncio.wait([channel, moved], return_when=asyncio.FIRST_COMPLETED)
            for task in (channel, moved):
                task.cancel()
            await asyncio.gather(channel, moved, return_exceptions=True)
            if self.keepalives.master is not master:
                continue
            # It broke. A pod whose channel ended and that is not heard of within three seconds counts as LOST: so a keepalive
            # soon, which finds another master where this one is gone. The channel follows it there.
            seen = self.keepalives.accepted
            haste = HASTE if self.welcomed else min(2.0, haste * 2)
            await asyncio.sleep(haste)
            self.keepalives.hurry.set()

    async def moved(self, master):
        async with self.keepalives.answered:
            await self.keepalives.answered.wait_for(lambda: self.keepalives.master is not master)

    async def attach(self, master, key):
        self.attachments += 1
        self.welcomed = False
        call = master.actions.Attach()
        hello = pb.AttachRequest.Hello(
            key=key, nonce=self.keepalives.pod.nonce, attachment=self.attachments, actions=list(self.actions))
        asked = set()
        try:
            await call.write(pb.AttachRequest(hello=hello))
            teller = asyncio.ensure_future(self.tell(call, asked))
            try:
                async for order in call:
                    reply = self.take(order, asked, master, key)
                    if reply:
                        await call.write(reply)
            finally:
                teller.cancel()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            say(detached=master.url, error=getattr(error, "details", lambda: "the stream is over")())
        finally:
            call.cancel()

    async def tell(self, call, asked):
        """Sends what the actions have to tell, of those that this channel asked for."""
        while True:
            self.bell.clear()
            for action in [self.actions[id] for id in asked if id in self.actions]:
                while message := action.next():
                    await call.write(message)
            await self.bell.wait()

    def take(self, order, asked, master, key):
        """Takes an order; gives what is to be answered at once."""
        kind = order.WhichOneof("order")
        if kind == "welcome":
            self.welcomed = True
            say(attached=master.url)
        if kind in (None, "welcome"):
            return None
        order = getattr(order, kind)
        id, action = order.action_id, self.actions.get(order.action_id)
        self.bell.set()
        if kind == "run":
            asked.add(id)
            if action:
                action.resume(*action.taken.values())
            else:
                self.begin(order, master, key)
        elif kind in ("resume", "cancel") and not action:
            if kind == "cancel":
                self.cancelled.add(id)
            return pb.AttachRequest(unknown=pb.AttachRequest.Unknown(action_id=id))
        elif kind == "resume":
            asked.add(id)
            action.resume(order.stdout_offset, order.stderr_offset)
        elif kind == "credit" and action:
            action.taken = {pb.STREAM_STDOUT: order.stdout_offset, pb.STREAM_STDERR: order.stderr_offset}
            action.pieces = 0
        elif kind == "cancel":
            action.cancelled.set()
        elif kind == "forget":
            self.actions.pop(id, None)
        return None

    def begin(self, order, master, key):
        """A new action: it runs, unless it ran before, was cancelled before it came, or nobody proved who sends it."""
        action = self.actions[order.action_id] = Action(order)
        if order.action_id in self.known:
            action.end(pb.OUTCOME_LOST, error="it ran here before")
        elif order.action_id in self.cancelled:
            action.end(pb.OUTCOME_CANCELLED, error="it was cancelled before it came")
        elif not master.proved:
            action.end(pb.OUTCOME_REFUSED, error="this slave runs commands only over TLS")
        else:
            task = asyncio.ensure_future(action.run(order, self.keepalives.pod, key, self.bell.set))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.known.add(order.action_id)

    async def stop(self):
        """Ends what runs."""
        for action in self.actions.values():
            action.cancelled.set()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=3)
