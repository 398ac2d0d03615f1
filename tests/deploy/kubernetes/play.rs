//! Pods as they are rendered, run by `podman kube play`, and what a kubelet and a cluster do for them beside that.
//!
//! Podman 4.3 reads a Pod, its containers, their security contexts, resources, mounts, `envFrom` and `emptyDir`, and holds
//! them to it. It knows no downward API, loses the modes of files, hands Secrets out in base64, asks probes with a curl inside
//! of the container, and takes the ports of containers from this machine as well. So files are put into folders here, with the
//! owner and modes that a kubelet gives them; names of pods, nodes and Services are filled in; probes are asked from outside.

use super::{
    objects::{list, text},
    podman::{Podman, output},
};
use anyhow::ensure;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use kontrol_tests::{SOON, wait::eventually};
use serde_json::{Map, Value, json};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    process::Command,
    thread,
};

/// The group that a kubelet gives volumes.
const ID: u32 = 10001;

/// A pod that runs.
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) ip: String,
    containers: Vec<Value>,
}

/// The pods of some objects. They go with the test.
pub(super) struct Cluster {
    podman: Podman,
    /// The objects, and the Secrets.
    objects: Vec<Value>,
    pub(super) pods: Vec<Pod>,
}

impl Cluster {
    /// One without pods. None, said aloud, where there can be none.
    pub(super) async fn make(objects: Vec<Value>) -> Option<Self> {
        let workloads = objects
            .iter()
            .map(|object| &object["spec"]["template"]["spec"]);
        let containers = workloads.flat_map(|pod| list(&pod["containers"]));
        let images = containers
            .map(|container| text(&container["image"]))
            .collect();
        let podman = Podman::make(&images).await?;
        Some(Self {
            podman,
            objects,
            pods: Vec::new(),
        })
    }

    /// Whatever has pods gets them: `replicas` of each, with the names and addresses that they find one another by.
    pub(super) fn start(&mut self) {
        let workloads: Vec<Value> = self
            .objects
            .iter()
            .filter(|object| object["spec"]["template"].is_object())
            .cloned()
            .collect();
        let mut planned = Vec::new();
        for workload in &workloads {
            for index in 0..workload["spec"]["replicas"].as_u64().unwrap() {
                let name = format!("{}-{index}", text(&workload["metadata"]["name"]));
                let ip = self.podman.address(planned.len());
                planned.push((workload, name, ip));
            }
        }
        // What the name server of a cluster knows; of a Service, here, the first of its pods alone.
        let mut aliases = Vec::new();
        for service in self
            .objects
            .iter()
            .filter(|object| object["kind"] == "Service")
        {
            let (name, selector) = (
                text(&service["metadata"]["name"]),
                &service["spec"]["selector"],
            );
            let namespace = text(&service["metadata"]["namespace"]);
            let behind = planned.iter().filter(|(workload, ..)| {
                let labels = &workload["spec"]["template"]["metadata"]["labels"];
                selector
                    .as_object()
                    .unwrap()
                    .iter()
                    .all(|(key, value)| labels[key] == *value)
            });
            for (position, (_, pod, ip)) in behind.enumerate() {
                let mut names = vec![
                    format!("{pod}.{name}"),
                    format!("{pod}.{name}.{namespace}.svc"),
                ];
                if position == 0 {
                    names.extend([name.to_owned(), format!("{name}.{namespace}.svc")]);
                }
                aliases.push(json!({"ip": ip, "hostnames": names}));
            }
        }
        let aliases = Value::from(aliases);
        for (workload, name, ip) in planned {
            self.play(workload, &name, &ip, &aliases);
            let containers = list(&workload["spec"]["template"]["spec"]["containers"]).to_vec();
            self.pods.push(Pod {
                name,
                ip,
                containers,
            });
        }
    }

