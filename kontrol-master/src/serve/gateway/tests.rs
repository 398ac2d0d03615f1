//! The transcoding rules on a service that only the tests know: each RPC echoes its request, so that a response shows
//! what the HTTP request became. The kontrol services over real sockets are in `tests/gateway.rs`.

mod answers;
pub(super) mod descriptors;
mod output;

use super::*;
use axum::body::{Body, to_bytes};
use bytes::Bytes;
use descriptors::{descriptors, rpc};
use futures::stream;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Status;

/// A gRPC service that gives back what it gets.
fn echo() -> Routes {
    let echo = |request: Request| async move {
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.headers()[CONTENT_TYPE], "application/grpc");
        assert!(!request.headers().contains_key("content-length"));
        let frame = to_bytes(request.into_body(), usize::MAX).await.unwrap();
        Response::new(Body::from(frame))
    };
    Routes::from(Router::new().fallback(echo))
}

fn echo_router() -> Router {
    let rpcs = json!([
        rpc("Plain", json!({"get": "/v1/things/{name}", "additionalBindings": [{"delete": "/things/{name=*}"}]})),
        rpc("Poke", json!({"post": "/v1/things/{name}:poke", "body": "*"})),
        rpc("Nested", json!({"get": "/v1/inner/{inner_thing.inner_id}/of/{name}"})),
        rpc("Put", json!({"put": "/v1/inner/{name}", "body": "inner_thing"})),
        rpc("Numbers", json!({"put": "/v1/numbers", "body": "numbers", "responseBody": "numbers"})),
        rpc("Inner", json!({"patch": "/v1/inner", "body": "*", "responseBody": "inner_thing"})),
        rpc("Custom", json!({"custom": {"kind": "REPORT", "path": "/v1/things"}})),
        {"name": "Unrouted", "inputType": ".test.v1.Thing", "outputType": ".test.v1.Thing"},
    ]);
    router_of(&descriptors(rpcs), echo()).unwrap()
}

