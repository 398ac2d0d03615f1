//! Reads the `google.api.http` annotations: which HTTP routes lead to which RPC, and which fields come from where.
//!
//! Everything that a request needs is resolved here, once: field descriptors, the gRPC path, the shape of the body. A rule
//! that names a field that isn't there, or asks for what the gateway can't do, stops the start-up.

use super::{GatewayError, template::Template};
use http::{Method, Uri};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, MethodDescriptor, Value,
};
use std::sync::Arc;

const EXTENSION: &str = "google.api.http";

/// An RPC that has routes.
#[derive(Debug)]
pub(super) struct Rpc {
    /// Full name, for errors.
    pub(super) name: String,
    /// Where it comes from.
    pub(super) method: MethodDescriptor,
    /// Path of its gRPC calls.
    pub(super) uri: Uri,
    pub(super) input: MessageDescriptor,
    pub(super) output: MessageDescriptor,
    /// Whether it answers with a stream.
    pub(super) streams: bool,
}

/// What of the request the HTTP body fills.
#[derive(Debug)]
pub(super) enum BodyRule {
    /// The route takes no body.
    Nothing,
    /// Every field that the path doesn't; so there are no query parameters.
    Everything,
    /// One field; the others may come as query parameters.
    Field(FieldDescriptor),
}

/// One route to an RPC.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: Method,
    pub(super) template: Template,
    /// For each variable of the template, the fields that lead to its value.
    pub(super) variables: Vec<Vec<FieldDescriptor>>,
    pub(super) body: BodyRule,
    /// The field of the answer that is the HTTP body; `None`: the whole answer.
    pub(super) response_field: Option<FieldDescriptor>,
    pub(super) rpc: Arc<Rpc>,
}

impl Operation {
    /// Whether a request could mean either of two operations that share a pattern.
    pub(super) fn collides(&self, other: &Self) -> bool {
        self.method == other.method && self.template.verb() == other.template.verb()
    }
}

/// Every route that the annotations of the pool ask for.
pub(super) fn operations(pool: &DescriptorPool) -> Result<Vec<Operation>, GatewayError> {
    let mut operations = Vec::new();
    let Some(extension) = pool.get_extension_by_name(EXTENSION) else {
        return Ok(operations);
    };
    for method in pool
        .services()
        .flat_map(|s| s.methods().collect::<Vec<_>>())
    {
        let options = method.options();
        if !options.has_extension(&extension) {
            continue;
        }
        let rule = options.get_extension(&extension);
        operations_of(&method, rule.as_message(), &mut operations).map_err(|reason| {
            GatewayError::Rule {
                rpc: method.full_name().into(),
                reason,
            }
        })?;
    }
    Ok(operations)
}

fn operations_of(
    method: &MethodDescriptor,
    rule: Option<&DynamicMessage>,
    operations: &mut Vec<Operation>,
) -> Result<(), String> {
    if method.is_client_streaming() {
        return Err("HTTP has no stream of requests".into());
    }
    let rule = rule.ok_or("it is not a message")?;
    let service = method.parent_service().full_name().to_owned();
    let rpc = Arc::new(Rpc {
        name: method.full_name().into(),
        method: method.clone(),
        uri: format!("/{service}/{}", method.name())
            .parse()
            .map_err(|error| format!("its gRPC path is wrong: {error}"))?,
        input: method.input(),
        output: method.output(),
        streams: method.is_server_streaming(),
    });
    operations.push(operation(&rpc, rule)?);
    let more = rule.get_field_by_name("additional_bindings");
    for binding in more.iter().filter_map(|more| more.as_list()).flatten() {
        let binding = binding.as_message().ok_or("a binding is not a message")?;
        operations.push(operation(&rpc, binding)?);
    }
    Ok(())
}

fn operation(rpc: &Arc<Rpc>, rule: &DynamicMessage) -> Result<Operation, String> {
    let (method, path) = pattern(rule)?;
    let template = Template::parse(&path)?;
    let variables = template
        .variables()
        .map(|path| {
            let fields = field_path(&rpc.input, path)?;
            match fields.last() {
                Some(leaf) if leaf.is_list() || leaf.is_map() => {
                    Err(format!("the path variable {path} is not one value"))
                }
                _ => Ok(fields),
            }
        })
        .collect::<Result<_, _>>()?;
    let body = match text(rule, "body").as_str() {
        "" => BodyRule::Nothing,
        "*" => BodyRule::Everything,
        name => BodyRule::Field(field(&rpc.input, name)?),
    };
    let response_field = match text(rule, "response_body").as_str() {
        "" => None,
        name => Some(field(&rpc.output, name)?),
    };
    Ok(Operation {
        method,
        template,
        variables,
        body,
        response_field,
        rpc: Arc::clone(rpc),
    })
}

fn pattern(rule: &DynamicMessage) -> Result<(Method, String), String> {
    for (name, method) in [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ] {
        if rule.has_field_by_name(name) {
            return Ok((method, text(rule, name)));
        }
    }
    if !rule.has_field_by_name("custom") {
        return Err("it names no HTTP method".into());
    }
    let custom = rule.get_field_by_name("custom");
    let custom = custom.as_deref().and_then(Value::as_message);
    let custom = custom.ok_or("its custom pattern is no message")?;
    let method = text(custom, "kind")
        .parse()
        .map_err(|_| "its custom kind is no HTTP method")?;
    Ok((method, text(custom, "path")))
}

fn text(message: &DynamicMessage, name: &str) -> String {
    let value = message.get_field_by_name(name);
    value
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// The field of a message that a name means: in the .proto's spelling or in JSON's.
pub(super) fn field(message: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, String> {
    message
        .get_field_by_name(name)
        .or_else(|| message.get_field_by_json_name(name))
        .ok_or_else(|| format!("{} has no field {name}", message.full_name()))
}

/// The fields that a dotted path leads through.
pub(super) fn field_path(
    message: &MessageDescriptor,
    path: &str,
) -> Result<Vec<FieldDescriptor>, String> {
    let mut names = path.split('.').peekable();
    let mut fields = Vec::with_capacity(1);
    let mut message = message.clone();
    while let Some(name) = names.next() {
        let field = field(&message, name)?;
        if names.peek().is_some() {
            let has_fields = !field.is_list() && !field.is_map();
            let kind = field.kind();
            let inner = kind.as_message().filter(|_| has_fields).cloned();
            message = inner.ok_or_else(|| format!("{name} has no fields"))?;
        }
        fields.push(field);
    }
    Ok(fields)
}
