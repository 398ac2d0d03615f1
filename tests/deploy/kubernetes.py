#!/usr/bin/env python3
"""Renders what is in deploy/kubernetes and deploy/helm, and holds each object to the schemas of Kubernetes.

For tests/deploy/kubernetes.rs, by the Python of a folder with the packages kubernetes-validate and helm-python-sdk
(tests/packages.sh: fetch_kubernetes). The argument is the folder of the project. What it writes is one JSON object:

  sets     by name, every object: of the overlays as kubectl makes them, of the chart with the values below
  notes    what the chart says when it was installed, by the name of its values
  wrong    what the schemas, the chart's linter, or YAML itself find wrong, each a line
  refused  by name, why the chart refused values that are wrong; null where it did not
"""

import json
import pathlib
import subprocess
import sys

import helm_python
import jsonschema
import kubernetes_validate
import yaml

# The oldest that the chart says it runs on, and the newest that there is a schema of.
VERSIONS = ["1.25.0", kubernetes_validate.latest_version()]
ROOT = pathlib.Path(sys.argv[1])
KUSTOMIZED = ["base", "app", *(f"overlays/{name}" for name in ["memory", "etcd", "cert-manager", "mixed", "chain"])]

# An app beside a master, restricted like all of them.
BESIDE = {
    "name": "app",
    "image": "registry.k8s.io/pause:3.10",
    "resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi"}},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    },
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
}

# Release, namespace, values.
CHARTS = {
    "default": ("kontrol", "kontrol", {}),
    "memory": ("kontrol", "kontrol", {
        "insecure": True,
        "replicas": 1,
        "etcd": {"enabled": False},
        "callback": "#!/bin/sh\n# Two lines, and a sign: {{ $HASH }}\necho \"$HASH\" >&2\n",
        "example": {"enabled": True},
        "networkPolicy": {"anyNamespace": False},
    }),
    "own-etcd": ("tier", "tools", {
        "store": "etcd://etcd-0.db:2379,etcd-1.db:2379",
        "storeTls": {"secret": "etcd-client", "clientCertificate": True},
        "image": {"registry": "registry.example.com/tools/", "tag": "0.0.9"},
        "imagePullSecrets": [{"name": "registry"}],
        "tokensSecret": "who-is-who",
        "callback": "#!/usr/bin/env python3\nprint(1)",
        "serviceAccountName": "callback",
        "settings": {"KONTROL_DAMPER": "5s", "KONTROL_APP": "shop"},
        "podAnnotations": {"team": "ours"},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "ours", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "high",
        "example": {"enabled": True},
    }),
    "cert-manager": ("kontrol", "kontrol", {
        "certManager": {"enabled": True},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "tokenSecret": "kontrol-reader"},
    }),
    "issuer": ("kontrol", "tools", {
        "certManager": {"enabled": True, "issuerRef": {"kind": "ClusterIssuer", "name": "ours"}},
        "serviceMonitor": {"enabled": True},
        "settings": {"KONTROL_OPEN_METRICS": "yes"},
    }),
    "mixed": ("kontrol", "kontrol", {
        "mixed": True,
        "extraContainers": [BESIDE],
        "extraVolumes": [{"name": "data", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
    }),
    "chain": ("kontrol", "kontrol", {"upstream": "https://kontrol-masters.kontrol-upper.svc"}),
    "bare": ("kontrol", "kontrol", {
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "etcd": {"storageClass": "fast", "storage": "10Gi"},
    }),
}

# What the chart must not take.
REFUSED = {
    "a value that there is none of": {"replica": 3},
    "one of a part": {"etcd": {"replicas": 5}},
    "no masters": {"replicas": 0},
    "a number as text": {"replicas": "3"},
    "another store": {"store": "redis://x"},
    "a setting that is none": {"settings": {"DAMPER": "5s"}},
    "a setting that is no text": {"settings": {"KONTROL_DAMPER": 5}},
    "a callback without its first line": {"callback": "echo x"},
    "an amount of memory": {"resources": {"limits": {"memory": "lots"}}},
    "masters that share no store": {"etcd": {"enabled": False}},
    "a certificate for nobody": {"insecure": True, "certManager": {"enabled": True}},
    "metrics that nobody may read": {"serviceMonitor": {"enabled": True}},
    "a pod without a role": {"mixed": True, "podLabels": {"role": None}},
}

NAME = {"type": "string", "minLength": 1}


def made_of(required, **properties):
    """The schema of an object."""
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


# What is not of Kubernetes itself has no schemas there: the fields that are used here, as their documentation has them.
SECRET_KEY = made_of(["name", "key"], name=NAME, key=NAME)
SPECS = {
    ("cert-manager.io/v1", "Issuer"): made_of([], selfSigned=made_of([]), ca=made_of(["secretName"], secretName=NAME)),
    ("cert-manager.io/v1", "Certificate"): made_of(
        ["secretName", "issuerRef"],
        secretName=NAME,
        issuerRef=made_of(["name"], name=NAME, kind={"enum": ["Issuer", "ClusterIssuer"]}, group=NAME),
        isCA={"type": "boolean"},
        commonName={"type": "string", "maxLength": 64},
        duration={"type": "string", "pattern": "^[0-9]+h$"},
        renewBefore={"type": "string", "pattern": "^[0-9]+h$"},
        privateKey=made_of(
            [], algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]}, size={"type": "integer"},
            rotationPolicy={"enum": ["Never", "Always"]},
        ),
        usages={"type": "array", "items": {"enum": ["digital signature", "server auth", "client auth"]}},
        dnsNames={"type": "array", "items": {"type": "string"}, "minItems": 1, "uniqueItems": True},
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): made_of(
        ["selector", "endpoints"],
        selector=made_of(["matchLabels"], matchLabels={"type": "object"}),
        endpoints={"type": "array", "items": made_of(
            ["port"],
            port=NAME,
            path=NAME,
            interval={"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"},
            scheme={"enum": ["http", "https"]},
            tlsConfig=made_of(["ca"], serverName=NAME, ca=made_of(["secret"], secret=SECRET_KEY)),
            authorization=made_of(["credentials"], credentials=SECRET_KEY),
        )},
    ),
}


class Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a key that is there twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1 and key != "<<"}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


wrong = []


def judged(name, text):
    """The objects of a text; what is wrong with them is noted."""
    try:
        found = [each for each in yaml.load_all(text, Loader) if each]
    except yaml.YAMLError as error:
        wrong.append(f"{name}: {error}")
        return []
    for each in found:
        who = f"{name}: {each.get('kind')} {each.get('metadata', {}).get('name')}"
        try:
            own = SPECS.get((each["apiVersion"], each["kind"]))
            if own:
                jsonschema.validate(each["spec"], own)
                continue
            for version in VERSIONS:
                kubernetes_validate.validate(each, version, strict=True)
        except jsonschema.ValidationError as error:
            wrong.append(f"{who}: {'.'.join(map(str, error.path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError as error:
            wrong.append(f"{who}: {error.message}")
    return found


def kustomized(name):
    """What kubectl makes of a folder."""
    folder = ROOT / "deploy/kubernetes" / name
    ran = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    if ran.returncode or ran.stderr:
        # A warning is of something that goes away with the next version.
        wrong.append(f"{name}: {ran.stderr.strip()}")
    return judged(name, ran.stdout)


def main():
    sets = {name: kustomized(name) for name in KUSTOMIZED}
    notes, refused = {}, {}
    folder = ROOT / "deploy/helm/kontrol"
    with helm_python.Chart.load(folder) as chart:
        for name, (release, namespace, values) in CHARTS.items():
            found = helm_python.lint(folder, values, strict=True, namespace=namespace)
            # That an icon is recommended is told at 1.
            wrong.extend(f"chart/{name}: {each}" for each in found["messages"] if each["severity"] > 1)
            rendered = chart.render(values, name=release, namespace=namespace)
            (notes[name],) = [text for path, text in rendered.items() if path.endswith("/NOTES.txt")]
            files = [text for path, text in rendered.items() if path.endswith(".yaml")]
            sets[f"chart/{name}"] = [each for text in files for each in judged(f"chart/{name}", text)]
        for name, values in REFUSED.items():
            refused[name] = None
            try:
                chart.render(values, name="kontrol", namespace="kontrol")
            except helm_python.HelmError as error:
                refused[name] = str(error)
    json.dump({"sets": sets, "notes": notes, "wrong": wrong, "refused": refused}, sys.stdout)


main()
