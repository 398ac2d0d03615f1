//! The objects of one way to deploy, and what must hold among them.

use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The objects, by kind, namespace and name.
pub(super) struct Set<'a> {
    name: String,
    objects: &'a [Value],
}

/// A program of ours, and the variables that it knows.
pub(super) type Known = (&'static str, BTreeSet<String>);
type Strings = BTreeMap<String, String>;

/// The namespace of a release where an object says none.
fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

pub(super) fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value) -> Strings {
    let map = value.as_object().into_iter().flatten();
    map.map(|(key, value)| (key.clone(), text(value).to_owned()))
        .collect()
}

/// Whether all of these labels are among those.
fn covers(labels: &Strings, selector: &Strings) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// The Secrets in what `deploy/kubernetes/secrets` writes, which is YAML of one shape.
pub(super) fn secrets_in(yaml: &str) -> Vec<Value> {
    let documents = yaml.split("---\n").skip(1);
    let read = |document: &str| {
        let (head, data) = document.split_once("\ndata:\n").unwrap();
        let field = |field: &str| {
            let (_, rest) = head.split_once(&format!("\n  {field}: ")).unwrap();
            rest.lines().next().unwrap().to_owned()
        };
        let pairs = data
            .lines()
            .map(|line| line.trim().split_once(": ").unwrap());
        let data: Map<String, Value> = pairs
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect();
        let metadata = json!({"name": field("name"), "namespace": field("namespace")});
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})
    };
    documents.map(read).collect()
}

impl<'a> Set<'a> {
    pub(super) fn new(name: &str, objects: &'a [Value]) -> Self {
        assert!(!objects.is_empty(), "{name} is empty");
        let name = name.to_owned();
        Self { name, objects }
    }

