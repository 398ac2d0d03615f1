use super::*;
use kontrol_proto::FILE_DESCRIPTOR_SET;
use prost_types::FileDescriptorProto;
use tonic_reflection::pb::v1::ExtensionRequest;

fn reflection() -> Reflection {
    Reflection::new(
        &[FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET],
        CancellationToken::new(),
    )
    .unwrap()
}

fn ask(wanted: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest {
        host: "h".to_owned(),
        message_request: Some(wanted),
    };
    let answer = reflection().answer(request.clone());
    assert_eq!(
        (answer.valid_host.as_str(), answer.original_request),
        ("h", Some(request))
    );
    answer.message_response.unwrap()
}

/// The file that an answer holds; or the code of the error.
fn file(wanted: MessageRequest) -> Result<FileDescriptorProto, i32> {
    match ask(wanted) {
        MessageResponse::FileDescriptorResponse(answer) => {
            assert_eq!(answer.file_descriptor_proto.len(), 1);
            Ok(FileDescriptorProto::decode(answer.file_descriptor_proto[0].as_slice()).unwrap())
        }
        MessageResponse::ErrorResponse(error) => {
            assert!(error.error_message.starts_with("there is no "));
            Err(error.error_code)
        }
        other @ (MessageResponse::AllExtensionNumbersResponse(_)
        | MessageResponse::ListServicesResponse(_)) => panic!("{other:?}"),
    }
}

fn name_of(wanted: MessageRequest) -> Result<String, i32> {
    file(wanted).map(|file| file.name().to_owned())
}

#[test]
fn everything_with_a_full_name_is_found() {
    for (symbol, name) in [
        ("kontrol.v1.EnsembleService", "kontrol/v1/ensemble.proto"),
        (
            "kontrol.v1.EnsembleService.Watch",
            "kontrol/v1/ensemble.proto",
        ),
        ("kontrol.v1.Pod", "kontrol/v1/ensemble.proto"),
        ("kontrol.v1.Pod.seq", "kontrol/v1/ensemble.proto"),
        (
            "kontrol.v1.WatchResponse.Snapshot",
            "kontrol/v1/ensemble.proto",
        ),
        (
            "kontrol.v1.WatchResponse.event",
            "kontrol/v1/ensemble.proto",
        ),
        ("kontrol.v1.Outcome", "kontrol/v1/action.proto"),
        ("kontrol.v1.OUTCOME_LOST", "kontrol/v1/action.proto"),
        ("google.protobuf.NULL_VALUE", "google/protobuf/struct.proto"),
        (
            "google.protobuf.FieldDescriptorProto.TYPE_STRING",
            "google/protobuf/descriptor.proto",
        ),
        ("google.api.http", "google/api/annotations.proto"),
        ("grpc.health.v1.Health", "grpc/health/v1/health.proto"),
        (
            "grpc.health.v1.HealthCheckResponse.SERVING",
            "grpc/health/v1/health.proto",
        ),
    ] {
        let found = name_of(MessageRequest::FileContainingSymbol(symbol.to_owned()));
        assert!(
            found
                .as_ref()
                .is_ok_and(|found| name.ends_with(found.as_str())),
            "{symbol}: {found:?}"
        );
    }
    for unknown in [
        "",
        "kontrol.v1",
        "no.Such",
        "kontrol.v1.Outcome.OUTCOME_LOST",
    ] {
        let wanted = MessageRequest::FileContainingSymbol(unknown.to_owned());
        assert_eq!(name_of(wanted), Err(5), "{unknown}");
    }
}

#[test]
fn extensions_are_found_by_their_number() {
    let extension = |containing_type: &str, extension_number| {
        name_of(MessageRequest::FileContainingExtension(ExtensionRequest {
            containing_type: containing_type.to_owned(),
            extension_number,
        }))
    };
    let options = "google.protobuf.MethodOptions";
    let annotations = Ok("google/api/annotations.proto".to_owned());
    assert_eq!(extension(options, 72_295_728), annotations);
    for (message, number) in [(options, 1), (options, -1), ("no.Such", 1)] {
        assert_eq!(extension(message, number), Err(5));
    }
    let all = |name: &str| ask(MessageRequest::AllExtensionNumbersOfType(name.to_owned()));
    let MessageResponse::AllExtensionNumbersResponse(numbers) = all(options) else {
        panic!("no numbers");
    };
    assert_eq!(
        (numbers.base_type_name.as_str(), numbers.extension_number),
        (options, vec![72_295_728])
    );
    assert!(matches!(
        all("no.Such"),
        MessageResponse::ErrorResponse(error) if error.error_code == 5
    ));
}

#[test]
fn files_keep_their_comments_and_options_and_lead_to_their_imports() {
    let by_name = |name: &str| file(MessageRequest::FileByFilename(name.to_owned()));
    let mut names = vec!["kontrol/v1/ensemble.proto".to_owned()];
    let mut seen = Vec::new();
    while let Some(name) = names.pop() {
        let file = by_name(&name).unwrap();
        names.extend(
            file.dependency
                .iter()
                .filter(|one| !seen.contains(*one))
                .cloned(),
        );
        seen.push(name);
    }
    assert!(
        seen.contains(&"google/protobuf/descriptor.proto".to_owned()),
        "{seen:?}"
    );
    let ensemble = by_name("kontrol/v1/ensemble.proto").unwrap();
    assert!(ensemble.source_code_info.unwrap().location.len() > 100);
    assert_eq!(by_name("no.proto"), Err(5));
    // prost drops options that it doesn't know, so the bytes are looked at.
    let raw = reflection()
        .files
        .by_name("kontrol/v1/ensemble.proto")
        .unwrap();
    let route = b"/v1/pods/{key}:explain";
    assert!(raw.windows(route.len()).any(|bytes| bytes == route));
}

#[test]
fn the_services_are_listed_reflection_included() {
    let MessageResponse::ListServicesResponse(list) =
        ask(MessageRequest::ListServices(String::new()))
    else {
        panic!("no list");
    };
    let names: Vec<String> = list.service.into_iter().map(|one| one.name).collect();
    for name in [
        "kontrol.v1.KeepaliveService",
        "kontrol.v1.EnsembleService",
        "kontrol.v1.ActionService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        assert!(names.iter().any(|one| one == name), "{name}: {names:?}");
    }
}

#[test]
fn older_clients_get_the_same() {
    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "no.Such".to_owned(),
            ),
        ),
    };
    let answer = reflection().answer(translate(&request).unwrap());
    let answer: v1alpha::ServerReflectionResponse = translate(&answer).unwrap();
    assert_eq!(answer.original_request, Some(request));
    assert!(matches!(
        answer.message_response,
        Some(v1alpha::server_reflection_response::MessageResponse::ErrorResponse(error))
            if error.error_code == 5
    ));
}
