#!/usr/bin/env python3
# A callback that writes down how it was run: one JSON line at its start, one at each sign of life, one at its end.
# What it does beyond that stands in plan.json beside it, which the test may rewrite at any time.
import hashlib, json, os, signal, subprocess, sys, time

here = os.path.dirname(os.path.abspath(__file__))
log = os.open(os.path.join(here, "runs.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
run = os.urandom(8).hex()


def say(event, **what):
    what.update(run=run, event=event, at=time.clock_gettime(time.CLOCK_MONOTONIC))
    os.write(log, (json.dumps(what) + "\n").encode())


def md5(data):
    return hashlib.md5(data).hexdigest()


def read(variable):
    path = os.environ.get(variable)
    if path is None or not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def parsed(text):
    return None if text in (None, "", b"") else json.loads(text)


# The first thing of all, so that a run that is killed early is known as well.
say("started", pid=os.getpid(), hash=os.environ.get("HASH"))
with open(os.path.join(here, "plan.json")) as file:
    plan = json.load(file)
if plan["stubborn"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
children = [subprocess.Popen(["sleep", "1000"]).pid for _ in range(plan["children"])]
document = parsed(sys.stdin.buffer.read()) if plan["reads_stdin"] else None
document = {name.lower(): value for name, value in (document or {}).items()}
environment = {name: os.fsencode(value) for name, value in os.environ.items()}
pods_file = read("PODS_FILE")
pods = parsed(pods_file) or []
state = parsed(environment.get("STATE"))
say(
    "read",
    md5=os.environ.get("MD5"),
    md5_of_pods=md5(environment["PODS"]) if "PODS" in environment else None,
    md5_of_file=md5(pods_file) if pods_file is not None else None,
    stdin_agrees=None if not document else document.get("pods") == pods,
    stdin_names=sorted(document),
    pods=len(pods),
    ids=[pod["id"] for pod in pods],
    seqs=[pod["seq"] for pod in pods],
    epoch=int(os.environ.get("KONTROL_EPOCH", "-1")),
    endpoint=os.environ.get("KONTROL_ENDPOINT"),
    state=state,
    state_of_file=parsed(read("STATE_FILE")),
    changes=parsed(environment.get("CHANGES")),
    changes_of_file=parsed(read("CHANGES_FILE")),
    children=children,
    uid=os.getuid(),
    group=os.getpgid(0),
    descriptors=sorted(int(name) for name in os.listdir("/proc/self/fd")),
)
end = time.monotonic() + plan["takes"]
while time.monotonic() < end:
    say("alive")
    time.sleep(0.02)
for pid in children:
    os.kill(pid, signal.SIGKILL)
failures = os.path.join(here, "failures")
failed = os.path.getsize(failures) if os.path.exists(failures) else 0
if failed < plan["fails"]:
    with open(failures, "ab") as file:
        file.write(b".")
    print("told to fail", file=sys.stderr)
    say("ended", code=7)
    sys.exit(7)
if plan["prints"] is not None:
    sys.stdout.write(plan["prints"])
else:
    before = state if isinstance(state, dict) else {}
    runs = before.get("runs", 0)
    print(json.dumps({"runs": runs + 1, "hash": os.environ.get("HASH"), "id": run}))
say("ended", code=0)
