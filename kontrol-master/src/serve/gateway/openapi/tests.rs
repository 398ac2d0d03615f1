//! The document of what is really served, and of a service that only the tests know.

use super::*;
use crate::serve::{gateway::tests::descriptors, operations};
use std::collections::BTreeSet;

const ASKS: Openness = Openness {
    authenticates: true,
    open_metrics: false,
};

fn pool() -> DescriptorPool {
    DescriptorPool::decode(kontrol_proto::FILE_DESCRIPTOR_SET).unwrap()
}

fn served() -> Value {
    document(ASKS, &operations::ROUTES).unwrap()
}

/// Method, path, and what is said of it.
fn operations_of(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    found
}

/// Every value in a document, with where it is.
fn walk(value: &Value, at: &str, seen: &mut impl FnMut(&str, &Value)) {
    seen(at, value);
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, v)| (name.clone(), v)).collect(),
        Value::Array(items) => items.iter().map(|v| ("[]".to_owned(), v)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    for (name, child) in children {
        walk(child, &format!("{at}/{name}"), seen);
    }
}

#[test]
fn every_route_that_is_served_is_there_and_no_other() {
    let documented: BTreeSet<(String, String)> = operations_of(&served())
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let routes = rule::operations(&pool()).unwrap();
    let served = routes.iter().map(|route| {
        let method = route.method.as_str().to_ascii_lowercase();
        (method, route.template.to_string())
    });
    let plain = operations::ROUTES.map(|plain| ("get".to_owned(), plain.path.to_owned()));
    let all: BTreeSet<(String, String)> = served.chain(plain).collect();
    assert_eq!(documented, all);
    assert_eq!(all.len(), routes.len() + 4);
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_referred_to() {
    let document = served();
    let mut referred = BTreeSet::new();
    walk(&document, "", &mut |at, value| {
        if let Some(to) = value.get("$ref").and_then(Value::as_str) {
            let pointer = to.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{at}: {to}");
            referred.insert(to.rsplit_once('/').unwrap().1.to_owned());
        }
    });
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let names: BTreeSet<String> = schemas.keys().cloned().collect();
    assert_eq!(names, referred);
}

#[test]
fn everything_is_described() {
    let document = served();
    let mut operations = BTreeSet::new();
    for (method, path, operation) in operations_of(&document) {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        assert!(operations.insert(id), "{method} {path} has another's id");
        assert_ne!(operation["summary"], "", "{method} {path}");
        for (status, answer) in operation["responses"].as_object().unwrap() {
            assert_ne!(answer["description"], "", "{method} {path} {status}");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert_ne!(parameter["description"], "", "{method} {path} {parameter}");
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert_ne!(schema["description"], "", "{name}");
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_described = property["description"] != "" || property["$ref"].is_string();
            assert!(is_described, "{name}.{field}");
        }
    }
}

/// A message's two schemas are told apart by their names: none may be another's.
#[test]
fn no_message_goes_by_the_name_of_another_ones_schema() {
    let pool = pool();
    let names = pool.all_messages().map(|message| message.name().to_owned());
    for name in names.filter(|name| !name.starts_with("google.")) {
        assert!(!name.ends_with("Input"), "{name}");
    }
}

#[test]
fn an_operation_says_what_the_annotations_the_comments_and_the_table_say() {
    let document = served();
    let of = |path: &str, method: &str| document["paths"][path][method].clone();
    let ping = of("/v1/keepalive", "put");
    assert_eq!(ping["operationId"], "KeepaliveService_Ping");
    assert_eq!(of("/ping", "put")["operationId"], "KeepaliveService_Ping2");
    assert_eq!(ping["summary"], "Reports one pod, once");
    assert_eq!(ping["tags"], json!(["KeepaliveService"]));
    let description = ping["description"].as_str().unwrap();
    assert!(description.ends_with("Where masters ask who calls: slave or peer."));
    assert_eq!(ping["requestBody"]["required"], true);
    let statuses = |operation: &Value| -> Vec<String> {
        operation["responses"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    let ping_answers = ["200", "400", "401", "403", "421", "429", "503"];
    assert_eq!(statuses(&ping), ping_answers);
    assert_eq!(
        ping["responses"]["400"]["description"],
        "INVALID_ARGUMENT or FAILED_PRECONDITION"
    );
    assert!(statuses(&of("/v1/pods/{key}", "get")).contains(&"404".to_owned()));
    assert_eq!(statuses(&of("/healthz", "get")), ["200"]);
    assert_eq!(statuses(&of("/openapi.json", "get")), ["200", "421"]);

    let names = |operation: &Value| -> Vec<String> {
        let parameters = operation["parameters"].as_array().unwrap().iter();
        let name = |p: &Value| {
            format!(
                "{} {}",
                p["in"].as_str().unwrap(),
                p["name"].as_str().unwrap()
            )
        };
        parameters.map(name).collect()
    };
    let listed = [
        "query role",
        "query selector",
        "query pageSize",
        "query pageToken",
    ];
    assert_eq!(names(&of("/v1/pods", "get")), listed);
    let evicted = ["path key", "query reason"];
    assert_eq!(names(&of("/v1/pods/{key}", "delete")), evicted);
    let watched = ["query revision", "query history", "header last-event-id"];
    assert_eq!(names(&of("/v1/watch", "get")), watched);
    let content = of("/v1/watch", "get")["responses"]["200"]["content"].clone();
    assert_eq!(content.as_object().unwrap().len(), 2);

    // The id is in the path, and nothing is left for the body.
    let cancel = of("/v1/actions/{id}:cancel", "post");
    assert_eq!(names(&cancel), ["path id"]);
    assert_eq!(cancel["requestBody"]["required"], false);
    let body = &cancel["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["properties"], json!({}));
}

#[test]
fn a_schema_says_what_is_read_and_what_is_written() {
    let document = served();
    let schema = |name: &str| document["components"]["schemas"][name].clone();
    let ping = schema("PingRequest");
    assert_eq!(ping["required"], json!(["app", "id", "ip", "role"]));
    assert_eq!(ping["additionalProperties"], false);
    assert_eq!(ping["properties"]["app"]["type"], "string");
    assert_eq!(ping["properties"]["app"]["minLength"], 1);
    let formats = json!([{"format": "ipv4"}, {"format": "ipv6"}]);
    assert_eq!(ping["properties"]["ip"]["anyOf"], formats);
    assert_eq!(ping["properties"]["key"]["type"], json!(["string", "null"]));
    assert_eq!(
        ping["properties"]["beat"]["type"],
        json!(["integer", "string", "null"])
    );
    assert_eq!(ping["properties"]["payload"].get("type"), None);
    let pod = schema("Pod");
    assert_eq!(pod["properties"]["seq"]["type"], "integer");
    assert_eq!(pod["properties"]["firstSeen"]["format"], "date-time");
    assert_eq!(
        pod["properties"]["labels"]["additionalProperties"]["type"],
        "string"
    );
    assert!(pod["required"].as_array().unwrap().contains(&json!("seq")));
    assert!(
        !pod["required"]
            .as_array()
            .unwrap()
            .contains(&json!("firstSeen"))
    );
    // The exact text of a value is not there beside it.
    let state = schema("PutStateRequest");
    assert_eq!(state["required"], json!(["state"]));
    assert_eq!(state["properties"].as_object().unwrap().len(), 1);
    // What is in requests and in answers has two.
    assert_eq!(schema("SelectorInput")["additionalProperties"], false);
    assert_eq!(schema("Selector").get("additionalProperties"), None);
    assert!(
        schema("Outcome")["enum"]
            .as_array()
            .unwrap()
            .contains(&json!("OUTCOME_LOST"))
    );
    let of = schema("WatchResponse")["description"].to_string();
    assert!(
        of.contains("At most one of `snapshot`, `podJoined`"),
        "{of}"
    );
}

#[test]
fn what_has_to_be_shown_is_what_the_master_asks_for() {
    let asks = |openness: Openness, path: &str| {
        let document = document(openness, &operations::ROUTES).unwrap();
        !document["paths"][path]["get"]["security"]
            .as_array()
            .unwrap()
            .is_empty()
    };
    let opened = Openness {
        open_metrics: true,
        ..ASKS
    };
    let open = Openness {
        authenticates: false,
        open_metrics: false,
    };
    for (path, expected) in [
        ("/v1/pods", [true, true, false]),
        ("/metrics", [true, false, false]),
        ("/healthz", [false, false, false]),
        ("/openapi.json", [false, false, false]),
    ] {
        assert_eq!(
            [ASKS, opened, open].map(|openness| asks(openness, path)),
            expected,
            "{path}"
        );
    }
}

#[test]
fn bodies_queries_and_answers_of_other_shapes_follow_their_rules() {
    let rpcs = json!([
        descriptors::rpc(
            "Put",
            json!({"put": "/v1/inner/{name}", "body": "inner_thing"})
        ),
        descriptors::rpc(
            "Get",
            json!({"get": "/v1/things/{name}", "responseBody": "numbers"})
        ),
    ]);
    let set = descriptors::descriptors(rpcs);
    let pool = DescriptorPool::decode(&set[..]).unwrap();
    let document = document_of(&pool, ASKS, &[]).unwrap();
    let put = &document["paths"]["/v1/inner/{name}"]["put"];
    let parameters = |operation: &Value| -> BTreeSet<String> {
        let parameters = operation["parameters"].as_array().unwrap().iter();
        parameters
            .map(|p| p["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(parameters(put).contains("name"));
    assert!(
        !parameters(put)
            .iter()
            .any(|name| name.starts_with("innerThing"))
    );
    let body = &put["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(body["anyOf"][0]["$ref"], "#/components/schemas/InnerInput");
    let get = &document["paths"]["/v1/things/{name}"]["get"];
    assert!(parameters(get).contains("innerThing.innerId"), "{get}");
    let answer = &get["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(answer["type"], "array");
}
