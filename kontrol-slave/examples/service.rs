//! A service that reports itself, in five lines of `main`, and answers the actions of its masters:
//!
//! ```text
//! cargo run -p kontrol-slave --example service -- http://127.0.0.1:8000 &
//! kontrol-master pods
//! kontrol-master exec --all -- greet you
//! ```

use kontrol_slave::{ActionCommand, ActionOutput, ActionReply, ActionRequest, Refused, Slave};
use serde_json::json;
use std::{env, error::Error, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let masters = env::args().nth(1).ok_or("say where the masters are")?;
    let mut terminated = signal(SignalKind::terminate())?;

    // Whoever reaches the masters of an example may have it act.
    let pod = Slave::builder(masters)
        .app("shop")
        .role("web")
        .insecure(true);
    let pod = pod.handler(answer).start()?;
    pod.set_payload(json!({"load": 0.4}))?;
    // Here the service does what it is there for.
    terminated.recv().await;
    pod.stop().await;
    Ok(())
}

/// Carries an action out, and says what came of it.
async fn answer(request: ActionRequest, mut output: ActionOutput) -> ActionReply {
    let ActionCommand::Argv(words) = &request.command else {
        return Err(Refused::new("this service runs no shell"));
    };
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["greet", name] => {
            output.stdout.print(format!("hello {name}\n")).await;
            Ok(0)
        }
        // Until it is cancelled, or times out.
        ["tick"] => {
            let ticks = async {
                loop {
                    output.stdout.print("tick\n").await;
                    sleep(Duration::from_millis(100)).await;
                }
            };
            request
                .cancellation
                .run_until_cancelled(ticks)
                .await
                .unwrap_or(Ok(3))
        }
        _ => {
            output.stderr.print("usage: greet NAME | tick\n").await;
            Ok(2)
        }
    }
}
