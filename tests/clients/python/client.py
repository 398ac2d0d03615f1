"""A client of Kontrol, generated from proto/. See tests/clients/README.md."""

import argparse
import asyncio
import signal
import sys

import grpc

from kontrol.v1 import action_pb2, ensemble_pb2
from keepalive import Keepalives, Pod, Stream, Unary, say
from slave import Slave
from tier import ELSEWHERE, Tier


def until_signal():
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


async def report(tier, options, way, attaches=False):
    """ping, stream, slave: reports a pod until SIGTERM."""
    stopping = until_signal()
    pod = Pod(options.app, options.id, options.ip, options.role)
    keepalives = Keepalives(tier, pod, way)
    slave = Slave(keepalives) if attaches else None
    channel = asyncio.ensure_future(slave.run()) if slave else None
    await keepalives.run(stopping)
    if slave:
        await slave.stop()
    await keepalives.goodbye()
    if channel:
        channel.cancel()
    keepalives.summary()


async def pods(tier, options):
    """Lists the pods, page by page; a page may come from another master than the one before."""
    count, pages, token = 0, 0, ""
    while True:
        request = ensemble_pb2.ListPodsRequest(page_size=options.page_size, page_token=token)
        page = await tier.call(lambda master, limit: master.ensemble.ListPods(request, timeout=limit))
        for pod in page.pods:
            say(key=pod.key, id=pod.id, seq=pod.seq)
        count, pages, token = count + len(page.pods), pages + 1, page.next_page_token
        # A page may have fewer than asked for: only the token tells whether it was the last.
        if not token:
            break
    say(pods=count, pages=pages)


async def watch(tier, options):
    """Prints what changes, until SIGTERM. Goes on behind the last revision when a master goes away."""
    stopping = until_signal()
    follower = asyncio.ensure_future(follow(tier))
    await asyncio.wait([follower, asyncio.ensure_future(stopping.wait())], return_when=asyncio.FIRST_COMPLETED)
    follower.cancel()


async def follow(tier):
    revision, history, pods = 0, "", {}
    while True:
        master = tier.master
        request = ensemble_pb2.WatchRequest(revision=revision, history=history)
        call = master.ensemble.Watch(request)
        try:
            while True:
                # There is a sign of life each 5 s: whoever is silent for longer is gone.
                async with asyncio.timeout(12):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                tell(message, pods)
                # 0 in all but the last piece of a snapshot: cut off before that, it begins anew.
                revision, history = message.revision or revision, message.history or history
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            if error.code() not in ELSEWHERE:
                raise
        call.cancel()
        say(cut=master.url, revision=revision)
        tier.leave(master)
        await asyncio.sleep(0.1)


def tell(message, pods):
    """Prints a message. Some may come again after a cut: what `pods` shows already is no news."""
    kind = message.WhichOneof("event")
    if kind is None:
        return
    event = getattr(message, kind)
    if kind == "snapshot":
        # The whole truth: its first piece replaces what was known.
        if not pods.get("more"):
            pods.clear()
        pods.update({pod.key: pod.seq for pod in event.pods}, more=event.more)
        say(event=kind, revision=message.revision, pods=[pod.id for pod in event.pods])
    elif kind == "pod_joined" and pods.get(event.pod.key) != event.pod.seq:
        pods[event.pod.key] = event.pod.seq
        say(event=kind, revision=message.revision, id=event.pod.id, seq=event.pod.seq)
    elif kind == "pod_left" and pods.pop(event.pod.key, None) is not None:
        reason = ensemble_pb2.LeaveReason.Name(event.reason)
        say(event=kind, revision=message.revision, id=event.pod.id, seq=event.pod.seq, reason=reason)
    elif kind not in ("pod_joined", "pod_left"):
        say(event=kind, revision=message.revision)


async def execute(tier, options):
    """Runs a command on pods; exits with the worst exit code."""
    request = action_pb2.DispatchRequest(
        selector=action_pb2.Selector(ids=options.id.split(",")),
        command=action_pb2.Command(argv=options.argv),
    )
    request.timeout.FromSeconds(30)
    accepted, worst = False, 0
    while True:
        master = tier.master
        try:
            # No deadline: a sign of life comes each 5 s. Going away cancels what runs.
            async for message in master.actions.Dispatch(request):
                kind = message.WhichOneof("event")
                event = getattr(message, kind) if kind else None
                if kind == "accepted":
                    accepted = True
                    say(accepted=event.action_id)
                elif kind == "output":
                    name = "stdout" if event.stream == action_pb2.STREAM_STDOUT else "stderr"
                    say(**{name: event.data.decode(errors="replace")})
                elif kind == "finished":
                    say(finished=event.id, outcome=action_pb2.Outcome.Name(event.outcome), exit_code=event.exit_code)
                    worst = max(worst, event.exit_code if event.exit_code >= 0 else 255)
                elif kind == "summary":
                    say(targets=event.targets, succeeded=event.succeeded)
            return worst
        except grpc.aio.AioRpcError as error:
            # Before `accepted` nothing was started. Behind it, GetAction of any master tells the end.
            if accepted or error.code() not in ELSEWHERE:
                raise
            tier.leave(master)
            await asyncio.sleep(0.1)


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["ping", "stream", "slave", "pods", "watch", "exec"])
    parser.add_argument("--masters", required=True, type=lambda urls: urls.split(","))
    parser.add_argument("--ca")
    parser.add_argument("--token-file")
    parser.add_argument("--app", default="web")
    parser.add_argument("--id", default="python-1")
    parser.add_argument("--ip", default="127.0.0.1")
    parser.add_argument("--role", default="client")
    parser.add_argument("--page-size", type=int, default=100)
    # What exec runs stands behind `--`.
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:end])
    options.argv = words[end + 1 :]
    tier = Tier(options.masters, options.ca, options.token_file)
    if options.command == "exec":
        return await execute(tier, options)
    if options.command in ("pods", "watch"):
        return await {"pods": pods, "watch": watch}[options.command](tier, options)
    way = Unary(tier) if options.command == "ping" else Stream(tier)
    return await report(tier, options, way, attaches=options.command == "slave")


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (grpc.aio.AioRpcError, TimeoutError) as error:
        details = getattr(error, "details", lambda: "no master answered in time")
        sys.exit(f"error: {details()}")
