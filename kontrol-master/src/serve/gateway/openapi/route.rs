//! One route of the gateway as an operation of OpenAPI: what a request may say, and every answer that it may get.

use super::{
    Openness, Plain,
    comments::{Comments, codes, name, summary},
    schema::{Schemas, Side, is_required},
};
use crate::serve::gateway::{
    answer::REVISION,
    error::http_status,
    input,
    request::{LAST_EVENT_ID, MAX_FIELD_PATH},
    rule::{BodyRule, Operation},
};
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use kontrol_core::access::table;
use kontrol_proto::json::exact;
use prost_reflect::{FieldDescriptor, MessageDescriptor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tonic::Code;

/// Name of the schema of an error.
pub(super) const ERROR: &str = "Error";
/// Name of the schema of the last line of a stream that fails.
pub(super) const FAILURE: &str = "StreamError";

/// What operations are made from.
#[derive(Debug)]
pub(super) struct Routes<'c> {
    pub(super) comments: &'c Comments,
    pub(super) schemas: Schemas<'c>,
    pub(super) openness: Openness,
}

impl Routes<'_> {
    /// The operation of a route; `index`: which one of its rpc's it is.
    pub(super) fn operation(&mut self, route: &Operation, index: usize) -> Value {
        let rpc = &route.rpc.method;
        let service = rpc.parent_service();
        let file = service.parent_file();
        let comment = self.comments.at(file.name(), rpc.path());
        let general = self.comments.at(file.name(), service.path());
        let mut named = codes(comment);
        named.extend(codes(general));
        named.push(Code::InvalidArgument);
        let path = route.rpc.uri.path().trim_start_matches('/');
        let rule = table::find(path);
        let roles = rule.map(table::Rule::roles).unwrap_or_default();
        let mut answers = errors(&named);
        answers.insert("200".into(), self.answer(route));
        // The first goes by the plain name, as those who generate clients know it.
        let number = match index {
            0 => String::new(),
            index => (index + 1).to_string(),
        };
        let mut operation = json!({
            "operationId": format!("{}_{}{number}", service.name(), rpc.name()),
            "tags": [service.name()],
            "summary": summary(comment),
            "description": format!("{comment}\n\nWhere masters ask who calls: {roles}."),
            "parameters": self.parameters(route),
            "responses": answers,
            "security": self.openness.security(path),
        });
        if let Some(body) = self.body(route) {
            operation["requestBody"] = body;
        }
        operation
    }

    /// A route that is no rpc's.
    pub(super) fn plain(&self, plain: &Plain) -> Value {
        let mut answers = Map::new();
        for (status, kind, description) in plain.answers {
            let content = json!({*kind: {"schema": {"type": plain.schema(*status)}}});
            let answer = json!({"description": description, "content": content});
            answers.insert(status.to_string(), answer);
        }
        answers.append(&mut errors(plain.errors));
        if plain.is_probe {
            answers.remove(MISDIRECTED);
        }
        json!({
            "operationId": plain.path.trim_start_matches('/').replace('.', "_"),
            "tags": [super::OPERATION],
            "summary": plain.summary,
            "responses": answers,
            "security": self.openness.security(plain.rule),
        })
    }

    fn parameters(&mut self, route: &Operation) -> Vec<Value> {
        let mut parameters = Vec::new();
        for (name, fields) in route.template.variables().zip(&route.variables) {
            if let Some(field) = fields.last() {
                let mut parameter = self.parameter(name, field);
                parameter["in"] = json!("path");
                parameter["required"] = json!(true);
                // An empty segment is another path.
                parameter["schema"]["minLength"] = json!(1);
                parameters.push(parameter);
            }
        }
        if !matches!(route.body, BodyRule::Everything) {
            let mut path = Vec::new();
            self.query(route, &route.rpc.input, &mut path, &mut parameters);
        }
        if route.rpc.streams && route.rpc.input.get_field_by_name(REVISION).is_some() {
            parameters.push(json!({
                "name": LAST_EVENT_ID, "in": "header", "schema": {"type": "string"},
                "description": "Where the stream of events goes on: the `id` of the last event, which an EventSource sends by itself. Only with `Accept: text/event-stream`.",
            }));
        }
        parameters
    }

    /// The parameters of a query, which may be fields of fields.
    fn query(
        &mut self,
        route: &Operation,
        message: &MessageDescriptor,
        path: &mut Vec<FieldDescriptor>,
        parameters: &mut Vec<Value>,
    ) {
        let exact = exact::of(message);
        for field in message.fields() {
            path.push(field.clone());
            let is_elsewhere = route.variables.contains(path)
                || matches!(&route.body, BodyRule::Field(body) if path.first() == Some(body))
                || exact.as_ref().is_some_and(|exact| exact.json == field);
            let kind = field.kind();
            let inner = kind.as_message().filter(|_| !input::is_one_text(&field));
            match inner {
                _ if is_elsewhere => {}
                Some(inner) => {
                    // What nests without an end is told once.
                    let is_around = path.iter().any(|outer| outer.parent_message() == inner);
                    let has_fields = !field.is_list() && !field.is_map() && !is_well_known(inner);
                    if has_fields && !is_around && path.len() < MAX_FIELD_PATH {
                        self.query(route, inner, path, parameters);
                    }
                }
                None => {
                    let names: Vec<&str> = path.iter().map(FieldDescriptor::json_name).collect();
                    let mut parameter = self.parameter(&names.join("."), &field);
                    parameter["in"] = json!("query");
                    if is_required(&field) {
                        parameter["required"] = json!(true);
                    }
                    parameters.push(parameter);
                }
            }
            path.pop();
        }
    }

    fn parameter(&mut self, name: &str, field: &FieldDescriptor) -> Value {
        let schema = self.schemas.parameter(field);
        json!({"name": name, "description": self.schemas.description(field), "schema": schema})
    }

    fn body(&mut self, route: &Operation) -> Option<Value> {
        let input = &route.rpc.input;
        let (schema, required) = match &route.body {
            BodyRule::Nothing => return None,
            BodyRule::Field(field) => {
                (self.schemas.field(field, Side::Request), is_required(field))
            }
            BodyRule::Everything => {
                let of_path = route.variables.iter().filter(|path| path.len() == 1);
                let of_path: Vec<&FieldDescriptor> = of_path.flatten().collect();
                let others = input.fields().filter(|field| !of_path.contains(&field));
                let required = others.into_iter().any(|field| is_required(&field));
                let schema = match of_path.as_slice() {
                    [] => self.schemas.message(input, Side::Request),
                    of_path => self.schemas.object(input, Side::Request, of_path),
                };
                (schema, required)
            }
        };
        Some(json!({"required": required, "content": {"application/json": {"schema": schema}}}))
    }

    fn answer(&mut self, route: &Operation) -> Value {
        let output = &route.rpc.output;
        let schema = match &route.response_field {
            Some(field) => self.schemas.field(field, Side::Answer),
            None => self.schemas.message(output, Side::Answer),
        };
        let comment = self.comments.at(output.parent_file().name(), output.path());
        if !route.rpc.streams {
            return json!({"description": comment, "content": {"application/json": {"schema": schema}}});
        }
        let failure = json!({"$ref": format!("#/components/schemas/{FAILURE}")});
        let line = json!({"anyOf": [schema, failure]});
        let data = json!({"type": "string", "contentMediaType": "application/json", "contentSchema": line});
        let event = json!({
            "type": "object",
            "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": data},
            "required": ["data"],
        });
        json!({
            "description": format!("{comment}\n\nA stream: the schema is that of each line, or of each event. Empty lines and comments are signs of life."),
            "content": {
                "application/x-ndjson": {"schema": line},
                "text/event-stream": {"schema": event},
            },
        })
    }
}

