//! Server reflection, v1 and v1alpha, from the same descriptors as the gateway.
//!
//! tonic-reflection answers neither enum values nor extensions, and ends the stream at the first symbol that it doesn't know, where
//! the protocol has an `error_response`. Its messages are used here, its service is not.

mod files;
#[cfg(test)]
mod tests;

use super::stream::until_stop;
use files::Files;
use futures::{Stream, StreamExt};
use prost::Message;
use std::{pin::Pin, sync::Arc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::{
    v1::{
        ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
        ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
        server_reflection_server::{ServerReflection, ServerReflectionServer},
    },
    v1alpha::{
        self, server_reflection_server::ServerReflection as ServerReflectionAlpha,
        server_reflection_server::ServerReflectionServer as ServerReflectionAlphaServer,
    },
};

/// Reflection of these descriptor sets and of itself.
#[derive(Debug, Clone)]
pub(super) struct Reflection {
    files: Arc<Files>,
    token: CancellationToken,
}

impl Reflection {
    pub(super) fn new(
        sets: &[&[u8]],
        token: CancellationToken,
    ) -> Result<Self, prost_reflect::DescriptorError> {
        let own = [
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let files = Files::new(sets.iter().copied().chain(own))?;
        Ok(Self {
            files: Arc::new(files),
            token,
        })
    }

    /// The service, and the one of older clients.
    pub(super) fn services(
        &self,
    ) -> (
        ServerReflectionServer<Self>,
        ServerReflectionAlphaServer<Self>,
    ) {
        (
            ServerReflectionServer::new(self.clone()),
            ServerReflectionAlphaServer::new(self.clone()),
        )
    }

    fn answer(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match request.message_request.as_ref() {
            None => Err((Code::InvalidArgument, "asks for nothing".to_owned())),
            Some(wanted) => self
                .look_up(wanted)
                .ok_or_else(|| (Code::NotFound, format!("there is no {}", described(wanted)))),
        };
        let answer = answer.unwrap_or_else(|(code, message)| {
            MessageResponse::ErrorResponse(ErrorResponse {
                error_code: code.into(),
                error_message: message,
            })
        });
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer),
        }
    }

    fn look_up(&self, wanted: &MessageRequest) -> Option<MessageResponse> {
        let files = &self.files;
        let file = match wanted {
            MessageRequest::FileByFilename(name) => files.by_name(name),
            MessageRequest::FileContainingSymbol(symbol) => files.of_symbol(symbol),
            MessageRequest::FileContainingExtension(extension) => {
                files.of_extension(&extension.containing_type, extension.extension_number)
            }
            MessageRequest::AllExtensionNumbersOfType(name) => {
                return Some(MessageResponse::AllExtensionNumbersResponse(
                    ExtensionNumberResponse {
                        base_type_name: name.clone(),
                        extension_number: files.extensions_of(name)?,
                    },
                ));
            }
            MessageRequest::ListServices(_) => {
                let service = files.services().map(|name| ServiceResponse { name });
                return Some(MessageResponse::ListServicesResponse(ListServiceResponse {
                    service: service.collect(),
                }));
            }
        };
        Some(MessageResponse::FileDescriptorResponse(
            FileDescriptorResponse {
                file_descriptor_proto: vec![file?],
            },
        ))
    }
}

/// What was asked for, for a person.
fn described(wanted: &MessageRequest) -> String {
    match wanted {
        MessageRequest::FileByFilename(name) => format!("file {name:?}"),
        MessageRequest::FileContainingSymbol(symbol) => format!("symbol {symbol:?}"),
        MessageRequest::FileContainingExtension(extension) => format!(
            "extension {} of {:?}",
            extension.extension_number, extension.containing_type
        ),
        MessageRequest::AllExtensionNumbersOfType(name) => format!("message {name:?}"),
        MessageRequest::ListServices(_) => "service".to_owned(),
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = Answers<ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        requests: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let reflection = self.clone();
        let answers = requests
            .into_inner()
            .map(move |request| request.map(|request| reflection.answer(request)));
        Ok(Response::new(Box::pin(until_stop(
            answers,
            self.token.clone(),
        ))))
    }
}

#[tonic::async_trait]
impl ServerReflectionAlpha for Reflection {
    type ServerReflectionInfoStream = Answers<v1alpha::ServerReflectionResponse>;

    async fn server_reflection_info(
        &self,
        requests: Request<Streaming<v1alpha::ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let reflection = self.clone();
        let answers = requests
            .into_inner()
            .map(move |request| translate(&reflection.answer(translate(&request?)?)));
        Ok(Response::new(Box::pin(until_stop(
            answers,
            self.token.clone(),
        ))))
    }
}

/// A message of one version as the other's: but for the name of the package they are the same.
fn translate<T: Message + Default>(message: &impl Message) -> Result<T, Status> {
    T::decode(message.encode_to_vec().as_slice())
        .map_err(|error| Status::internal(error.to_string()))
}