    fn play(&self, workload: &Value, name: &str, ip: &str, aliases: &Value) {
        let template = &workload["spec"]["template"];
        let mut spec = template["spec"].clone();
        for container in spec["containers"].as_array_mut().unwrap() {
            let container = container.as_object_mut().unwrap();
            for field in ["startupProbe", "livenessProbe", "readinessProbe", "ports"] {
                container.remove(field);
            }
            let mut filled: Vec<(String, String)> = Vec::new();
            for variable in list(container.get("env").unwrap_or(&Value::Null)) {
                let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    None => text(&variable["value"]).to_owned(),
                    Some("metadata.name") => name.to_owned(),
                    Some("metadata.namespace") => {
                        text(&workload["metadata"]["namespace"]).to_owned()
                    }
                    Some("status.podIP") => ip.to_owned(),
                    Some("spec.nodeName") => "node-1".to_owned(),
                    Some(other) => panic!("what is {other}?"),
                };
                let value = filled.iter().fold(value, |value, (name, known)| {
                    value.replace(&format!("$({name})"), known)
                });
                filled.push((text(&variable["name"]).to_owned(), value));
            }
            let filled = filled
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}));
            container.insert("env".into(), filled.collect());
        }
        let claims = list(&workload["spec"]["volumeClaimTemplates"]).iter();
        let claims = claims.map(|claim| json!({"name": claim["metadata"]["name"], "claim": true}));
        let volumes = list(&spec["volumes"]).iter().cloned().chain(claims);
        let volumes: Vec<Value> = volumes
            .map(|volume| self.volume(&volume, template, name))
            .collect();
        spec["volumes"] = volumes.into();
        spec["hostAliases"] = aliases.clone();
        let labels = &template["metadata"]["labels"];
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec});
        let maps = self
            .objects
            .iter()
            .filter(|object| object["kind"] == "ConfigMap");
        let documents: Vec<String> = maps
            .chain([&pod])
            .map(|document| {
                let mut document = document.clone();
                document["metadata"]
                    .as_object_mut()
                    .unwrap()
                    .remove("namespace");
                document.to_string()
            })
            .collect();
        let file = self.podman.dir().join(format!("{name}.yaml"));
        fs::write(&file, documents.join("\n---\n")).unwrap();
        self.podman.play(ip, &file);
    }

    /// A volume as a folder, with the files that a kubelet would write; those that podman knows stay.
    fn volume(&self, volume: &Value, template: &Value, pod: &str) -> Value {
        let name = text(&volume["name"]);
        let folder = self.podman.dir().join("kubelet").join(pod).join(name);
        let data = |kind: &str, named: &Value| {
            let mut objects = self.objects.iter();
            let object = objects
                .find(|object| object["kind"] == kind && object["metadata"]["name"] == *named);
            object.unwrap_or_else(|| panic!("no {kind} {named}"))["data"]
                .as_object()
                .unwrap()
                .clone()
        };
        let files: Map<String, Value> = if volume["claim"] == true {
            Map::new()
        } else if volume["configMap"].is_object() {
            data("ConfigMap", &volume["configMap"]["name"])
        } else if volume["secret"].is_object() {
            let encoded = data("Secret", &volume["secret"]["secretName"]);
            let decode = |(key, value): (String, Value)| {
                let bytes = BASE64_STANDARD.decode(text(&value)).unwrap();
                (key, String::from_utf8(bytes).unwrap().into())
            };
            encoded.into_iter().map(decode).collect()
        } else if volume["downwardAPI"].is_object() {
            downward(&volume["downwardAPI"]["items"], &template["metadata"], pod)
        } else {
            return volume.clone();
        };
        let mode = ["configMap", "secret"]
            .iter()
            .find_map(|kind| volume[kind]["defaultMode"].as_u64());
        fs::create_dir_all(&folder).unwrap();
        for (file, content) in files {
            let path = folder.join(file);
            fs::write(&path, text(&content)).unwrap();
            fs::set_permissions(
                &path,
                fs::Permissions::from_mode(mode.unwrap_or(0o644) as u32),
            )
            .unwrap();
            chown(&path, None, Some(ID)).unwrap();
        }
        // What `fsGroup` does.
        chown(&folder, None, Some(ID)).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o2775)).unwrap();
        json!({"name": name, "hostPath": {"path": folder, "type": "Directory"}})
    }

    /// Waits until each probe of each container is answered as a kubelet wants it. Pods without one just run.
    pub(super) async fn is_ready(&self) {
        for pod in &self.pods {
            for container in &pod.containers {
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                    let get = &container[probe]["httpGet"];
                    if get.is_null() {
                        continue;
                    }
                    let mut ports = list(&container["ports"]).iter();
                    let port = ports.find(|port| port["name"] == get["port"]).unwrap();
                    let scheme = get["scheme"].as_str().unwrap_or("http").to_lowercase();
                    let url = format!(
                        "{scheme}://{}:{}{}",
                        pod.ip,
                        port["containerPort"],
                        text(&get["path"])
                    );
                    eventually(3 * SOON, &url, async || {
                        // A kubelet trusts every certificate.
                        let ran = output(Command::new("curl").args(["-sfk", "-m", "5", &url]));
                        ensure!(ran.status.success(), "{ran:?}\n{}", self.logs(&pod.name));
                        Ok(())
                    })
                    .await;
                }
            }
        }
    }

    /// Has a master's container run the command line, with what the operator shows, where there is one.
    pub(super) fn ask(&self, pod: &str, command: &[&str]) -> Result<String, anyhow::Error> {
        let mut variables = vec!["--env=KONTROL_TOKEN_FILE=".to_owned()];
        let mut objects = self.objects.iter();
        let operator = objects.find(|object| object["metadata"]["name"] == "kontrol-operator");
        if let Some(operator) = operator {
            let token = BASE64_STANDARD.decode(text(&operator["data"]["token"]))?;
            let token = String::from_utf8(token)?;
            variables.push(format!("--env=KONTROL_TOKEN={}", token.trim()));
        }
        let mut exec = self.podman.command(&["exec"]);
        exec.args(variables)
            .args([&format!("{pod}-master"), "kontrol-master"])
            .args(command);
        let ran = output(&mut exec);
        ensure!(ran.status.success(), "{ran:?}");
        Ok(String::from_utf8(ran.stdout)?)
    }

    /// Ends a pod as a node that is lost does.
    pub(super) fn kill(&self, pod: &str) {
        self.podman.does(&["pod", "kill", pod]);
    }

    /// What the containers of a pod have written.
    pub(super) fn logs(&self, pod: &str) -> String {
        let ran = output(&mut self.podman.command(&["pod", "logs", pod]));
        format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for pod in &self.pods {
                eprintln!("--- log of {} ---\n{}", pod.name, self.logs(&pod.name));
            }
        }
    }
}

/// The files of the downward API.
fn downward(items: &Value, metadata: &Value, pod: &str) -> Map<String, Value> {
    let lines = |map: &Value| -> String {
        let map = map.as_object().into_iter().flatten();
        map.map(|(key, value)| format!("{key}={value}\n")).collect()
    };
    list(items)
        .iter()
        .map(|item| {
            let content = match text(&item["fieldRef"]["fieldPath"]) {
                "metadata.name" => pod.to_owned(),
                "metadata.labels" => lines(&metadata["labels"]),
                "metadata.annotations" => lines(&metadata["annotations"]),
                other => panic!("what is {other}?"),
            };
            (text(&item["path"]).to_owned(), content.into())
        })
        .collect()
}
