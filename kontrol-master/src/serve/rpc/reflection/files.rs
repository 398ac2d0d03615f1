//! Descriptors by what they hold.

use prost_reflect::{
    DescriptorError, DescriptorPool, EnumDescriptor, ExtensionDescriptor, MessageDescriptor,
};
use std::collections::HashMap;

/// The files of descriptor sets.
#[derive(Debug)]
pub(super) struct Files {
    pool: DescriptorPool,
    /// The file of each symbol, by its index.
    symbols: HashMap<String, usize>,
}

impl Files {
    pub(super) fn new<'s>(
        sets: impl IntoIterator<Item = &'s [u8]>,
    ) -> Result<Self, DescriptorError> {
        let mut pool = DescriptorPool::new();
        for set in sets {
            pool.decode_file_descriptor_set(set)?;
        }
        let mut symbols = HashMap::new();
        for file in pool.files() {
            let mut names = Vec::new();
            file.messages()
                .for_each(|message| of_message(&message, &mut names));
            file.enums().for_each(|kind| of_enum(&kind, &mut names));
            file.extensions()
                .for_each(|extension| names.push(extension.full_name().to_owned()));
            for service in file.services() {
                names.push(service.full_name().to_owned());
                names.extend(service.methods().map(|rpc| rpc.full_name().to_owned()));
            }
            symbols.extend(names.into_iter().map(|name| (name, file.index())));
        }
        Ok(Self { pool, symbols })
    }

    /// A file, encoded with its comments and options.
    pub(super) fn by_name(&self, name: &str) -> Option<Vec<u8>> {
        Some(self.pool.get_file_by_name(name)?.encode_to_vec())
    }

    /// The file that declares a symbol: anything that has a full name.
    pub(super) fn of_symbol(&self, symbol: &str) -> Option<Vec<u8>> {
        let index = *self.symbols.get(symbol)?;
        Some(self.pool.files().nth(index)?.encode_to_vec())
    }

    /// The file that declares an extension of a message.
    pub(super) fn of_extension(&self, message: &str, number: i32) -> Option<Vec<u8>> {
        let message = self.pool.get_message_by_name(message)?;
        let extension = message.get_extension(u32::try_from(number).ok()?)?;
        Some(extension.parent_file().encode_to_vec())
    }

    /// The numbers of a message's extensions.
    pub(super) fn extensions_of(&self, message: &str) -> Option<Vec<i32>> {
        let message = self.pool.get_message_by_name(message)?;
        let number = |extension: ExtensionDescriptor| i32::try_from(extension.number()).ok();
        Some(message.extensions().filter_map(number).collect())
    }

    /// The names of the services.
    pub(super) fn services(&self) -> impl Iterator<Item = String> {
        let services = self.pool.services();
        services.map(|service| service.full_name().to_owned())
    }
}

fn of_message(message: &MessageDescriptor, names: &mut Vec<String>) {
    names.push(message.full_name().to_owned());
    names.extend(message.fields().map(|field| field.full_name().to_owned()));
    names.extend(message.oneofs().map(|oneof| oneof.full_name().to_owned()));
    names.extend(
        message
            .child_extensions()
            .map(|one| one.full_name().to_owned()),
    );
    message
        .child_messages()
        .for_each(|child| of_message(&child, names));
    message
        .child_enums()
        .for_each(|child| of_enum(&child, names));
}

/// The values of an enum are its siblings, not its children: that is how C++ has them, and protobuf with it.
fn of_enum(kind: &EnumDescriptor, names: &mut Vec<String>) {
    names.push(kind.full_name().to_owned());
    names.extend(kind.values().map(|value| value.full_name().to_owned()));
}
