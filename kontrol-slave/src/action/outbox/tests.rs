use super::*;
use kontrol_proto::v1::Outcome;
use proptest::prelude::*;

fn outbox(window: u32, max_output: u64) -> Outbox {
    Outbox::new("id", window, max_output)
}

fn write(outbox: &mut Outbox, stream: Stream, text: &'static str) {
    outbox.write(stream, Bytes::from_static(text.as_bytes()));
}

/// What comes out, in short.
fn drain(outbox: &mut Outbox) -> Vec<String> {
    let events = std::iter::from_fn(|| outbox.next());
    events
        .map(|event| match event {
            Event::Started(_) => "started".to_owned(),
            Event::Output(output) => format!(
                "{}{}:{}{}",
                output.stream,
                output.offset,
                str::from_utf8(&output.data).unwrap(),
                if output.truncated { "…" } else { "" }
            ),
            Event::Finished(_) => "finished".to_owned(),
            Event::Hello(_) | Event::Unknown(_) => panic!("{event:?}"),
        })
        .collect()
}

#[test]
fn output_goes_as_it_comes_and_the_end_behind_it() {
    let mut outbox = outbox(100, 100);
    outbox.start();
    write(&mut outbox, Stream::Stdout, "ab");
    write(&mut outbox, Stream::Stderr, "x");
    write(&mut outbox, Stream::Stdout, "c");
    outbox.end(ActionResult::default());
    assert_eq!(
        drain(&mut outbox),
        ["started", "10:ab", "20:x", "12:c", "finished"]
    );
    assert!(outbox.is_told() && !outbox.has_next());
}

#[test]
fn what_was_not_taken_is_told_again_and_only_when_asked() {
    let mut outbox = outbox(100, 100);
    outbox.start();
    for text in ["ab", "cd", "ef"] {
        write(&mut outbox, Stream::Stdout, text);
    }
    drain(&mut outbox);
    outbox.credit(3, 0);
    outbox.broke();
    write(&mut outbox, Stream::Stdout, "gh");
    assert_eq!(drain(&mut outbox), [""; 0]);
    outbox.resume(3, 0);
    assert_eq!(drain(&mut outbox), ["started", "13:d", "14:ef", "16:gh"]);
}

#[test]
fn a_full_window_leaves_no_room_until_something_is_taken() {
    let mut outbox = outbox(4, 100);
    assert_eq!(outbox.room(Stream::Stdout), 4);
    write(&mut outbox, Stream::Stdout, "abcd");
    assert_eq!(
        (outbox.room(Stream::Stdout), outbox.room(Stream::Stderr)),
        (0, 0)
    );
    drain(&mut outbox);
    outbox.credit(3, 0);
    assert_eq!(outbox.room(Stream::Stderr), 3);
    for _ in 0..PIECES {
        write(&mut outbox, Stream::Stderr, "");
    }
    assert_eq!(outbox.room(Stream::Stdout), 0, "too many small pieces");
}

#[test]
fn what_is_too_much_is_marked_once_counted_and_takes_no_room() {
    let mut outbox = outbox(100, 3);
    write(&mut outbox, Stream::Stdout, "abc");
    write(&mut outbox, Stream::Stdout, "d");
    write(&mut outbox, Stream::Stdout, "ef");
    outbox.end(ActionResult::default());
    assert_eq!(drain(&mut outbox), ["10:abc", "13:…", "finished"]);
    let result = outbox.ended.clone().unwrap();
    assert_eq!((result.stdout_bytes, result.truncated), (6, true));
    assert_eq!(outbox.room(Stream::Stdout), PIECE_BYTES);
    outbox.resume(3, 0);
    assert_eq!(
        drain(&mut outbox),
        ["13:…", "finished"],
        "the mark is told again"
    );
}

#[test]
fn what_nobody_takes_is_thrown_away_behind_a_mark_where_the_window_is_full() {
    let mut outbox = outbox(4, 100);
    write(&mut outbox, Stream::Stdout, "abc");
    outbox.discard();
    assert_eq!(outbox.room(Stream::Stdout), PIECE_BYTES);
    write(&mut outbox, Stream::Stdout, "def");
    write(&mut outbox, Stream::Stdout, "g");
    write(&mut outbox, Stream::Stderr, "x");
    outbox.end(ActionResult::default());
    assert_eq!(drain(&mut outbox), ["10:abc", "13:d…", "20:…", "finished"]);
    let result = outbox.ended.unwrap();
    let bytes = (result.stdout_bytes, result.stderr_bytes);
    assert_eq!((bytes, result.truncated), ((7, 1), true));
}

#[test]
fn what_a_command_leaves_in_its_pipes_waits_beyond_the_window_but_is_not_sent_beyond_it() {
    let mut outbox = outbox(4, 100);
    write(&mut outbox, Stream::Stdout, "abcd");
    outbox.drain();
    assert_eq!(outbox.room(Stream::Stdout), 4);
    write(&mut outbox, Stream::Stdout, "efgh");
    write(&mut outbox, Stream::Stderr, "x");
    outbox.end(ActionResult::default());
    assert_eq!(drain(&mut outbox), ["10:abcd"]);
    outbox.credit(4, 0);
    assert_eq!(drain(&mut outbox), ["14:efgh"]);
    outbox.credit(8, 0);
    assert_eq!(drain(&mut outbox), ["20:x", "finished"]);
    assert!(!outbox.ended.unwrap().truncated);
}

