//! What is deployed on Kubernetes: the overlays and the chart, rendered, held to the schemas of Kubernetes and to what our
//! programs and the objects themselves promise one another. [`run`] has podman run their pods.

mod objects;
mod play;
mod podman;
mod run;

use kontrol_tests::{heavy, house::project, node, skip};
use objects::{Set, list, secrets_in, text};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder that has kubernetes-validate, and beside it the Python that knows it.
fn python() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let fetched = fs::read_dir(project().join("target/pypi"));
    let fetched = fetched.into_iter().flatten().flatten();
    env::split_paths(&path)
        .chain(fetched.map(|folder| folder.path().join("bin")))
        .find(|dir| dir.join("kubernetes-validate").is_file())
        .map(|dir| dir.join("python3"))
}

/// Everything rendered, as `kubernetes.py` tells it. None, said aloud, where it can't be.
fn rendered() -> Option<&'static Value> {
    static RENDERED: OnceLock<Result<Value, &str>> = OnceLock::new();
    match RENDERED.get_or_init(render) {
        Ok(rendered) => Some(rendered),
        Err(why) => {
            skip(&format!("{why}, see tests/packages.sh"));
            None
        }
    }
}

fn render() -> Result<Value, &'static str> {
    let python = python().ok_or("there is no kubernetes-validate")?;
    let kubectl = kubectl().ok_or("there is no kubectl with kustomize 5")?;
    let path = env::var("PATH").unwrap_or_default();
    let ran = Command::new(python)
        .arg(project().join("tests/deploy/kubernetes.py"))
        .arg(project())
        .env("PATH", format!("{}:{path}", kubectl.display()))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{ran:?}");
    Ok(serde_json::from_slice(&ran.stdout).unwrap())
}

/// The folder with a kubectl whose kustomize is new enough: that of Debian 12 is of 2020, and knows no components.
fn kubectl() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let fetched = fs::read_dir(project().join("target/pypi"));
    let fetched = fetched.into_iter().flatten().flatten();
    env::split_paths(&path)
        .chain(fetched.map(|folder| folder.path().join("bin")))
        .find(|dir| {
            let version = Command::new(dir.join("kubectl"))
                .args(["version", "--client"])
                .output();
            version.is_ok_and(|ran| {
                String::from_utf8_lossy(&ran.stdout).contains("Kustomize Version: v5")
            })
        })
}

/// The variables that a program knows, as its help tells them.
fn variables(program: &str) -> BTreeSet<String> {
    let help = node::command(program).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let names = help.split("[env: ").skip(1);
    let mut names: BTreeSet<String> = names
        .map(|rest| rest.split(['=', ']']).next().unwrap().to_owned())
        .collect();
    assert!(names.len() > 10, "{help}");
    // Told beside --token-file.
    names.insert("KONTROL_TOKEN".into());
    names
}

