//! Bad input on every interface: a clear refusal that names the field, nothing stored, nothing crashed.

use kontrol_proto::v1::{ListPodsRequest, PutStateRequest};
use kontrol_tests::{cluster::Cluster, etcd::Etcd, pod::PodSpec, small};
use serde_json::{Value, json};
use tonic::Code;

/// Each way to be wrong: the field that must be named, and what makes the keepalive wrong.
fn wrong() -> Vec<(&'static str, PodSpec)> {
    let with = |change: &dyn Fn(&mut PodSpec)| {
        let mut pod = PodSpec::number(0);
        change(&mut pod);
        pod
    };
    let long = "x".repeat(5000);
    let deep = (0..29).fold(json!(1), |inner, _| json!([inner]));
    vec![
        ("app", with(&|pod| pod.app.clear())),
        ("app", with(&|pod| pod.app = long.clone())),
        ("id", with(&|pod| pod.id.clear())),
        ("id", with(&|pod| pod.id = "a\u{0}b".into())),
        ("role", with(&|pod| pod.role.clear())),
        ("role", with(&|pod| pod.role = "a\nb".into())),
        ("ip", with(&|pod| pod.ip.clear())),
        ("ip", with(&|pod| pod.ip = "localhost".into())),
        ("ip", with(&|pod| pod.ip = "10.0.0.256".into())),
        ("ip", with(&|pod| pod.ip = "10.0.0.1/8".into())),
        ("ip", with(&|pod| pod.ip = "0.0.0.0".into())),
        ("ip", with(&|pod| pod.ip = "224.0.0.1".into())),
        ("key", with(&|pod| pod.key = "blXcB".into())),
        ("key", with(&|pod| pod.key = "not a key".into())),
        ("node", with(&|pod| pod.node = long.clone())),
        ("nonce", with(&|pod| pod.nonce = long.clone())),
        (
            "labels",
            with(&|pod| pod.labels = (0..100).map(|n| (n.to_string(), String::new())).collect()),
        ),
        (
            "labels",
            with(&|pod| pod.labels = [("a".into(), long.clone())].into()),
        ),
        (
            "labels",
            with(&|pod| pod.labels = [(String::new(), "a".into())].into()),
        ),
        (
            "annotations",
            with(&|pod| pod.annotations = [("a".into(), long.clone())].into()),
        ),
        ("payload", with(&|pod| pod.payload = json!([[deep]]))),
        (
            "payload",
            with(&|pod| pod.payload = json!("x".repeat(70_000))),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_keepalive_is_refused_by_field_and_stores_nothing() {
    let _permit = small().await;
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let mut cluster = Cluster::on(&etcd.store()).patient().start().await;
    let api = cluster.api(0);
    let before = etcd.revision().await;
    for (field, pod) in wrong() {
        let brief = |text: &str| text.chars().take(300).collect::<String>();
        let status = api.ping(&pod).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().contains(field),
            "{field} is not named: {}",
            brief(status.message())
        );
        assert!(
            status.message().len() < 1000,
            "a message for people: {}",
            status.message()
        );
        for route in ["/v1/keepalive", "/ping"] {
            let answer = api.http("PUT", route, Some(&pod.json())).await;
            assert_eq!(answer.status, 400, "{field}: {}", brief(&answer.body));
            let error = answer.json();
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains(field),
                "{field} is not named: {}",
                brief(message)
            );
            assert!(
                !error["code"].is_null() && error["details"].is_array(),
                "{error}"
            );
        }
    }
    assert_eq!(api.pods().await.unwrap().pods.len(), 0);
    assert_eq!(etcd.revision().await, before, "nothing was stored");
    assert_eq!(cluster.running(), [0], "nothing crashed");
    assert_eq!(
        api.ping(&PodSpec::number(0)).await.unwrap().seq,
        0,
        "no seq was spent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_is_none_or_of_the_wrong_type_is_a_400_that_says_where() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    let good = PodSpec::number(0).json();
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string()
    };
    for (body, named) in [
        (String::new(), ""),
        ("{".into(), ""),
        ("[]".into(), ""),
        ("null".into(), ""),
        ("\"text\"".into(), ""),
        (with("ip", json!(5)), "ip"),
        (with("app", json!({"a": 1})), "app"),
        (with("down", json!("perhaps")), "down"),
        (with("beat", json!(-1)), "beat"),
        (with("beat", json!("many")), "beat"),
        (with("labels", json!(["a"])), "labels"),
        (with("labels", json!({"a": 1})), "labels"),
        (format!("{} trailing", good), ""),
    ] {
        let answer = api
            .raw(
                "PUT",
                "/ping",
                "application/json",
                body.clone().into_bytes(),
            )
            .await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        let error = answer.json();
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(named),
            "{named} is not named for {body}: {message}"
        );
    }
    let answer = api
        .raw(
            "PUT",
            "/ping",
            "application/json",
            b"{\"app\":\"\xff\"}".to_vec(),
        )
        .await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    let huge = format!("{{\"payload\":\"{}\"}}", "x".repeat(20 << 20)).into_bytes();
    // Refused by a status, or by a connection that is closed while the body is still on its way.
    let url = format!("{}/ping", api.url());
    if let Ok(answer) = kontrol_tests::client::exchange("PUT", &url, "application/json", huge).await
    {
        assert!((400..500).contains(&answer.status), "{}", answer.status);
    }
    let nested = "[".repeat(100_000);
    let answer = api
        .raw(
            "PUT",
            "/ping",
            "application/json",
            format!("{{\"payload\":{nested}").into_bytes(),
        )
        .await;
    assert_eq!(answer.status, 400);
    assert_eq!(api.pods().await.unwrap().pods.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_reads_are_refused_as_well() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    for selector in ["a in (", "=b", "a==b=c", "a notin", "(", "a b"] {
        let request = ListPodsRequest {
            selector: selector.into(),
            ..ListPodsRequest::default()
        };
        let status = api.select(request).await.expect_err(selector);
        assert_eq!(status.code(), Code::InvalidArgument, "{selector}");
        assert!(
            status.message().contains("selector"),
            "{}",
            status.message()
        );
    }
    assert_eq!(
        api.http("GET", "/v1/pods?selector=(", None).await.status,
        400
    );
    assert_eq!(api.pod("2kce4N").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(api.http("GET", "/v1/pods/2kce4N", None).await.status, 404);
    for key in ["", "not a key", "0", "00", &"Z".repeat(30)] {
        let code = api.pod(key).await.unwrap_err().code();
        let fits = matches!(code, Code::InvalidArgument) || (key == "0" && code == Code::NotFound);
        assert!(fits, "{key:?}: {code:?}");
    }
    let status = api
        .ensembles()
        .put_state(PutStateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("state"));
    assert_eq!(
        api.http("PUT", "/v1/state", Some(&json!({}))).await.status,
        400
    );
    let status = match api.watch(-1).await {
        Err(status) => status,
        Ok(mut watch) => watch.next(kontrol_tests::SOON).await.unwrap_err(),
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        api.http("GET", "/v1/watch?revision=soon", None)
            .await
            .status,
        400
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_answer_json_errors() {
    let _permit = small().await;
    let cluster = Cluster::on("memory:").patient().start().await;
    let api = cluster.api(0);
    for (method, path, status) in [
        ("GET", "/v1/nothing", vec![404]),
        ("GET", "/../etc/passwd", vec![400, 404]),
        ("POST", "/v1/keepalive", vec![404, 405, 501]),
        ("DELETE", "/v1/pods/2kce4N", vec![404, 405, 501]),
    ] {
        let answer = api.http(method, path, None).await;
        assert!(
            status.contains(&answer.status),
            "{method} {path}: {} {}",
            answer.status,
            answer.body
        );
        assert!(answer.json()["message"].is_string(), "{}", answer.body);
    }
}
