#!/usr/bin/env python3
# A callback as people write it who keep data for their pods: a folder for each pod, and what belongs to none that is in the
# list is deleted. One JSON line tells what a run was given and what it deleted.
import json, os, shutil, sys

here = os.path.dirname(os.path.abspath(__file__))
data = os.path.join(here, "data")
document = json.load(sys.stdin)
ids = [pod["id"] for pod in document["pods"]]
deleted = sorted(set(os.listdir(data)) - set(ids))
for name in deleted:
    shutil.rmtree(os.path.join(data, name))
for name in ids:
    os.makedirs(os.path.join(data, name), exist_ok=True)
line = json.dumps({"hash": document["hash"], "ids": ids, "deleted": deleted})
with open(os.path.join(here, "runs.jsonl"), "a") as log:
    log.write(line + "\n")