    fn kind(&self, kind: &str) -> impl Iterator<Item = &'a Value> {
        let objects = self.objects.iter();
        let kind = kind.to_owned();
        objects.filter(move |object| object["kind"] == kind.as_str())
    }

    /// The object whose name begins so (a hash may follow): the first of them.
    pub(super) fn one(&self, kind: &str, name: &str) -> &'a Value {
        let mut found = self.kind(kind).filter(|object| {
            let own = text(&object["metadata"]["name"]);
            own == name || own.starts_with(&format!("{name}-"))
        });
        found
            .next()
            .unwrap_or_else(|| panic!("{}: no {kind} {name}", self.name))
    }

    fn has(&self, kind: &str, of: &Value, name: &str) -> bool {
        self.kind(kind)
            .any(|object| object["metadata"]["name"] == name && namespace(object) == namespace(of))
    }

    /// What runs pods.
    fn workloads(&self) -> impl Iterator<Item = &'a Value> {
        let objects = self.objects.iter();
        objects.filter(|object| object["spec"]["template"]["spec"]["containers"].is_array())
    }

    /// Each container, with its workload.
    fn containers(&self) -> impl Iterator<Item = (&'a Value, &'a Value)> {
        self.workloads().flat_map(|workload| {
            let spec = &workload["spec"]["template"]["spec"];
            let all = list(&spec["containers"])
                .iter()
                .chain(list(&spec["initContainers"]));
            all.map(move |container| (workload, container))
        })
    }

    /// The variables of a container that are given as text.
    fn variables(&self, workload: &Value, container: &Value) -> Strings {
        let mut all = Strings::new();
        for from in list(&container["envFrom"]) {
            let name = text(&from["configMapRef"]["name"]);
            let map = self.kind("ConfigMap").find(|map| {
                map["metadata"]["name"] == name && namespace(map) == namespace(workload)
            });
            let map = map.unwrap_or_else(|| panic!("{}: no ConfigMap {name}", self.name));
            all.extend(strings(&map["data"]));
        }
        for variable in list(&container["env"]) {
            let value = variable["value"].as_str().unwrap_or("of the pod");
            all.insert(text(&variable["name"]).to_owned(), value.to_owned());
        }
        all.retain(|_, value| !value.is_empty());
        all
    }

    /// The variables of each container that is a master.
    pub(super) fn settings(&self) -> Vec<Strings> {
        let masters = self
            .containers()
            .filter(|(_, container)| container["name"] == "master");
        masters
            .map(|(workload, container)| self.variables(workload, container))
            .collect()
    }

    /// The strictest of Kubernetes' pod security standards, and what is good beside it.
    pub(super) fn is_restricted(&self) {
        for workload in self.workloads() {
            let pod = &workload["spec"]["template"]["spec"];
            let who = format!("{} {}", self.name, workload["metadata"]["name"]);
            let context = &pod["securityContext"];
            assert_eq!(context["runAsNonRoot"], true, "{who}");
            assert_eq!(context["runAsUser"], 10001, "{who}");
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{who}");
            let own = pod["serviceAccountName"].is_string();
            assert_eq!(pod["automountServiceAccountToken"], own, "{who}");
            assert_eq!(pod["enableServiceLinks"], false, "{who}");
            for host in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[host].is_null(), "{who}: {host}");
            }
            for volume in list(&pod["volumes"]) {
                let kinds: Vec<_> = volume.as_object().unwrap().keys().collect();
                let allowed = ["name", "configMap", "secret", "emptyDir", "downwardAPI"];
                assert!(
                    kinds.iter().all(|kind| allowed.contains(&kind.as_str())),
                    "{who}: {kinds:?}"
                );
            }
        }
        for (_, container) in self.containers() {
            let who = format!("{} {}", self.name, container["name"]);
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{who}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{who}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{who}");
            assert!(context["capabilities"]["add"].is_null() && context["privileged"].is_null());
            assert!(
                container["resources"]["limits"]["memory"].is_string(),
                "{who}"
            );
            assert!(
                container["resources"]["requests"]["cpu"].is_string(),
                "{who}"
            );
        }
    }

    /// No variable is misspelt, and those with a file name one that is mounted.
    pub(super) fn settings_are_known(&self, known: &[Known]) {
        for (workload, container) in self.containers() {
            let image = text(&container["image"]);
            let program = image.rsplit('/').next().unwrap().split(':').next().unwrap();
            let Some((_, known)) = known.iter().find(|(name, _)| *name == program) else {
                continue;
            };
            let mounts: Vec<&str> = list(&container["volumeMounts"])
                .iter()
                .map(|mount| text(&mount["mountPath"]))
                .collect();
            let own: Vec<String> = list(&container["env"])
                .iter()
                .map(Value::to_string)
                .collect();
            for (name, value) in self.variables(workload, container) {
                // One that only others are made of.
                let is_part = own
                    .iter()
                    .any(|other| other.contains(&format!("$({name})")));
                assert!(
                    known.contains(&name) || is_part,
                    "{}: {program} knows no {name}",
                    self.name
                );
                let file = value.starts_with('/').then_some(&value);
                let is_mounted = |file: &String| mounts.iter().any(|mount| file.starts_with(mount));
                assert!(
                    file.is_none_or(is_mounted),
                    "{}: {name}={value} is not mounted",
                    self.name
                );
            }
        }
    }

    /// Each probe asks a path that there is, at a port of its container, in the way that it speaks.
    pub(super) fn probes_ask_what_is_there(&self) {
        for (workload, container) in self.containers() {
            let who = format!("{} {}", self.name, container["name"]);
            let ports = list(&container["ports"]);
            let tls = self
                .variables(workload, container)
                .contains_key("KONTROL_TLS_CERT");
            let scheme = if tls { "HTTPS" } else { "HTTP" };
            for (probe, path) in [
                ("startupProbe", ["/healthz", "/health?serializable=true"]),
                ("livenessProbe", ["/healthz", "/health?serializable=true"]),
                ("readinessProbe", ["/readyz", "/health"]),
            ] {
                let probe = &container[probe];
                // Who has a port is asked.
                assert_eq!(probe.is_null(), ports.is_empty(), "{who}");
                if probe.is_null() {
                    continue;
                }
                let get = &probe["httpGet"];
                let is_etcd = container["name"] == "etcd";
                assert_eq!(get["path"], path[usize::from(is_etcd)], "{who}");
                assert!(
                    ports.iter().any(|port| port["name"] == get["port"]),
                    "{who}"
                );
                assert_eq!(get["scheme"].as_str().unwrap_or("HTTP"), scheme, "{who}");
            }
        }
    }

    /// ConfigMaps, Secrets, Services and namespaces that are named.
    pub(super) fn what_is_named_is_there(&self) {
        for workload in self.workloads() {
            let spec = &workload["spec"];
            let who = format!("{} {}", self.name, workload["metadata"]["name"]);
            if workload["kind"] == "StatefulSet" {
                assert!(
                    self.has("Service", workload, text(&spec["serviceName"])),
                    "{who}"
                );
            }
            let pod = &spec["template"]["spec"];
            let mut volumes: BTreeSet<&str> = BTreeSet::new();
            for volume in list(&pod["volumes"]) {
                volumes.insert(text(&volume["name"]));
                if let Some(name) = volume["configMap"]["name"].as_str() {
                    assert!(self.has("ConfigMap", workload, name), "{who}: {name}");
                }
                // Those that `deploy/kubernetes/secrets` makes, unless values name another.
                if let Some(name) = volume["secret"]["secretName"].as_str() {
                    let made = ["kontrol-tls", "kontrol-tokens", "kontrol-slave"];
                    let is_made = made.contains(&name) || self.name == "chart/own-etcd";
                    assert!(is_made, "{who}: {name}");
                }
            }
            volumes.extend(
                list(&spec["volumeClaimTemplates"])
                    .iter()
                    .map(|claim| text(&claim["metadata"]["name"])),
            );
            for container in list(&pod["containers"]) {
                for mount in list(&container["volumeMounts"]) {
                    assert!(volumes.contains(text(&mount["name"])), "{who}: {mount}");
                }
            }
        }
        // The base of an app is put into somebody else's namespace.
        if self.name == "app" || self.name.starts_with("chart/") {
            return;
        }
        for object in self
            .objects
            .iter()
            .filter(|object| object["kind"] != "Namespace")
        {
            let is_there = self
                .kind("Namespace")
                .any(|it| it["metadata"]["name"] == namespace(object));
            assert!(
                is_there,
                "{}: no namespace {}",
                self.name,
                namespace(object)
            );
        }
    }

    /// Whatever selects pods selects some, and a workload its own.
    pub(super) fn selectors_select(&self) {
        for workload in self.workloads() {
            let labels = strings(&workload["spec"]["template"]["metadata"]["labels"]);
            assert!(
                covers(
                    &labels,
                    &strings(&workload["spec"]["selector"]["matchLabels"])
                ),
                "{}",
                self.name
            );
            let pod = &workload["spec"]["template"]["spec"];
            let preferred = &pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
            let apart = list(preferred)
                .iter()
                .map(|term| &term["podAffinityTerm"]["labelSelector"]);
            let spread = list(&pod["topologySpreadConstraints"])
                .iter()
                .map(|term| &term["labelSelector"]);
            for selector in apart.chain(spread) {
                assert!(
                    covers(&labels, &strings(&selector["matchLabels"])),
                    "{}: {selector}",
                    self.name
                );
            }
        }
        let selects = |object: &Value, selector: &Value| {
            let selected = self.workloads().filter(|workload| {
                let labels = strings(&workload["spec"]["template"]["metadata"]["labels"]);
                namespace(workload) == namespace(object) && covers(&labels, &strings(selector))
            });
            assert_eq!(
                selected.count(),
                1,
                "{} {}: {selector}",
                self.name,
                object["metadata"]["name"]
            );
        };
        for service in self.kind("Service") {
            selects(service, &service["spec"]["selector"]);
        }
        for budget in self.kind("PodDisruptionBudget") {
            selects(budget, &budget["spec"]["selector"]["matchLabels"]);
        }
        for policy in self.kind("NetworkPolicy") {
            selects(policy, &policy["spec"]["podSelector"]["matchLabels"]);
        }
        for monitor in self.kind("ServiceMonitor") {
            let wanted = strings(&monitor["spec"]["selector"]["matchLabels"]);
            let services = self
                .kind("Service")
                .filter(|service| covers(&strings(&service["metadata"]["labels"]), &wanted));
            assert_eq!(services.count(), 1, "{}", self.name);
        }
    }

    /// Pods with a slave, and masters that report to others, have the label that lets them in.
    pub(super) fn policies_let_slaves_in(&self) {
        let Some(policy) = self
            .kind("NetworkPolicy")
            .find(|policy| text(&policy["metadata"]["name"]).ends_with("-masters"))
        else {
            return;
        };
        let from = list(&policy["spec"]["ingress"][0]["from"]);
        let clients: Vec<Strings> = from
            .iter()
            .map(|from| strings(&from["podSelector"]["matchLabels"]))
            .collect();
        assert_eq!(clients.len(), 2, "{policy}");
        // A pod of another namespace is no master.
        assert!(from[0]["namespaceSelector"].is_null(), "{policy}");
        let open = self.name.ends_with("/memory");
        assert_eq!(from[1]["namespaceSelector"].is_null(), open, "{policy}");
        for (workload, container) in self.containers() {
            let variables = self.variables(workload, container);
            let is_client =
                container["name"] == "slave" || variables.contains_key("KONTROL_UPSTREAM");
            let labels = strings(&workload["spec"]["template"]["metadata"]["labels"]);
            assert!(
                !is_client || covers(&labels, &clients[1]),
                "{}: {labels:?}",
                self.name
            );
        }
    }

    /// A certificate of cert-manager is for what masters advertise, and for what slaves dial.
    pub(super) fn certificates_are_for_what_is_dialled(&self) {
        for certificate in self.kind("Certificate") {
            let spec: &Map<String, Value> = certificate["spec"].as_object().unwrap();
            if spec.get("isCA").is_some() {
                continue;
            }
            let names: Vec<&str> = list(&spec["dnsNames"]).iter().map(text).collect();
            for workload in self.workloads().filter(|workload| {
                workload["kind"] == "StatefulSet" && namespace(workload) == namespace(certificate)
            }) {
                let service = text(&workload["spec"]["serviceName"]);
                if service.ends_with("-etcd") {
                    continue;
                }
                let tail = format!("{service}.{}.svc", namespace(workload));
                for wanted in [
                    format!("*.{tail}"),
                    tail,
                    service.to_owned(),
                    "localhost".into(),
                ] {
                    assert!(
                        names.contains(&wanted.as_str()),
                        "{}: {wanted} of {names:?}",
                        self.name
                    );
                }
                for variables in self.settings() {
                    let advertised = &variables["KONTROL_ADVERTISE"];
                    let wanted = format!("$(POD_NAME).{service}.$(KONTROL_NAMESPACE).svc:8000");
                    assert_eq!(*advertised, wanted, "{}", self.name);
                }
            }
        }
    }
}
