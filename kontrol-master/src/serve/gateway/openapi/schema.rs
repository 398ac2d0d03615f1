//! Messages as JSON Schema (2020-12): what `super::super::json` reads, and what `kontrol_proto::json` writes.
//!
//! The two differ. An answer has every field that cannot be absent, and its integers are numbers. A request may leave out what
//! is not REQUIRED, or say `null` for it, may write integers as text, and may have no field that is not known. So a message
//! that is in both has two schemas.

use super::comments::Comments;
use kontrol_proto::json::exact;
use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, Value as Said};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The number of REQUIRED in google.api.FieldBehavior.
const REQUIRED: i32 = 2;
/// Where the schemas are.
const COMPONENTS: &str = "#/components/schemas/";
/// A duration of proto3 JSON.
const DURATION: &str = r"^-?[0-9]+(\.[0-9]{1,9})?s$";
/// An integer as text, and one that is not negative.
const INTEGER: &str = "^-?[0-9]+$";
const NATURAL: &str = "^[0-9]+$";

/// On which side of an rpc a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Answer,
}

/// The schemas that were asked for, and those that they refer to.
#[derive(Debug)]
pub(super) struct Schemas<'c> {
    comments: &'c Comments,
    made: BTreeMap<String, Value>,
}

impl<'c> Schemas<'c> {
    pub(super) fn new(comments: &'c Comments) -> Self {
        let made = BTreeMap::new();
        Self { comments, made }
    }

    /// All of them, by their names.
    pub(super) fn into_map(self) -> Map<String, Value> {
        self.made.into_iter().collect()
    }

    /// Adds one that no descriptor has, and refers to it.
    pub(super) fn add(&mut self, name: &str, schema: Value) -> Value {
        self.made.insert(name.to_owned(), schema);
        reference(name)
    }

    /// A message.
    pub(super) fn message(&mut self, message: &MessageDescriptor, side: Side) -> Value {
        if let Some(schema) = well_known(message) {
            return schema;
        }
        let name = name(message, side);
        if !self.made.contains_key(&name) {
            // It may refer to itself.
            self.made.insert(name.clone(), Value::Null);
            let schema = self.object(message, side, &[]);
            self.made.insert(name.clone(), schema);
        }
        reference(&name)
    }

    /// A message without some of its fields.
    pub(super) fn object(
        &mut self,
        message: &MessageDescriptor,
        side: Side,
        without: &[&FieldDescriptor],
    ) -> Value {
        let exact = exact::of(message);
        let (mut properties, mut required) = (Map::new(), Vec::new());
        for field in message.fields() {
            // Over HTTP the value stands in its place.
            let is_text = exact.as_ref().is_some_and(|exact| exact.json == field);
            if is_text || without.contains(&&field) {
                continue;
            }
            let always = match side {
                Side::Request => is_required(&field),
                Side::Answer => !field.supports_presence(),
            };
            let name = field.json_name().to_owned();
            properties.insert(name.clone(), self.field(&field, side));
            if always {
                required.push(name);
            }
        }
        let file = message.parent_file();
        let mut description = self.comments.at(file.name(), message.path()).to_owned();
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            let names: Vec<String> = oneof
                .fields()
                .map(|field| format!("`{}`", field.json_name()))
                .collect();
            description.push_str(&format!("\n\nAt most one of {}.", names.join(", ")));
        }
        let mut schema =
            json!({"type": "object", "description": description, "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if side == Side::Request {
            schema["additionalProperties"] = json!(false);
        }
        schema
    }

    /// A field of a JSON object.
    pub(super) fn field(&mut self, field: &FieldDescriptor, side: Side) -> Value {
        let kind = field.kind();
        let schema = match kind.as_message() {
            Some(entry) if field.is_map() => {
                let value = self.one(&entry.map_entry_value_field().kind(), side);
                json!({"type": "object", "additionalProperties": value})
            }
            _ if field.is_list() => json!({"type": "array", "items": self.one(&kind, side)}),
            _ => self.single(field, side),
        };
        let may_be_null = side == Side::Request && !is_required(field);
        let schema = if may_be_null { or_null(schema) } else { schema };
        self.described(field, schema)
    }

    /// A field of a path or a query, where everything is text: an item of it, where it is a list.
    pub(super) fn parameter(&mut self, field: &FieldDescriptor) -> Value {
        let mut one = self.single(field, Side::Request);
        // Numbers are text here as all is: one idea of them is enough.
        if one.get("minimum").is_some() {
            one["type"] = json!("integer");
            one.as_object_mut().map(|one| one.remove("pattern"));
        }
        if field.is_list() {
            return json!({"type": "array", "items": one});
        }
        one
    }

    /// What a field's comment says.
    pub(super) fn description(&self, field: &FieldDescriptor) -> &str {
        let file = field.parent_message().parent_file();
        self.comments.at(file.name(), field.path())
    }

    /// One value of a field. A text that has to be there is not empty, for an empty one is not there.
    fn single(&mut self, field: &FieldDescriptor, side: Side) -> Value {
        let mut schema = self.one(&field.kind(), side);
        if field.kind() == Kind::String {
            if side == Side::Request && is_required(field) {
                schema["minLength"] = json!(1);
            }
            if let (Some(format), Value::Object(schema)) = (format(field), &mut schema) {
                schema.insert("anyOf".into(), format);
            }
        }
        schema
    }

    fn described(&self, field: &FieldDescriptor, mut schema: Value) -> Value {
        if let Value::Object(schema) = &mut schema {
            schema.insert("description".into(), self.description(field).into());
        }
        schema
    }

