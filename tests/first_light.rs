//! `scripts/gpu_first_light.sh` with stand-ins for the program, the test executables and a GPU's
//! tools: no step's failure, crash or hang may cost another its results.

use crate::support::stand_ins::{FINE, Machine, StandIns};
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn every_step_ends_well_or_says_why_it_was_skipped() {
    let Some(machine) = Machine::new(&FINE) else {
        return;
    };

    let left = machine.run(300, 60);
    assert_eq!(left.code, Some(0), "{}", left.printed);

    for (step, result) in left.steps() {
        assert!(
            result == "ok" || result.starts_with("skipped: ") || step.ends_with("check"),
            "{step}: {result}"
        );
    }

    for step in [
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
    ] {
        assert_eq!(left.result(step), "ok", "{step}\n{}", left.printed);
    }

    for step in ["peers", "bitsandbytes", "torch-compiled"] {
        assert_eq!(left.result(step), "skipped: torch cannot be imported");
    }

    assert_eq!(left.result("memcheck"), "ok: 1 of 6 tests");
    assert_eq!(left.results["verdict"], "correct");

    let numbers = left.results["numbers"].as_array().unwrap();
    let number = numbers
        .iter()
        .find(|number| number["name"] == "decode, batch 1, ours, tokens/s")
        .unwrap();
    assert_eq!(number["value"], 1234.0);
    assert!(
        left.printed
            .contains("layer 4096 x 4096, 1 rows, 0 outliers, ours, us"),
        "{}",
        left.printed
    );
    assert!(left.logs.contains("test golden::codes ... ok"));
    assert!(
        std::fs::read_to_string(machine.path("out/bench.md"))
            .unwrap()
            .contains("| 4096 × 4096 | 1 | 0 | 9.50 |")
    );
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
    let left = machine.run(300, 6);
    assert_eq!(left.code, Some(3), "{}", left.printed);

    let expected =
        "failed: signal SEGV: alone: 1 pass; fail: linear::first (139); not run again: 0";
    assert_eq!(left.result("kernels"), expected);

    let expected =
        "failed: exit status 101: alone: 1 pass; fail: devices::wrong (101); not run again: 0";
    assert_eq!(left.result("models"), expected);
    assert!(
        left.result("gpt2-large").starts_with("timed out"),
        "{}",
        left.printed
    );
    assert!(
        left.result("linear-ours-no-overlap")
            .starts_with("incomplete"),
        "{}",
        left.printed
    );

    for step in [
        "facts",
        "smoke",
        "ours",
        "linear-ours",
        "probe",
        "card-after",
    ] {
        assert_eq!(left.result(step), "ok", "{step}\n{}", left.printed);
    }

    let first = "correctness failed (kernels, models, gpt2-large): numbers are not to be published";
    assert_eq!(left.results["verdict"], first);
    assert!(
        std::fs::read_to_string(machine.path("out/summary.txt"))
            .unwrap()
            .starts_with(first)
    );
    assert!(left.logs.contains("== alone: devices::victim"));
}

#[test]
fn a_failing_smoke_test_ends_everything_early() {
    let Some(machine) = Machine::new(&StandIns {
        kernels: &[("golden::codes", "passes"), ("device::copies", "fails")],
        ..FINE
    }) else {
        return;
    };
    let left = machine.run(300, 60);
    assert_eq!(left.code, Some(1), "{}", left.printed);
    assert_eq!(left.result("facts"), "ok");
    assert!(
        left.result("smoke").starts_with("failed: exit status 101"),
        "{}",
        left.printed
    );
    assert!(
        !left
            .steps()
            .iter()
            .any(|(name, _)| name == "kernels" || name == "ours"),
        "{}",
        left.printed
    );
    assert!(left.logs.contains("test device::copies ... FAILED"));
}

#[test]
fn no_step_begins_when_the_time_is_over() {
    let kernels = &[
        ("golden::codes", "passes"),
        ("device::copies", "passes"),
        ("linear::first", "hangs"),
    ];
    let Some(machine) = Machine::new(&StandIns { kernels, ..FINE }) else {
        return;
    };

    let left = machine.run(20, 9);
    assert_eq!(left.code, Some(3), "{}", left.printed);
    assert!(
        left.result("kernels").starts_with("timed out"),
        "{}",
        left.printed
    );

    for step in [
        "models",
        "gpt2-large",
        "ours",
        "probe",
        "memcheck",
        "card-after",
    ] {
        assert!(
            left.result(step).ends_with("s are left"),
            "{step}: {}",
            left.result(step)
        );
    }
}

#[test]
fn what_was_found_is_written_when_someone_ends_it() {
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

    // The hanging test writes this.
    while !machine.path("hung").exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }

    let ended = Command::new("bash")
        .args(["-c", &format!("kill -TERM {}", script.id())])
        .status()
        .unwrap();
    assert!(ended.success());

    let left = machine.left(script);
    assert_eq!(left.code, Some(143), "{}", left.printed);
    assert_eq!(left.result("smoke"), "ok");
    assert_eq!(left.result("kernels"), "stopped by a signal");
    assert!(
        !left.steps().iter().any(|(name, _)| name == "ours"),
        "{}",
        left.printed
    );
    assert!(left.logs.contains("test device::copies ... ok"));
}