#[test]
fn what_the_master_owes_no_credit_for_holds_nothing_up() {
    let mut outbox = outbox(4096, 100_000);
    for bytes in [3500, 596] {
        outbox.write(Stream::Stdout, vec![0; bytes].into());
    }
    while outbox.next().is_some() {}
    outbox.drain();
    outbox.write(Stream::Stdout, vec![0; 4096].into());
    outbox.end(ActionResult::default());
    // Of the 596 bytes that are left it gives none before there are 1024.
    outbox.credit(3500, 0);
    assert!(matches!(outbox.next(), Some(Event::Output(_))));
    assert!(matches!(outbox.next(), Some(Event::Finished(_))));
}

#[test]
fn no_more_pieces_are_sent_than_a_master_has_room_for() {
    let mut outbox = outbox(100, 100);
    outbox.drain();
    for _ in 0..2 * PIECES {
        write(&mut outbox, Stream::Stdout, "x");
    }
    outbox.end(ActionResult::default());
    assert_eq!(drain(&mut outbox).len(), PIECES);
    outbox.credit(8, 0);
    assert_eq!(drain(&mut outbox).len(), 8);
    outbox.credit(40, 0);
    assert_eq!(drain(&mut outbox).len(), PIECES - 8 + 1, "the end as well");
}

#[test]
fn what_is_let_go_is_told_of_unless_it_was_sent() {
    for (sends, credit, truncated) in [(1, 0, true), (2, 0, false), (0, 0, true)] {
        let mut outbox = outbox(100, 100);
        write(&mut outbox, Stream::Stdout, "abc");
        write(&mut outbox, Stream::Stderr, "d");
        outbox.end(ActionResult::default());
        for _ in 0..sends {
            assert!(matches!(outbox.next(), Some(Event::Output(_))));
        }
        outbox.shed();
        assert_eq!(outbox.waiting(), 0);
        outbox.credit(credit, 0);
        let Some(Event::Finished(finished)) = outbox.next() else {
            panic!("an output")
        };
        let result = finished.result.unwrap();
        assert_eq!((result.stdout_bytes, result.truncated), (3, truncated));
        outbox.resume(0, 0);
        assert!(
            matches!(outbox.next(), Some(Event::Finished(Finished { result: Some(result), .. })) if result.truncated)
        );
    }
}

#[test]
fn the_first_end_counts() {
    let mut outbox = outbox(1, 1);
    for outcome in [Outcome::TimedOut, Outcome::Exited] {
        outbox.end(ActionResult {
            outcome: outcome.into(),
            ..ActionResult::default()
        });
    }
    assert_eq!(outbox.ended.unwrap().outcome(), Outcome::TimedOut);
}

proptest! {
    /// Whatever breaks when: a receiver that drops what it had sees both streams whole and in order.
    #[test]
    fn the_receiver_sees_everything_once(
        steps in prop::collection::vec((0_u8..7, 1_usize..6), 0..200),
        window in 1_u32..20,
    ) {
        let text: Vec<u8> = (0..=255).collect();
        let mut outbox = outbox(window, 1000);
        outbox.start();
        let mut written = [0_usize; 2];
        let mut received = [Vec::new(), Vec::new()];
        let mut taken = [0_u64; 2];
        let index = |stream: Stream| usize::from(stream == Stream::Stderr);
        let receive = |outbox: &mut Outbox, received: &mut [Vec<u8>; 2]| {
            if let Some(Event::Output(output)) = outbox.next() {
                let received = &mut received[index(output.stream())];
                let known = received.len() - usize::try_from(output.offset).unwrap();
                received.extend(output.data.iter().skip(known));
            }
        };
        for (what, size) in steps {
            match what {
                0 | 1 => {
                    let stream = if what == 0 { Stream::Stdout } else { Stream::Stderr };
                    let at = written[index(stream)];
                    let size = size.min(outbox.room(stream)).min(text.len() - at);
                    if size > 0 {
                        outbox.write(stream, Bytes::copy_from_slice(&text[at..at + size]));
                        written[index(stream)] += size;
                    }
                    prop_assert!(outbox.waiting <= u64::from(window) + outbox.beyond);
                }
                6 => outbox.drain(),
                2 => receive(&mut outbox, &mut received),
                3 => {
                    let both = &mut taken;
                    for (taken, received) in both.iter_mut().zip(&received) {
                        *taken = (*taken + size as u64).min(received.len() as u64);
                    }
                    outbox.credit(taken[0], taken[1]);
                }
                4 => outbox.broke(),
                _ => outbox.resume(taken[0], taken[1]),
            }
        }
        outbox.resume(taken[0], taken[1]);
        while outbox.has_next() {
            receive(&mut outbox, &mut received);
            outbox.credit(received[0].len() as u64, received[1].len() as u64);
        }
        for (received, written) in received.iter().zip(written) {
            prop_assert_eq!(&received[..], &text[..written]);
        }
    }
}