const MISDIRECTED: &str = "421";

fn is_well_known(message: &MessageDescriptor) -> bool {
    message.full_name().starts_with("google.protobuf.")
}

/// The answers that say these codes, and the one to whoever asks under a name that is not this master's.
fn errors(codes: &[Code]) -> Map<String, Value> {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in (1..=16).map(Code::from_i32) {
        if codes.contains(&code) {
            let status = http_status(code).as_u16();
            by_status.entry(status).or_default().push(code);
        }
    }
    let error =
        json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{ERROR}")}}});
    let mut answers = Map::new();
    for (status, codes) in by_status {
        let names: Vec<String> = codes.iter().map(|code| name(*code)).collect();
        let mut answer = json!({"description": names.join(" or "), "content": error});
        for (code, header, kind) in [
            (Code::Unauthenticated, WWW_AUTHENTICATE, "string"),
            (Code::ResourceExhausted, RETRY_AFTER, "integer"),
        ] {
            if codes.contains(&code) {
                let header = header.as_str();
                answer["headers"] = json!({header: {"required": true, "schema": {"type": kind}}});
            }
        }
        answers.insert(status.to_string(), answer);
    }
    let misdirected = json!({
        "description": "The host name of the request is none of this master's", "content": error,
    });
    answers.insert(MISDIRECTED.into(), misdirected);
    answers
}
