//! Times and durations as protobuf can say them, in JSON as well. What stands in a store may be beyond that, where somebody
//! edited it: one such record must not keep all the others from being told.

use std::time::{Duration, SystemTime};

/// The last millisecond that a `google.protobuf.Timestamp` has: the end of the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;
/// The longest `google.protobuf.Duration`: ten thousand years.
const LONGEST: Duration = Duration::from_secs(315_576_000_000);

/// So many milliseconds since 1970, or the end of the year 9999.
pub fn at(ms: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(LAST_MS))
}

/// A duration; none that is longer than protobuf can hold.
pub fn span(duration: Duration) -> Option<prost_types::Duration> {
    let fits = duration <= LONGEST;
    duration.try_into().ok().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontrol_proto::{FILE_DESCRIPTOR_SET, json::write, v1::Action, v1::GetActionResponse};
    use prost::Message;
    use prost_reflect::DescriptorPool;

    #[test]
    fn whatever_stands_in_a_record_has_its_json() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).unwrap();
        let message = pool.get_message_by_name("kontrol.v1.GetActionResponse");
        for ms in [0, LAST_MS, u64::MAX] {
            let action = Action {
                created: Some(at(ms).into()),
                timeout: span(Duration::from_millis(ms)),
                ..Action::default()
            };
            let answer = GetActionResponse {
                action: Some(action),
            };
            let text = write(message.as_ref().unwrap(), &answer.encode_to_vec());
            let text = String::from_utf8(text.unwrap()).unwrap();
            let year = if ms == 0 {
                "1970-"
            } else {
                "9999-12-31T23:59:59"
            };
            assert!(text.contains(year), "{text}");
        }
        assert_eq!(span(LONGEST).unwrap().seconds, 315_576_000_000);
        assert_eq!(span(LONGEST + Duration::from_secs(1)), None);
    }
}
