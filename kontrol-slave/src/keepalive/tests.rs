//! What a refusal means to a slave.

use super::*;

#[test]
fn a_master_that_is_busy_or_no_master_is_left_and_one_that_says_no_is_believed() {
    for code in [
        Code::Unavailable,
        Code::Unimplemented,
        Code::Internal,
        Code::ResourceExhausted,
    ] {
        let setback = Setback::from(Status::new(code, "x"));
        assert!(matches!(setback, Setback::Failed(_)), "{code:?}");
    }
    let setback = Setback::from(Status::invalid_argument("ip is required"));
    assert_eq!(setback, Setback::Unfit("ip is required".into()));
    let setback = Setback::from(Status::failed_precondition("another took its place"));
    assert_eq!(setback, Setback::Refused("another took its place".into()));
}

#[test]
fn a_connection_that_broke_is_no_refusal_whatever_its_code() {
    let mut status = Status::permission_denied("h2");
    status.set_source(Arc::new(std::io::Error::other("reset")));
    let setback = Setback::from(status);
    assert_eq!(
        setback,
        Setback::Failed("the connection broke: reset".into())
    );
}