    fn one(&mut self, kind: &Kind, side: Side) -> Value {
        let integer = |format: &str, least: Value, most: Value| {
            let pattern = if least == 0 { NATURAL } else { INTEGER };
            let mut schema = json!({"type": "integer", "format": format});
            schema["minimum"] = least;
            schema["maximum"] = most;
            if side == Side::Request {
                schema["type"] = json!(["integer", "string"]);
                schema["pattern"] = json!(pattern);
            }
            schema
        };
        match kind {
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                integer("int32", i32::MIN.into(), i32::MAX.into())
            }
            Kind::Uint32 | Kind::Fixed32 => integer("uint32", 0.into(), u32::MAX.into()),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                integer("int64", i64::MIN.into(), i64::MAX.into())
            }
            Kind::Uint64 | Kind::Fixed64 => integer("uint64", 0.into(), u64::MAX.into()),
            Kind::Double => number("double"),
            Kind::Float => number("float"),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::String => json!({"type": "string"}),
            Kind::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
            Kind::Message(message) => self.message(message, side),
            Kind::Enum(kind) => self.enumeration(kind, side),
        }
    }

    fn enumeration(&mut self, kind: &EnumDescriptor, side: Side) -> Value {
        let file = kind.parent_file();
        let mut description = self.comments.at(file.name(), kind.path()).to_owned();
        let (mut names, mut numbers) = (Vec::new(), Vec::new());
        for value in kind.values() {
            let comment = self.comments.at(file.name(), value.path());
            description.push_str(&format!("\n\n`{}`: {comment}", value.name()));
            names.push(json!(value.name()));
            numbers.push(json!(value.number()));
        }
        let mut name = short(kind.full_name(), kind.package_name());
        let mut schema = json!({"type": "string", "description": description});
        if side == Side::Request {
            name.push_str("Input");
            names.append(&mut numbers);
            schema["type"] = json!(["string", "integer"]);
        }
        schema["enum"] = Value::Array(names);
        self.add(&name, schema)
    }
}

/// The name of a message's schema. An rpc's request is called so (`buf lint` sees to that), and is nothing else.
fn name(message: &MessageDescriptor, side: Side) -> String {
    let mut name = short(message.full_name(), message.package_name());
    if side == Side::Request && !name.ends_with("Request") {
        name.push_str("Input");
    }
    name
}

fn short(full: &str, package: &str) -> String {
    let name = full.strip_prefix(package).unwrap_or(full);
    name.trim_start_matches('.').to_owned()
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("{COMPONENTS}{name}")})
}

/// Whether a request without it is refused.
pub(super) fn is_required(field: &FieldDescriptor) -> bool {
    let said = option(field, "google.api.field_behavior");
    let said = said.as_ref().and_then(Said::as_list).unwrap_or_default();
    said.contains(&Said::EnumNumber(REQUIRED))
}

/// How a field's text is written, if that is said.
fn format(field: &FieldDescriptor) -> Option<Value> {
    let info = option(field, "google.api.field_info")?;
    let format = info.as_message()?.get_field_by_name("format")?;
    let names: &[&str] = match format.as_enum_number()? {
        1 => &["uuid"],
        2 => &["ipv4"],
        3 => &["ipv6"],
        4 => &["ipv4", "ipv6"],
        _ => return None,
    };
    Some(names.iter().map(|name| json!({"format": name})).collect())
}

/// What an option says of a field, if it says anything.
fn option(field: &FieldDescriptor, name: &str) -> Option<Said> {
    let pool = field.parent_message().parent_pool();
    let extension = pool.get_extension_by_name(name)?;
    let options = field.options();
    let is_said = options.has_extension(&extension);
    is_said.then(|| options.get_extension(&extension).into_owned())
}

fn number(format: &str) -> Value {
    let number = json!({"type": "number", "format": format});
    json!({"anyOf": [number, {"enum": ["NaN", "Infinity", "-Infinity"]}]})
}

/// The same, or null, which says nothing.
fn or_null(mut schema: Value) -> Value {
    // Any JSON is null as well.
    if schema.as_object().is_some_and(Map::is_empty) {
        return schema;
    }
    match schema.get_mut("type") {
        Some(Value::Array(types)) => types.push("null".into()),
        Some(one) => *one = json!([one.take(), "null"]),
        None => schema = json!({"anyOf": [schema, {"type": "null"}]}),
    }
    schema
}

/// Messages that have a form of their own in JSON.
fn well_known(message: &MessageDescriptor) -> Option<Value> {
    let wrapped = |schema: Value| Some(or_null(schema));
    let text = json!({"type": "string"});
    let integer = json!({"type": ["integer", "string"], "pattern": INTEGER});
    match message.full_name().strip_prefix("google.protobuf.")? {
        "Value" => Some(json!({})),
        "Struct" | "Empty" => Some(json!({"type": "object"})),
        "ListValue" => Some(json!({"type": "array"})),
        "Timestamp" => Some(json!({"type": "string", "format": "date-time"})),
        "Duration" => Some(json!({"type": "string", "pattern": DURATION})),
        "FieldMask" => Some(text),
        "Any" => Some(json!({"type": "object", "properties": {"@type": text}})),
        "BoolValue" => wrapped(json!({"type": "boolean"})),
        "StringValue" => wrapped(text),
        "BytesValue" => wrapped(json!({"type": "string", "contentEncoding": "base64"})),
        "DoubleValue" => wrapped(number("double")),
        "FloatValue" => wrapped(number("float")),
        "Int32Value" | "UInt32Value" | "Int64Value" | "UInt64Value" => wrapped(integer),
        _ => None,
    }
}
