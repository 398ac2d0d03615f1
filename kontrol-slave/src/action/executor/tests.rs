//! What becomes of an action whose own task fails.

use super::*;
use crate::identity::Labels;

#[tokio::test]
async fn an_action_whose_task_panics_is_told_as_lost_and_never_runs_again() {
    let (reports, mut told) = mpsc::channel(1);
    let (_channel, channel) = watch::channel(Some(reports));
    let (_identity, identity) = watch::channel(Identity {
        app: "web".into(),
        id: "web-1".into(),
        ip: Some([127, 0, 0, 1].into()),
        role: "front".into(),
        labels: Labels::new(),
        annotations: Labels::new(),
        node: String::new(),
    });
    let (executor, mut task) = Executor::new(Some(Settings::default()), identity, vec![channel]);
    let (words, _words) = told::channel();
    let bug = task.tasks.spawn(async { panic!("on purpose") });
    task.ids.insert(bug.id(), (0, "a7".into()));
    task.tiers[0].actions.insert("a7".into(), words);

    let token = CancellationToken::new();
    let run = tokio::spawn(task.run(token.clone()));
    let lost = |event: Option<Event>| match event {
        Some(Event::Finished(finished)) => {
            assert_eq!(finished.action_id, "a7");
            finished.result.unwrap().outcome() == Outcome::Lost
        }
        other => panic!("{other:?}"),
    };
    let first = timeout(Duration::from_secs(20), told.recv()).await;
    assert!(lost(first.unwrap().unwrap().event), "it is told unasked");
    let again = Order::Run(Run {
        action_id: "a7".into(),
        ..Run::default()
    });
    assert!(lost(executor.order((0, true), "k", again).await));
    token.cancel();
    run.await.unwrap();
}
