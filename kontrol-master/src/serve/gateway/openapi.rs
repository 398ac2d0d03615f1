//! What the port serves over HTTP, as an OpenAPI 3.1 document: made from the descriptors that the routes themselves are made
//! from, with the comments of the .proto files, so that there is no second source that could say something else.
//!
//! The plugins that there are write OpenAPI 3.0 (gnostic, from whose text tonic-rest-openapi starts as well) or 2.0, and none
//! knows what this gateway does other than proto3 JSON; so it is made here. Pure: descriptors in, JSON out.
//!
//! Where each thing comes from: routes and bodies from `google.api.http` (`super::rule`), what is required from
//! `google.api.field_behavior`, formats from `google.api.field_info`, descriptions from comments, the errors of an rpc from the
//! codes that its comment and its service's name, roles from `kontrol_core::access::table`. What no descriptor has, the routes
//! of operation, stands in a table beside them (`serve::operations`).

mod comments;
mod route;
mod schema;
#[cfg(test)]
mod tests;

use super::{GatewayError, rule};
use comments::Comments;
use kontrol_core::access::table::{self, Access};
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use route::{ERROR, FAILURE, Routes};
use schema::Schemas;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tonic::Code;

/// The tag of routes that are no rpc's.
const OPERATION: &str = "Operation";
/// What every operation has in common.
const DESCRIPTION: &str = "A distributed control loop: pods report to masters, which keep the roster of live pods, run a callback when it changes, and run commands on them.\n\nThe JSON is proto3 JSON: names in camelCase (those of the .proto files are read as well), bytes as base64, enums by their names. 64-bit integers are written as numbers, and read as numbers or text. `HEAD` is answered wherever `GET` is. gRPC is served on the same port, with reflection.";

/// Whether a master asks who calls.
#[derive(Debug, Clone, Copy)]
pub struct Openness {
    /// It does.
    pub authenticates: bool,
    /// But not for what describes itself.
    pub open_metrics: bool,
}

impl Openness {
    /// What has to be shown for this, by its name in the table of access.
    fn security(self, name: &str) -> Value {
        let rule = table::find(name);
        let is_open = !self.authenticates
            || name == Plain::EVERYBODY
            || rule.is_some_and(|rule| {
                rule.access == Access::Everyone || self.open_metrics && rule.is_self_description()
            });
        if is_open {
            json!([])
        } else {
            json!([{"token": []}, {"certificate": []}])
        }
    }
}

/// A route of operation: a GET without parameters.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    /// Where it is.
    pub path: &'static str,
    /// What it tells.
    pub summary: &'static str,
    /// Its answers: status, content type, and what that means.
    pub answers: &'static [(u16, &'static str, &'static str)],
    /// What it refuses with, as all routes do.
    pub errors: &'static [Code],
    /// Its name in the table of access, or [`Plain::EVERYBODY`].
    pub rule: &'static str,
    /// Whether it is answered under whatever host name.
    pub is_probe: bool,
}

impl Plain {
    /// The `rule` of what is not in the table, because everybody may ask for it.
    pub const EVERYBODY: &'static str = "";

    /// The type of what it answers.
    fn schema(&self, status: u16) -> &'static str {
        let kind = self.answers.iter().find(|answer| answer.0 == status);
        match kind {
            Some((_, "application/json", _)) => "object",
            Some(_) | None => "string",
        }
    }
}

/// The document of everything that this build serves.
pub fn document(openness: Openness, plain: &[Plain]) -> Result<Value, GatewayError> {
    let pool = DescriptorPool::decode(kontrol_proto::FILE_DESCRIPTOR_SET)?;
    document_of(&pool, openness, plain)
}

fn document_of(
    pool: &DescriptorPool,
    openness: Openness,
    plain: &[Plain],
) -> Result<Value, GatewayError> {
    let comments = Comments::of(pool);
    let mut routes = Routes {
        comments: &comments,
        schemas: Schemas::new(&comments),
        openness,
    };
    let mut paths: Map<String, Value> = Map::new();
    let mut tags: Vec<ServiceDescriptor> = Vec::new();
    let mut add = |path: String, method: &str, operation: Value| {
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[method] = operation;
    };
    // How many routes of an rpc were there before.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for route in rule::operations(pool)? {
        let service = route.rpc.method.parent_service();
        if !tags.contains(service) {
            tags.push(service.clone());
        }
        let index = seen.entry(route.rpc.name.clone()).or_default();
        let operation = routes.operation(&route, *index);
        *index += 1;
        let method = route.method.as_str().to_ascii_lowercase();
        add(route.template.to_string(), &method, operation);
    }
    for route in plain {
        add(route.path.to_owned(), "get", routes.plain(route));
    }
    let mut tags: Vec<Value> = tags
        .iter()
        .map(|service| {
            let comment = comments.at(service.parent_file().name(), service.path());
            json!({"name": service.name(), "description": comment})
        })
        .collect();
    tags.push(json!({"name": OPERATION, "description": "What whoever runs a master looks at."}));
    let error = routes.schemas.add(ERROR, error());
    let failure = json!({
        "type": "object", "description": "Why a stream ended: its last line.",
        "properties": {"error": error}, "required": ["error"],
    });
    routes.schemas.add(FAILURE, failure);
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Kontrol",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": env!("CARGO_PKG_LICENSE")},
        },
        "servers": [{"url": "/"}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": routes.schemas.into_map(),
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "A token, as `kontrol-master token new` makes it."},
                "certificate": {"type": "mutualTLS", "description": "A client certificate: its CN is the name, its O `kontrol:<role>`."},
            },
        },
    }))
}

/// The body of every error.
fn error() -> Value {
    json!({
        "type": "object",
        "description": "What went wrong.",
        "properties": {
            "code": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 16, "description": "Number of the google.rpc.Code."},
            "message": {"type": "string", "description": "What is wrong, for a person."},
            "details": {
                "type": "array",
                "description": "What else the service says of it.",
                "items": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
            },
        },
        "required": ["code", "message", "details"],
    })
}