async fn call(method: &str, target: &str, body: &str) -> (StatusCode, Value) {
    let request = http::Request::builder().method(method).uri(target);
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let response = echo_router().oneshot(request).await.unwrap();
    let status = response.status();
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// What of a `Thing` isn't at its default.
async fn thing(method: &str, target: &str, body: &str) -> Value {
    let (status, mut body) = call(method, target, body).await;
    assert_eq!(status, StatusCode::OK, "{method} {target}: {body}");
    let defaults = [
        json!(""),
        json!([]),
        json!("COLOR_UNSPECIFIED"),
        json!({}),
        json!(false),
        json!(0),
    ];
    body.as_object_mut()
        .unwrap()
        .retain(|_, value| !defaults.contains(value));
    body
}

/// The message of a 400.
async fn refusal(method: &str, target: &str, body: &str) -> String {
    let (status, body) = call(method, target, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{method} {target}: {body}");
    assert_eq!((&body["code"], &body["details"]), (&json!(3), &json!([])));
    body["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn path_variables_are_decoded_and_may_be_nested() {
    assert_eq!(
        thing("GET", "/v1/things/a%2Fb%20%C3%A9+", "").await,
        json!({"name": "a/b é+"})
    );
    assert_eq!(thing("DELETE", "/things/x", "").await, json!({"name": "x"}));
    assert_eq!(
        thing("GET", "/v1/inner/7/of/x", "").await,
        json!({"innerThing": {"innerId": "7"}, "name": "x"})
    );
    assert_eq!(
        refusal("GET", "/v1/things/%FF", "").await,
        "the path is not UTF-8"
    );
}

#[tokio::test]
async fn a_verb_is_told_from_a_value_that_looks_like_one() {
    assert_eq!(
        thing("POST", "/v1/things/a:poke", "").await,
        json!({"name": "a"})
    );
    assert_eq!(
        thing("POST", "/v1/things/a:b:poke", "").await,
        json!({"name": "a:b"})
    );
    assert_eq!(
        thing("GET", "/v1/things/a:b", "").await,
        json!({"name": "a:b"})
    );
    assert_eq!(
        thing("GET", "/v1/things/a%3Apoke", "").await,
        json!({"name": "a:poke"})
    );
    let (status, body) = call("GET", "/v1/things/a:poke", "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(body["message"], "/v1/things/a:poke takes POST, not GET");
}

#[tokio::test]
async fn a_query_fills_fields_in_either_spelling() {
    let target = "/v1/things/x?inner_thing.innerId=a%26b+c&numbers=1&numbers=-2&color=COLOR_RED&wait=1.5s&flag=true";
    assert_eq!(
        thing("GET", target, "").await,
        json!({"name": "x", "innerThing": {"innerId": "a&b c"}, "numbers": [1, -2], "color": "COLOR_RED",
            "wait": "1.500s", "flag": true})
    );
    assert_eq!(
        thing("GET", "/v1/things/x?color=1&&", "").await,
        json!({"name": "x", "color": "COLOR_RED"})
    );
    assert_eq!(
        thing("REPORT", "/v1/things?one=a", "").await,
        json!({"one": "a"})
    );
}

#[tokio::test]
async fn a_wrong_query_names_its_parameter() {
    let deep = format!("/v1/things/x?{}name=1", "again.".repeat(50));
    for (target, reason) in [
        (
            "/v1/things/x?nmae=1",
            "unknown query parameter \"nmae\": test.v1.Thing has no field nmae",
        ),
        (
            "/v1/things/x?name.x=1",
            "unknown query parameter \"name.x\": name has no fields",
        ),
        (
            "/v1/things/x?name=1",
            "unknown query parameter \"name\": it is in the path",
        ),
        (
            "/v1/things/x?inner_thing.inner_id=1&innerThing.innerId=2",
            "query parameter innerThing.innerId is given twice",
        ),
        (
            "/v1/things/x?numbers=1&numbers=x",
            "query parameter numbers: invalid digit found in string",
        ),
        (
            "/v1/things/x?flag",
            "query parameter flag: is neither true nor false",
        ),
        (
            "/v1/things/x?color=BLUE",
            "query parameter color: unrecognized enum value 'BLUE'",
        ),
        (
            "/v1/things/x?any=1",
            "query parameter any: can't be given here, only in a JSON body",
        ),
        (
            "/v1/things/x?again=1",
            "query parameter again: can't be given here, only in a JSON body",
        ),
        (
            "/v1/things/x?labels=1",
            "query parameter labels: can't be given here, only in a JSON body",
        ),
        ("/v1/things/x?one=1&other=%FF", "the query is not UTF-8"),
        (&deep, "has more than 8 parts"),
    ] {
        let message = refusal("GET", target, "").await;
        assert!(message.contains(reason), "{target}: {message}");
    }
    let message = refusal("POST", "/v1/things/x:poke?flag=true", "").await;
    assert_eq!(
        message,
        "unknown query parameter \"flag\": give it in the body"
    );
    let message = refusal("PUT", "/v1/inner/x?inner_thing.inner_id=1", "").await;
    assert_eq!(
        message,
        "unknown query parameter \"inner_thing.inner_id\": it is the body"
    );
}

#[tokio::test]
async fn a_body_is_one_field_or_all_that_the_path_leaves() {
    assert_eq!(
        thing(
            "PUT",
            "/v1/inner/x?big=18446744073709551615",
            r#"{"inner_id":"7"}"#
        )
        .await,
        json!({"name": "x", "innerThing": {"innerId": "7"}, "big": u64::MAX})
    );
    assert_eq!(
        thing(
            "POST",
            "/v1/things/x:poke",
            r#"{"name":"x","big":"5","any":{"a":[1,2.5,null]}}"#
        )
        .await,
        json!({"name": "x", "big": 5, "any": {"a": [1, 2.5, null]}})
    );
    assert_eq!(thing("PUT", "/v1/inner/x", " ").await, json!({"name": "x"}));
    let (status, answer) = call("POST", "/v1/things/x:poke", r#"{"name":"y"}"#).await;
    assert_eq!(status, 400);
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("name is something else"), "{message}");
}

#[tokio::test]
async fn a_response_can_be_one_field() {
    assert_eq!(
        call("PUT", "/v1/numbers", "[1, \"2\"]").await.1,
        json!([1, 2])
    );
    let body = r#"{"innerThing":{"innerId":"7"}}"#;
    assert_eq!(
        call("PATCH", "/v1/inner", body).await.1,
        json!({"innerId": "7"})
    );
    assert_eq!(call("PATCH", "/v1/inner", "{}").await.1, Value::Null);
}

#[tokio::test]
async fn a_wrong_body_names_its_field_or_its_place() {
    let deep = format!(
        "{{\"name\":\"x\",\"any\":{}1{}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let wide = format!("{{\"any\":[0{}]}}", ",0".repeat(1_000_000));
    let wide_beside = format!(
        "{{\"flag\":true,\"any\":{{\"a\":[0{}]}}}}",
        ",0".repeat(1_000_000)
    );
    for (body, reason) in [
        (
            "{",
            "the body is not JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            "{\"name\":\n}",
            "the body is not JSON: expected value at line 2 column 1",
        ),
        (
            "{} x",
            "the body is not JSON: trailing characters at line 1 column 4",
        ),
        ("[]", "body: invalid type: sequence, expected a map"),
        ("null", "body: invalid type: null, expected a map"),
        (r#"{"foo":1}"#, "unrecognized field name 'foo'"),
        (
            r#"{"again":{"again":{"flag":"yes"}}}"#,
            "again.again.flag: invalid type: string \"yes\"",
        ),
        (
            r#"{"numbers":5}"#,
            "numbers: invalid type: number, expected a list",
        ),
        (
            r#"{"labels":[]}"#,
            "labels: invalid type: sequence, expected a map",
        ),
        (r#"{"labels":{"a":null}}"#, "labels.a: invalid type: null"),
        (
            r#"{"inner_thing":"x"}"#,
            "inner_thing: invalid type: string, expected a map",
        ),
        (r#"{"name":"\ud800"}"#, "the body is not JSON"),
        (
            r#"{"big":18446744073709551616}"#,
            "big: number too large to fit in target type",
        ),
        (
            r#"{"big":1e20}"#,
            "big: number too large to fit in target type",
        ),
        (r#"{"big":1e99}"#, "big: expected integer value"),
        (
            r#"{"any":9007199254740993}"#,
            "any: the number 9007199254740993 does not fit a double",
        ),
        (
            r#"{"any":{"b":[1,{"c":1234567890123456789}]}}"#,
            "any.b[1].c: the number 1234567890123456789",
        ),
        (
            r#"{"any":{"b":[1,{"c":1,"c":2}]}}"#,
            "any.b[1].c: is given twice",
        ),
        (r#"{"name":"a","name":"a"}"#, "name: is given twice"),
        (r#"{"name":null,"name":"a"}"#, "name: is given twice"),
        (
            r#"{"innerThing":{},"inner_thing":{}}"#,
            "inner_thing: is given twice",
        ),
        (
            r#"{"again":{"inner_thing":{"innerId":"a","inner_id":"a"}}}"#,
            "again.inner_thing.inner_id: is given twice",
        ),
        (
            r#"{"labels":{"a":"1","\u0061":"2"}}"#,
            "labels.a: is given twice",
        ),
        (
            r#"{"numbers":[1,2.5]}"#,
            "numbers[1]: expected integer value",
        ),
        (
            r#"{"labels":{"a":1}}"#,
            "labels.a: invalid type: integer `1`",
        ),
        (r#"{"wait":"soon"}"#, "wait: "),
        (r#"{"big":-1}"#, "big: "),
        (
            r#"{"one":"a","other":1}"#,
            "multiple fields provided for oneof 'choice'",
        ),
        (
            r#"{"any":1e999}"#,
            "the body is not JSON: number out of range",
        ),
        (&wide, "]: is too large: a request may have 8388608 bytes"),
        (&wide_beside, "any.a["),
        (&deep, "nests too deeply: JSON may nest 34 levels here"),
    ] {
        let message = refusal("POST", "/v1/things/x:poke", body).await;
        assert!(message.contains(reason), "{body:.80}: {message}");
    }
    let message = refusal("PUT", "/v1/inner/x", r#"{"inner_id":1}"#).await;
    assert!(
        message.starts_with("innerThing.inner_id: invalid type"),
        "{message}"
    );
    let message = refusal("PUT", "/v1/inner/x", &"[".repeat(35)).await;
    assert!(
        message.starts_with("innerThing: invalid type: sequence"),
        "{message}"
    );
}

#[tokio::test]
async fn whole_numbers_are_read_to_the_last_digit_however_they_are_written() {
    for (big, number) in [
        ("18446744073709551615", u64::MAX),
        ("\"18446744073709551615\"", u64::MAX),
        ("9007199254740993", 9_007_199_254_740_993),
        ("9007199254740993.0", 9_007_199_254_740_993),
        ("1e3", 1000),
    ] {
        let body = format!("{{\"big\":{big},\"numbers\":[1.0,\"-2\",3e0]}}");
        assert_eq!(
            thing("POST", "/v1/things/x:poke", &body).await,
            json!({"name": "x", "big": number, "numbers": [1, -2, 3]})
        );
    }
}

/// A service that keeps a value as text beside it.
fn exact_router() -> Router {
    let mut state = rpc("State", json!({"put": "/state", "body": "*"}));
    for side in ["inputType", "outputType"] {
        state[side] = json!(".test.v1.State");
    }
    router_of(&descriptors(json!([state])), echo()).unwrap()
}

#[tokio::test]
async fn a_value_that_is_kept_as_text_goes_through_digit_for_digit() {
    let put = async |body: String| {
        let request = http::Request::put("/state").body(Body::from(body)).unwrap();
        let response = exact_router().oneshot(request).await.unwrap();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    };
    for text in [
        r#"{"z":[1.0,-0.0,1E5],"a":1234567890123456789}"#,
        "123456789012345678901234567890",
        "null",
        "\"\\u00e9\"",
    ] {
        let answer = put(format!("{{\"state\":{text}}}")).await;
        assert_eq!(answer, format!("{{\"state\":{text},\"after\":0}}"));
    }
    let large = format!("[0{}]", ",0".repeat(524_286));
    assert!(put(format!("{{\"state\":{large}}}")).await.contains(&large));
    assert_eq!(put("{}".to_owned()).await, r#"{"after":0}"#);
    for (body, reason) in [
        (r#"{"state":1,"json":"1"}"#, "json: is given twice"),
        (r#"{"json":"1","state":1}"#, "state: is given twice"),
        (
            r#"{"state":{"a":[{"b":1,"b":1}]}}"#,
            "state.a[0].b: is given twice",
        ),
        (
            r#"{"state":1e999}"#,
            "the body is not JSON: number out of range",
        ),
    ] {
        let answer = put(body.to_owned()).await;
        assert!(answer.contains(reason), "{body}: {answer}");
    }
}

#[tokio::test]
async fn whatever_nests_no_deeper_than_allowed_reaches_the_service() {
    let levels = json::MAX_DEPTH - 1;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let body = format!(
            "{{\"any\":{}1{}}}",
            open.repeat(levels),
            close.repeat(levels)
        );
        assert_eq!(
            call("POST", "/v1/things/x:poke", &body).await.0,
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn what_is_not_there_is_a_json_404() {
    for target in ["/", "/v1/thing", "/v1/things/", "/test.v1.Echo/Unrouted"] {
        let (status, body) = call("GET", target, "").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        let message = format!("nothing is at {target}");
        assert_eq!(body, json!({"code": 5, "message": message, "details": []}));
    }
}

#[test]
fn a_rule_that_can_not_be_served_stops_the_start() {
    let plain = |rule: Value| json!([rpc("Bad", rule)]);
    let streaming = json!([{"name": "Bad", "inputType": ".test.v1.Thing", "outputType": ".test.v1.Thing",
        "clientStreaming": true, "options": {"[google.api.http]": {"get": "/x"}}}]);
    for (rpcs, reason) in [
        (
            plain(json!({"get": "/x/{nope}"})),
            "test.v1.Thing has no field nope",
        ),
        (
            plain(json!({"get": "/x/{numbers}"})),
            "the path variable numbers is not one value",
        ),
        (plain(json!({"get": "/x/{name=**}"})), "is not one variable"),
        (
            plain(json!({"put": "/x", "body": "nope"})),
            "has no field nope",
        ),
        (
            plain(json!({"get": "/x", "responseBody": "nope"})),
            "has no field nope",
        ),
        (plain(json!({"body": "*"})), "it names no HTTP method"),
        (streaming, "HTTP has no stream of requests"),
        (
            json!([
                rpc("A", json!({"get": "/x/{name}"})),
                rpc("B", json!({"get": "/x/{one}"}))
            ]),
            "GET /x/{one} is the route of both test.v1.Echo.A and test.v1.Echo.B",
        ),
    ] {
        let error = router_of(&descriptors(rpcs), echo())
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
}
