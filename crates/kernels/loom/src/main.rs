//! Models of [`team`]: loom runs each in every order in which its threads can be scheduled and
//! every order in which they can see each other's writes, up to a number of preemptions.
//!
//! A schedule fails if two threads touch a value without an order between them, if an assertion
//! fails, or if no thread can go on.

mod sync;
#[allow(dead_code, reason = "rayon's pool is not modelled")]
#[path = "../../src/team.rs"]
mod team;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use sync::{AtomicBool, SeqCst, Thread, thread, wait};
use team::{LAST_EPOCH, Team};

const EXPECTED: &str = "expected";

fn main() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str() != Some(EXPECTED) && info.payload_as_str() != Some(HELPER_PANICKED)
        {
            default_hook(info);
        }
    }));

    check(
        "the closure is called only while run lasts",
        Some(5),
        work_is_lent,
    );
    check("a parked helper is woken", Some(5), helpers_are_woken);
    check(
        "every number is visited once",
        Some(5),
        numbers_are_visited_once,
    );
    check(
        "panics end with their work",
        Some(2),
        panics_end_with_their_work,
    );
    check("two helpers", Some(3), two_helpers);
    check("two callers", Some(3), two_callers);
}

const HELPER_PANICKED: &str = "a helper thread panicked";

/// Runs a model in all schedules with at most this many preemptions, and prints how many there are.
fn check(name: &str, preemptions: Option<usize>, model: fn()) {
    let started = Instant::now();
    let schedules = Arc::new(AtomicUsize::new(0));
    let counter = schedules.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        model();
    });

    let schedules = schedules.load(Ordering::Relaxed);
    println!("{name}: {schedules} schedules, {:.1?}", started.elapsed());
}

/// A value of which loom checks that its accesses are ordered.
struct Value(loom::cell::UnsafeCell<u32>);

// SAFETY: loom's cell panics when two threads access it without an order.
#[expect(unsafe_code, reason = "loom's cell checks what Sync promises")]
unsafe impl Sync for Value {}

impl Value {
    fn new() -> Self {
        Self(loom::cell::UnsafeCell::new(0))
    }

    #[expect(unsafe_code, reason = "loom's cell checks what a reference promises")]
    fn add_one(&self) -> u32 {
        self.0.with_mut(|value| {
            // SAFETY: loom's cell panics if there is another reference.
            let value = unsafe { &mut *value };
            *value += 1;
            *value
        })
    }
}

/// Ends the helpers, as loom waits for every thread.
fn end(team: &Team) {
    team.shared.epoch.store(LAST_EPOCH, SeqCst);
    team.helpers.iter().for_each(Thread::unpark);
}

fn team(helpers: usize) -> Team {
    Team::new(helpers).expect("loom starts every thread")
}

/// What a closure borrows belongs to the caller again when `run` returns.
fn work_is_lent() {
    let team = team(1);
    let busy = team.busy.lock().unwrap();
    for _ in 0..2 {
        let values = [Value::new(), Value::new()];
        team.run(&busy, &|member| {
            values[member].add_one();
        });
        assert_eq!(values[0].add_one(), 2);
        values[1].add_one();
    }
    end(&team);
}

/// The caller's part waits for the helper's, which a helper that sleeps through it never does.
fn helpers_are_woken() {
    let team = team(1);
    let busy = team.busy.lock().unwrap();
    let has_joined = AtomicBool::new(false);
    team.run(&busy, &|member| match member {
        0 => wait(|| has_joined.load(SeqCst)),
        _ => has_joined.store(true, SeqCst),
    });
    end(&team);
}

fn numbers_are_visited_once() {
    let team = team(1);
    let busy = team.busy.lock().unwrap();
    let values = [Value::new(), Value::new(), Value::new()];
    let add_one = |_: &mut (), i: usize| {
        values[i].add_one();
    };
    team.for_each_number(&busy, values.len(), add_one);
    for value in &values {
        assert_eq!(value.add_one(), 2);
    }
    end(&team);
}

/// Whoever panics, `run` panics after all are out, and the next work is not concerned.
fn panics_end_with_their_work() {
    for panicking in [&[0][..], &[1], &[0, 1]] {
        let team = team(1);
        let busy = team.busy.lock().unwrap();
        let values = [Value::new(), Value::new()];
        let has_joined = AtomicBool::new(false);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.run(&busy, &|member| {
                values[member].add_one();
                if member == 1 {
                    has_joined.store(true, SeqCst);
                }
                if panicking.contains(&member) {
                    std::panic::panic_any(EXPECTED);
                }
            });
        }));
        values[1].add_one();
        let is_expected = panicking.contains(&0) || has_joined.load(SeqCst);
        assert_eq!(outcome.is_err(), is_expected);

        team.run(&busy, &|_| {});
        end(&team);
    }
}

fn two_helpers() {
    let team = team(2);
    let busy = team.busy.lock().unwrap();
    let values = [Value::new(), Value::new(), Value::new()];
    team.run(&busy, &|member| {
        values[member].add_one();
    });
    for value in &values {
        value.add_one();
    }
    end(&team);
}

/// A caller that finds the team busy goes its own way.
fn two_callers() {
    let team = loom::sync::Arc::new(team(1));
    let call = |team: &Team| {
        let values = [Value::new(), Value::new()];
        if let Ok(busy) = team.busy.try_lock() {
            team.run(&busy, &|member| {
                values[member].add_one();
            });
        }
        values[0].add_one();
        values[1].add_one();
    };

    let other = thread::spawn({
        let team = team.clone();
        move || call(&team)
    });
    call(&team);
    other.join().unwrap();
    end(&team);
}
