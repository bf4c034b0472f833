//! The engine's thread: queue, cancelling, stopping, failures.

use super::failures::panic_in;
use super::{alone, drawn, fixed, model};
use crate::error::LlmError;
use crate::generate::{
    EngineConfig, FinishReason, Generated, GenerationConfig, OnUpdate, Request, Service,
    SubmitError, TokenConstraint, TokenMask, Update,
};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn service(at_once: usize, max_waiting: usize) -> Service {
    let config = EngineConfig {
        at_once,
        prefix_cache_bytes: 1 << 30,
        ..EngineConfig::default()
    };
    Service::start(Arc::new(model()), config, max_waiting).unwrap()
}

fn request(new: usize, seed: u64) -> Request {
    Request::new("ROMEO:").config(drawn(new, 1.0, seed))
}

/// Sends updates to a channel, and breaks once its receiver is gone.
fn to_channel() -> (OnUpdate, Receiver<Update>) {
    let (sender, receiver) = channel();
    let send = move |update| match sender.send(update) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    (Box::new(send), receiver)
}

/// The end of a sequence; checks the order of its updates.
fn end(updates: &Receiver<Update>) -> Result<Generated, LlmError> {
    let mut has_started = false;
    let mut ids = Vec::new();
    loop {
        match updates.recv_timeout(LONG).unwrap() {
            Update::Started { .. } => {
                assert!(!has_started && ids.is_empty());
                has_started = true;
            }
            Update::Piece(piece) => ids.push(piece.id),
            Update::Finished(generated) => {
                assert_eq!(generated.ids, ids);
                assert!(updates.recv().is_err(), "the last update");
                return Ok(generated);
            }
            Update::Failed(error) => return Err(error),
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn requests_from_several_threads_give_what_each_gives_alone() {
    let service = service(3, 64);
    assert!(service.is_batch_invariant());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let service = service.clone();
            scope.spawn(move || {
                for new in [3, 9] {
                    let (send, updates) = to_channel();
                    let handle = service.submit(request(new, seed), send).unwrap();
                    let generated = end(&updates).unwrap();
                    drop(handle);
                    let expected = alone(service.model(), &request(new, seed));
                    assert_eq!(fixed(&generated), fixed(&expected));
                }
            });
        }
    });

    until("the last pass is told", || service.state().running == 0);
    let state = service.state();
    assert_eq!((state.waiting, state.generated_tokens), (0, 4 * 12));
    assert!(state.prefix_hits > 0 && state.kept_bytes > 0);
    assert!(state.passes >= 12 && state.failed_passes == 0);
}

#[test]
fn a_full_queue_refuses_all_of_a_list_and_has_room_again() {
    let service = service(1, 2);
    let long = || request(400, 1);
    let channels: Vec<_> = (0..3).map(|_| to_channel()).collect();
    let (sends, updates): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
    let mut handles: Vec<_> = sends
        .into_iter()
        .map(|send| service.submit(long(), send).unwrap())
        .collect();
    until("one runs", || service.state().running == 1);

    let full = service.submit(long(), to_channel().0).unwrap_err();
    assert!(matches!(full, SubmitError::Full { waiting: 2 }), "{full}");
    handles.truncate(2);
    let last = end(&updates[2]).unwrap();
    assert_eq!(
        (last.finish_reason, last.ids.len()),
        (FinishReason::Interrupted, 0)
    );
    until("one place", || service.state().waiting == 1);
    let two = vec![(long(), to_channel().0), (long(), to_channel().0)];
    assert!(matches!(
        service.submit_all(two),
        Err(SubmitError::Full { waiting: 1 })
    ));
    let (send, others) = to_channel();
    let added = service.submit_all(vec![(request(2, 1), send)]).unwrap();
    assert_eq!(service.state().waiting, 2);

    handles.clear();
    for updates in &updates[..2] {
        assert_eq!(
            end(updates).unwrap().finish_reason,
            FinishReason::Interrupted
        );
    }
    assert_eq!(end(&others).unwrap().ids.len(), 2);
    drop(added);
}