/// What `deploy/kubernetes/secrets` makes.
fn secrets(dir: &Path, options: &[&str]) -> String {
    let program = node::program("kontrol-master");
    let ran = Command::new(project().join("deploy/kubernetes/secrets"))
        .arg(dir)
        .args(["--kontrol-master", program.to_str().unwrap()])
        .args(options)
        .output()
        .unwrap();
    assert!(ran.status.success() && ran.stderr.is_empty(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// Those of one tier.
fn of_a_tier() -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    secrets_in(&secrets(dir.path(), &[]))
}

/// The Secrets in what it made, as `<namespace>/<name>`.
fn named(yaml: &str) -> BTreeSet<String> {
    let names = secrets_in(yaml).into_iter().map(|secret| {
        let name = &secret["metadata"];
        format!("{}/{}", text(&name["namespace"]), text(&name["name"]))
    });
    names.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_object_is_what_kubernetes_and_our_programs_take() {
    let _permit = heavy().await;
    let Some(rendered) = rendered() else { return };
    let wrong = rendered["wrong"].as_array().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, why) in rendered["refused"].as_object().unwrap() {
        assert!(why.is_string(), "the chart takes {name}");
    }
    let known = ["kontrol-master", "kontrol-slave"].map(|name| (name, variables(name)));
    let sets = rendered["sets"].as_object().unwrap();
    assert!(sets.len() > 10, "{:?}", sets.keys());
    for (name, objects) in sets {
        let set = Set::new(name, objects.as_array().unwrap());
        set.is_restricted();
        set.settings_are_known(&known);
        set.probes_ask_what_is_there();
        set.what_is_named_is_there();
        set.selectors_select();
        set.policies_let_slaves_in();
        set.certificates_are_for_what_is_dialled();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_deploy_is_what_it_says() {
    let _permit = heavy().await;
    let Some(rendered) = rendered() else { return };
    let set = |name: &str| Set::new(name, rendered["sets"][name].as_array().unwrap());
    let settings = |name: &str| set(name).settings();
    let masters = |name: &str| set(name).one("StatefulSet", "kontrol-masters")["spec"].clone();

    // What opens everything is said where it is read, and nowhere else.
    for (name, _) in rendered["sets"].as_object().unwrap() {
        let is_open = name.ends_with("/memory");
        let of = settings(name);
        assert_eq!(
            of.iter().any(|set| set.contains_key("KONTROL_INSECURE")),
            is_open,
            "{name}"
        );
    }
    let memory =
        fs::read_to_string(project().join("deploy/kubernetes/overlays/memory/kustomization.yaml"));
    assert!(memory.unwrap().contains("WHOEVER REACHES ITS PORT"));
    let notes = |name: &str| text(&rendered["notes"][name]).to_owned();
    assert!(notes("memory").starts_with("WITHOUT TOKENS AND TLS"));
    assert!(notes("default").contains("deploy/kubernetes/secrets"));
    assert!(notes("cert-manager").contains("--ca ca.crt"));
    // The token that they have one make is for the pods of the example, wherever there is one.
    for (name, told) in rendered["notes"].as_object().unwrap() {
        let objects = list(&rendered["sets"][format!("chart/{name}")]).iter();
        let mut apps = objects.filter(|object| object["kind"] == "Deployment");
        let pods = apps
            .next()
            .map(|app| format!("--slaves '{}-*'", text(&app["metadata"]["name"])));
        let told = text(told);
        if let Some(pods) = pods.filter(|_| told.contains("deploy/kubernetes/secrets")) {
            assert!(told.contains(&pods), "{name}: {told}");
        }
    }
    // What the notes show for a pod is what the example of the chart has.
    let shown = notes("memory");
    assert!(shown.contains("KONTROL_PODINFO") && shown.contains("image: kontrol-slave:"));

    assert_eq!(masters("overlays/memory")["replicas"], 1);
    for name in ["overlays/etcd", "overlays/mixed", "chart/default"] {
        assert_eq!(masters(name)["replicas"], 3, "{name}");
        let store = &settings(name)[0]["KONTROL_STORE"];
        assert_eq!(store.matches(":2379").count(), 3, "{name}: {store}");
        assert_eq!(
            set(name).one("StatefulSet", "kontrol-etcd")["spec"]["replicas"],
            3
        );
    }
    for name in ["overlays/mixed", "chart/mixed"] {
        assert_eq!(settings(name)[0]["KONTROL_MODE"], "master,slave", "{name}");
        let labels = &masters(name)["template"]["metadata"]["labels"];
        assert!(
            labels["app"].is_string() && labels["role"].is_string(),
            "{labels}"
        );
    }
    for name in ["overlays/chain", "chart/chain"] {
        let upstream: Vec<_> = settings(name)
            .iter()
            .filter_map(|set| set.get("KONTROL_UPSTREAM").cloned())
            .collect();
        assert_eq!(
            upstream,
            ["https://kontrol-masters.kontrol-upper.svc"],
            "{name}"
        );
    }
    // What an operator says wins over what the chart would say.
    let own = settings("chart/own-etcd");
    assert_eq!(
        (
            own[0]["KONTROL_APP"].as_str(),
            own[0]["KONTROL_DAMPER"].as_str()
        ),
        ("shop", "5s")
    );
    // A callback arrives as it was written.
    let memory = set("chart/memory");
    let callback = &memory.one("ConfigMap", "kontrol-callback")["data"]["callback"];
    assert_eq!(
        text(callback),
        "#!/bin/sh\n# Two lines, and a sign: {{ $HASH }}\necho \"$HASH\" >&2\n"
    );
}

#[test]
fn versions_are_those_of_the_programs() {
    let read = |name: &str| fs::read_to_string(project().join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let version = manifest.split("\nversion = \"").nth(1).unwrap();
    let version = version.split('"').next().unwrap();
    let chart = read("deploy/helm/kontrol/Chart.yaml");
    for line in [
        format!("\nversion: {version}\n"),
        format!("\nappVersion: {version}\n"),
    ] {
        assert!(chart.contains(&line), "Chart.yaml lacks {line:?}");
    }
    for folder in ["base", "app"] {
        let text = read(&format!("deploy/kubernetes/{folder}/kustomization.yaml"));
        assert!(
            text.contains(&format!("newTag: {version}\n")),
            "{folder}: {text}"
        );
    }
}

/// The operator's guide tells every folder, and what it has run is there.
#[test]
fn the_guide_names_what_is_there() {
    let root = project().join("deploy/kubernetes");
    let guide = fs::read_to_string(project().join("deploy/README.md")).unwrap();
    let (_, section) = guide.split_once("\n## On Kubernetes\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut folders = vec!["app".to_owned(), "base".to_owned()];
    for kind in ["components", "overlays"] {
        let names = fs::read_dir(root.join(kind)).unwrap().flatten();
        folders.extend(names.map(|it| format!("{kind}/{}", it.file_name().to_str().unwrap())));
    }
    for folder in folders {
        assert!(
            section.contains(&format!("`{folder}`")),
            "the guide lacks {folder}"
        );
    }
    let words = section
        .split([' ', '`'])
        .map(|word| word.trim_end_matches([',', ':']));
    for path in words.filter(|word| word.starts_with("deploy/")) {
        assert!(project().join(path).exists(), "the guide names {path}");
    }
}

#[test]
fn secrets_are_made_once_and_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--upper", "kontrol-upper", "--pods", "shop"];
    let first = secrets(dir.path(), &options);
    assert_eq!(
        first,
        secrets(dir.path(), &options),
        "run again it says the same"
    );
    let made = named(&first);
    let upper = ["kontrol-operator", "kontrol-tls", "kontrol-tokens"];
    let wanted: BTreeSet<String> = ["kontrol", "kontrol-upper"]
        .iter()
        .flat_map(|namespace| upper.map(|name| format!("{namespace}/{name}")))
        .chain(["shop/kontrol-slave".to_owned()])
        .collect();
    assert_eq!(made, wanted);
    // No file of it is for others.
    for file in fs::read_dir(dir.path()).unwrap().flatten() {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{:?}", file.path());
    }
    // A tier above knows the masters below as pods, by the token that they show one another.
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let lower = read("kontrol.tokens");
    let token = lower
        .lines()
        .next()
        .unwrap()
        .strip_prefix("peer kontrol-masters ");
    let as_pods = format!("slave kontrol-masters-* {}\n", token.unwrap());
    assert!(read("kontrol-upper.tokens").ends_with(&as_pods));
    assert!(!lower.contains(&as_pods));

    // What an operator adds counts too.
    fs::write(
        dir.path().join("more-tokens"),
        "reader prometheus sha256:00\n",
    )
    .unwrap();
    secrets(dir.path(), &[]);
    assert!(read("kontrol.tokens").ends_with("\nreader prometheus sha256:00\n"));

    // With an authority of somebody else's: no certificate.
    let other = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let text = secrets(other.path(), &["--ca", ca.to_str().unwrap(), "--name", "x"]);
    let made = named(&text);
    assert!(
        !made.contains("kontrol/kontrol-tls") && made.len() == 3,
        "{made:?}"
    );
    let script = project().join("deploy/kubernetes/secrets");
    let wrong = Command::new(&script).arg("--nothing").output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    // What is there was made for something else: it is not told as if it were for this.
    for (option, value, file) in [
        ("--slaves", "db-*", "slaves.token"),
        ("--name", "other", "kontrol.token"),
    ] {
        let other = Command::new(&script)
            .arg(dir.path())
            .args([option, value])
            .output();
        let other = other.unwrap();
        let said = String::from_utf8_lossy(&other.stderr);
        assert!(
            !other.status.success() && other.stdout.is_empty(),
            "{other:?}"
        );
        assert!(said.contains(file) && said.contains("delete it"), "{said}");
    }
}
