//! What must hold of what callers and slaves say of actions, whatever it is.

use super::{request::Request, wire};
use kontrol_core::{
    fuzz::said,
    model::action::{ActionId, Counts, Head, MAX_RECORD_BYTES, Record, ResultRecord, State},
    rollout::Said,
    strict::{self, Numbers},
};
use kontrol_proto::{
    FILE_DESCRIPTOR_SET,
    json::write,
    v1::{AttachRequest, Command, DispatchRequest, Selector},
};
use prost::Message;
use prost_reflect::DescriptorPool;
use std::{sync::LazyLock, time::Duration};

static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("our own descriptors"));

/// A `DispatchRequest`: what is taken is within its limits, and taken again as it is.
pub fn dispatch(data: &[u8]) {
    let Ok(message) = DispatchRequest::decode(data) else {
        return;
    };
    let request = match Request::new(message) {
        Ok(request) => request,
        Err(invalid) => return said(invalid),
    };
    assert!(!request.timeout.is_zero() && request.timeout <= Duration::from_secs(7 * 24 * 3600));
    assert!(request.max_output > 0 && request.concurrency > 0);
    let Command {
        argv,
        shell,
        input,
        input_json,
        ..
    } = &request.command;
    assert!(argv.is_empty() != shell.is_empty() && input.is_none());
    if !input_json.is_empty() {
        let text = strict::exact(input_json, Numbers::Exact).expect("the input is JSON");
        assert_eq!(text.as_bytes(), &input_json[..]);
    }
    let again = Request::new(DispatchRequest {
        selector: Some(Selector {
            keys: request.selection.keys.clone(),
            ids: request.selection.ids.clone(),
            roles: request.selection.roles.clone(),
            labels: request.labels.to_string(),
            all: request.selection.all,
        }),
        command: Some(request.command.clone()),
        timeout: request.timeout.try_into().ok(),
        max_output: request.max_output,
        concurrency: u32::try_from(request.concurrency).unwrap_or_default(),
        max_failures: request.max_failures,
        detach: request.detach,
    });
    // Shown as it is meant, a selector can be longer than it was.
    let Ok(again) = again else {
        return;
    };
    assert_eq!(again.labels, request.labels);
    assert_eq!(again.keys, request.keys);
    assert_eq!(again.command, request.command);
    assert_eq!(
        (again.timeout, again.max_output, again.concurrency),
        (request.timeout, request.max_output, request.concurrency)
    );
    kept(&request);
}

/// The history can keep it, and tell it.
fn kept(request: &Request) {
    let head = Head {
        id: ActionId::new(1, 2),
        state: State::Running,
        dispatcher: "d".into(),
        master: "m".into(),
        instance: "00".into(),
        lease: "1f".into(),
        created_ms: 1,
        finished_ms: None,
        timeout_ms: 1,
        detach: request.detach,
        selector: request.selection.clone(),
        command: request.record(),
        summary: Counts::default(),
    };
    told(&head);
    let results = Vec::new();
    let bytes = Record { head, results }.encode();
    assert!(bytes.len() <= MAX_RECORD_BYTES, "{} bytes", bytes.len());
    assert!(serde_json::from_slice::<Record>(&bytes).is_ok());
}

/// An action of the history has a message, which has its JSON.
pub(crate) fn told(head: &Head) {
    let action = wire::head(head);
    let bytes = action.encode_to_vec();
    let descriptor = POOL.get_message_by_name("kontrol.v1.Action");
    let text = write(&descriptor.expect("it is there"), &bytes);
    assert!(text.is_ok(), "{text:?}");
}

/// An `AttachRequest`: what a slave says is taken or passed over, and what is kept of it is bounded.
pub fn slave_event(data: &[u8]) {
    let Ok(message) = AttachRequest::decode(data) else {
        return;
    };
    let Some(event) = message.event else {
        return;
    };
    let id = wire::action_of(&event);
    assert!(id.is_none_or(|id| id.as_str().parse() == Ok(id)));
    match wire::said(event) {
        Some(Said::Finished(ended)) => {
            assert!(ended.error.chars().count() <= 1024);
            let mut record = ResultRecord::default();
            record.end(&ended);
            let bytes = serde_json::to_vec(&record).expect("a record becomes JSON");
            let record: ResultRecord = serde_json::from_slice(&bytes).expect("and back");
            let again = record.ended().expect("it has ended");
            assert_eq!(again.duration.as_millis(), ended.duration.as_millis());
            assert_eq!((again.outcome, &again.error), (ended.outcome, &ended.error));
        }
        Some(Said::Output { data: output, .. }) => assert!(output.len() <= data.len()),
        Some(Said::Started | Said::Unknown) | None => {}
    }
}