#[test]
fn invalid_requests_are_refused_on_the_callers_thread() {
    let config = EngineConfig {
        cache_bytes: Some(model().decoder().cache_bytes(256)),
        ..EngineConfig::default()
    };
    let service = Service::start(Arc::new(model()), config, 4).unwrap();
    let refused = |request: Request| {
        let panics: OnUpdate = Box::new(|_| panic!("never called"));
        match service.submit(request, panics).unwrap_err() {
            SubmitError::Invalid(error) => error,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(refused(Request::new([])), LlmError::EmptyPrompt));
    assert!(matches!(
        refused(Request::new([9999])),
        LlmError::Decoder(_)
    ));
    assert!(matches!(
        refused(request(600, 1)),
        LlmError::ContextExceeded { .. }
    ));
    assert!(matches!(
        refused(request(400, 1)),
        LlmError::CacheExceeded { .. }
    ));
    let cold = GenerationConfig {
        temperature: -1.0,
        ..drawn(3, 1.0, 1)
    };
    let cold = Request::new("a").config(cold);
    assert!(matches!(refused(cold), LlmError::Setting { .. }));
    assert_eq!(service.state().waiting, 0);

    let none = EngineConfig {
        at_once: 0,
        ..EngineConfig::default()
    };
    assert!(Service::start(Arc::new(model()), none, 4).is_err());
}

/// A client that goes while its long prompt is computed is noticed at the next chunk.
#[test]
fn a_sequence_is_cancelled_in_the_middle_of_its_prompt() {
    let config = EngineConfig {
        prefill_tokens: 1,
        ..EngineConfig::default()
    };
    let service = Service::start(Arc::new(model()), config, 4).unwrap();
    let long = || {
        Request::new(vec![7; 500])
            .config(drawn(5, 1.0, 1))
            .ids_only()
    };
    let (mut send, updates) = to_channel();
    let (open, gate) = channel::<()>();
    let waits: OnUpdate = Box::new(move |update| {
        let answer = send(update);
        let _ = gate.recv();
        answer
    });
    let handle = service.submit(long(), waits).unwrap();
    assert!(matches!(
        updates.recv_timeout(LONG),
        Ok(Update::Started { .. })
    ));
    handle.cancel();
    drop(open);
    assert!(matches!(
        updates.recv_timeout(LONG),
        Ok(Update::Finished(generated)) if generated.ids.is_empty()
    ));
    until("it is gone", || service.state().running == 0);
    assert!(service.state().passes < 5);

    // Or by the answer to an update, or by a panic of the receiver.
    let breaks: OnUpdate = Box::new(|_| ControlFlow::Break(()));
    let panics: OnUpdate = Box::new(|_| panic!("a receiver that panics"));
    let passes = service.state().passes;
    let handles = service.submit_all(vec![(long(), breaks), (long(), panics)]);
    until("both are gone", || {
        let state = service.state();
        state.running + state.waiting == 0
    });
    assert!(service.state().passes < passes + 20);
    drop(handles);

    let (send, updates) = to_channel();
    let _handle = service.submit(request(3, 2), send).unwrap();
    let expected = alone(service.model(), &request(3, 2));
    assert_eq!(fixed(&end(&updates).unwrap()), fixed(&expected));
}

/// Has a pass of the engine's thread panic.
struct Saboteur;

impl TokenConstraint for Saboteur {
    fn allowed(&mut self) -> Result<Option<TokenMask>, String> {
        panic_in(1);
        Ok(None)
    }

    fn accept(&mut self, _: u32) -> Result<bool, String> {
        Ok(false)
    }
}

#[test]
fn a_pass_that_panics_fails_its_sequences_and_the_service_goes_on() {
    let service = service(2, 8);
    let (send, first) = to_channel();
    let saboteur = request(9, 1).constraint(Box::new(Saboteur));
    let (send_other, other) = to_channel();
    let (send_last, last) = to_channel();
    let requests = vec![
        (saboteur, send),
        (request(9, 2), send_other),
        (request(9, 3), send_last),
    ];
    let _handles = service.submit_all(requests).unwrap();
    for updates in [first, other] {
        let error = end(&updates).unwrap_err();
        assert!(matches!(error, LlmError::PassFailed { .. }), "{error}");
    }
    let expected = alone(service.model(), &request(9, 3));
    assert_eq!(fixed(&end(&last).unwrap()), fixed(&expected));
    until("the last pass is told", || service.state().running == 0);
    assert_eq!(service.state().failed_passes, 1);
}

#[test]
fn stopping_lets_requests_end_within_the_grace_and_interrupts_the_rest() {
    let service = self::service(1, 8);
    let (send, running) = to_channel();
    let (send_waiting, waiting) = to_channel();
    let requests = vec![(request(5, 1), send), (request(3, 2), send_waiting)];
    let _handles = service.submit_all(requests).unwrap();
    service.stop(LONG);
    assert_eq!(end(&running).unwrap().ids.len(), 5);
    assert_eq!(end(&waiting).unwrap().ids.len(), 3);
    let refused = service.submit(request(1, 1), to_channel().0);
    assert!(matches!(refused, Err(SubmitError::Stopped)));
    service.stop(Duration::ZERO);

    let service = self::service(1, 8);
    let (send, running) = to_channel();
    let (send_waiting, waiting) = to_channel();
    let requests = vec![(request(400, 1), send), (request(400, 2), send_waiting)];
    let _handles = service.submit_all(requests).unwrap();
    let started = Instant::now();
    service.stop(Duration::from_millis(30));
    assert!(started.elapsed() < Duration::from_secs(5));
    for updates in [running, waiting] {
        let generated = end(&updates).unwrap();
        assert_eq!(generated.finish_reason, FinishReason::Interrupted);
        assert!(generated.ids.len() < 400);
    }
}

#[test]
fn the_last_clone_and_a_receiver_can_stop_the_service() {
    let service = self::service(1, 8);
    let (send, updates) = to_channel();
    let _handle = service.submit(request(400, 1), send).unwrap();
    drop(service.clone());
    assert!(matches!(
        updates.recv_timeout(LONG),
        Ok(Update::Started { .. })
    ));
    drop(service);
    let is_last = |update| matches!(update, Update::Finished(_));
    assert!(updates.iter().any(is_last) && updates.recv().is_err());

    // On the engine's own thread, which cannot wait for itself.
    let service = Arc::new(Mutex::new(Some(self::service(1, 8))));
    let inner = Arc::clone(&service);
    let (sender, stopped) = channel();
    let stops: OnUpdate = Box::new(move |_| {
        let service = inner.lock().unwrap().take();
        if let Some(service) = service {
            service.stop(Duration::ZERO);
            drop(service);
            sender.send(()).unwrap();
        }
        ControlFlow::Continue(())
    });
    let guard = service.lock().unwrap();
    let handle = guard.as_ref().unwrap().submit(request(400, 1), stops);
    drop(guard);
    stopped.recv_timeout(LONG).unwrap();
    drop(handle);
}

/// An idle service sleeps: its thread takes no processor time.
#[cfg(target_os = "linux")]
#[test]
fn an_idle_service_does_not_spin() {
    let service = service(1, 8);
    let (sender, thread) = channel();
    let tells: OnUpdate = Box::new(move |_| {
        let link = std::fs::read_link("/proc/thread-self").unwrap();
        drop(sender.send(link));
        ControlFlow::Continue(())
    });
    let _handle = service.submit(request(2, 1), tells).unwrap();
    let thread = std::path::Path::new("/proc").join(thread.recv_timeout(LONG).unwrap());
    until("it is idle", || service.state().kept_prefixes == 1);
    std::thread::sleep(Duration::from_millis(20));

    let ticks = || {
        let stat = std::fs::read_to_string(thread.join("stat")).unwrap();
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = ticks();
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks() <= before + 1, "a tick is 10 ms");
}
