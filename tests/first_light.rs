//! `scripts/gpu_first_light.sh` with stand-ins for the program, the test executables and the GPU
//! tools: a step that fails, crashes or hangs must not cost another step its results.

use crate::support::stand_ins::{FINE, Machine, RunOutcome, StandIns};
use std::process::Command;
use std::time::{Duration, Instant};

fn assert_ok(outcome: &RunOutcome, steps: &[&str]) {
    for step in steps {
        assert_eq!(outcome.result(step), "ok", "{step}\n{}", outcome.printed);
    }
}

fn assert_begins(outcome: &RunOutcome, step: &str, result: &str) {
    let found = outcome.result(step);
    assert!(found.starts_with(result), "{step}\n{}", outcome.printed);
}

/// Checks that the stand-ins' measurements are in the results, the summary and the table.
fn assert_numbers_are_reported(machine: &Machine, outcome: &RunOutcome) {
    let numbers = outcome.results["numbers"].as_array().unwrap();
    let number = numbers
        .iter()
        .find(|number| number["name"] == "decode, batch 1, ours, tokens/s")
        .unwrap();
    assert_eq!(number["value"], 1234.0);
    assert!(
        outcome
            .printed
            .contains("layer 4096 x 4096, 1 rows, 0 outliers, ours, us"),
        "{}",
        outcome.printed
    );
    assert!(
        std::fs::read_to_string(machine.path("out/bench.md"))
            .unwrap()
            .contains("| 4096 × 4096 | 1 | 0 | 9.50 |")
    );
}

#[test]
fn every_step_succeeds_or_says_why_it_was_skipped() {
    let Some(machine) = Machine::new(&FINE) else {
        return;
    };

    let outcome = machine.run(300, 60);
    assert_eq!(outcome.code, Some(0), "{}", outcome.printed);

    for (step, result) in outcome.steps() {
        assert!(
            result == "ok" || result.starts_with("skipped: ") || step.ends_with("check"),
            "{step}: {result}"
        );
    }

    assert_ok(
        &outcome,
        &[
            "unpack",
            "facts",
            "smoke",
            "kernels",
            "models",
            "make-model",
            "gpt2-large",
            "make-probe",
            "cpu-kernels",
            "ours",
            "linear-ours",
            "linear-ours-no-overlap",
            "probe",
            "profile-decode",
            "profile-prompt",
            "card-after",
        ],
    );

    for step in ["peers", "bitsandbytes", "torch-compiled"] {
        assert_eq!(outcome.result(step), "skipped: torch cannot be imported");
    }

    assert_eq!(outcome.result("memcheck"), "ok: 1 of 6 tests");
    assert_eq!(outcome.results["verdict"], "correct");
    assert!(outcome.logs.contains("test golden::codes ... ok"));
    assert_numbers_are_reported(&machine, &outcome);
}

#[test]
fn failures_crashes_and_hangs_cost_no_other_step_its_results() {
    let Some(machine) = Machine::new(&StandIns {
        kernels: &[
            ("golden::codes", "passes"),
            ("device::copies", "passes"),
            ("linear::first", "crashes"),
            ("linear::second", "passes"),
        ],
        models: &[
            ("devices::victim", "alone"),
            ("devices::wrong", "fails"),
            ("devices::logits", "passes"),
            ("gpt2_large::logits", "hangs"),
        ],
        overlap_hangs: true,
    }) else {
        return;
    };
    let outcome = machine.run(300, 6);
    assert_eq!(outcome.code, Some(3), "{}", outcome.printed);

    let expected =
        "failed: signal SEGV: alone: 1 pass; fail: linear::first (139); not run again: 0";
    assert_eq!(outcome.result("kernels"), expected);

    let expected =
        "failed: exit status 101: alone: 1 pass; fail: devices::wrong (101); not run again: 0";
    assert_eq!(outcome.result("models"), expected);
    assert_begins(&outcome, "gpt2-large", "timed out");
    assert_begins(&outcome, "linear-ours-no-overlap", "incomplete");

    assert_ok(
        &outcome,
        &[
            "facts",
            "smoke",
            "ours",
            "linear-ours",
            "probe",
            "card-after",
        ],
    );

    let first = "correctness failed (kernels, models, gpt2-large): numbers are not to be published";
    assert_eq!(outcome.results["verdict"], first);
    assert!(
        std::fs::read_to_string(machine.path("out/summary.txt"))
            .unwrap()
            .starts_with(first)
    );
    assert!(outcome.logs.contains("== alone: devices::victim"));
}

#[test]
fn a_failing_smoke_test_ends_the_run() {
    let Some(machine) = Machine::new(&StandIns {
        kernels: &[("golden::codes", "passes"), ("device::copies", "fails")],
        ..FINE
    }) else {
        return;
    };
    let outcome = machine.run(300, 60);
    assert_eq!(outcome.code, Some(1), "{}", outcome.printed);
    assert_eq!(outcome.result("facts"), "ok");
    assert_begins(&outcome, "smoke", "failed: exit status 101");
    assert!(
        !outcome
            .steps()
            .iter()
            .any(|(name, _)| name == "kernels" || name == "ours"),
        "{}",
        outcome.printed
    );
    assert!(outcome.logs.contains("test device::copies ... FAILED"));
}

#[test]
fn no_step_starts_after_the_time_limit() {
    let kernels = &[
        ("golden::codes", "passes"),
        ("device::copies", "passes"),
        ("linear::first", "hangs"),
    ];
    let Some(machine) = Machine::new(&StandIns { kernels, ..FINE }) else {
        return;
    };

    let outcome = machine.run(20, 9);
    assert_eq!(outcome.code, Some(3), "{}", outcome.printed);
    assert_begins(&outcome, "kernels", "timed out");

    for step in [
        "models",
        "gpt2-large",
        "ours",
        "probe",
        "memcheck",
        "card-after",
    ] {
        assert!(
            outcome.result(step).ends_with("s are left"),
            "{step}: {}",
            outcome.result(step)
        );
    }
}

#[test]
fn results_are_written_when_the_script_is_terminated() {
    let kernels = &[
        ("golden::codes", "passes"),
        ("device::copies", "passes"),
        ("linear::first", "hangs"),
    ];
    let Some(machine) = Machine::new(&StandIns { kernels, ..FINE }) else {
        return;
    };

    let script = machine.start(300, 60);
    let started = Instant::now();

    // The hanging test creates this file.
    while !machine.path("hung").exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }

    let ended = Command::new("bash")
        .args(["-c", &format!("kill -TERM {}", script.id())])
        .status()
        .unwrap();
    assert!(ended.success());

    let outcome = machine.finish(script);
    assert_eq!(outcome.code, Some(143), "{}", outcome.printed);
    assert_eq!(outcome.result("smoke"), "ok");
    assert_eq!(outcome.result("kernels"), "stopped by a signal");
    assert!(
        !outcome.steps().iter().any(|(name, _)| name == "ours"),
        "{}",
        outcome.printed
    );
    assert!(outcome.logs.contains("test device::copies ... ok"));
}
