//! The program on devices: what it reports, and that its text is the same as on the CPU.

use crate::support::llm_int8;
use llm_int8_cuda::testing;
use llm_int8_decoder::cuda::Device;

fn has_emulation() -> bool {
    testing::names().contains(&"emulated:0")
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = llm_int8(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn the_program_runs_on_a_device_with_and_without_graphs() {
    let base = [
        "run",
        "tiny-gpt2",
        "--prompt",
        "In the beginning",
        "-n",
        "12",
        "--ignore-eos",
        "--greedy",
    ];
    let on = |more: &[&str]| run(&[&base[..], more].concat());
    let (_, host, _) = on(&["--device", "cpu"]);
    for name in testing::names() {
        let (code, by_graphs, report) = on(&["--device", name]);
        assert_eq!(code, Some(0), "{report}");
        assert!(report.contains(&format!("device:  {name} (")), "{report}");
        assert!(
            report.contains("): embedding and head, blocks 0 to"),
            "{report}"
        );
        assert!(report.contains(&format!("{name} holds")), "{report}");

        let (_, by_launches, _) = on(&["--device", name, "--no-cuda-graph"]);
        assert_eq!(by_graphs, by_launches);

        let (_, apart, _) = on(&["--device", name, "--no-cuda-overlap"]);
        assert_eq!(by_graphs, apart);
        assert_eq!(by_graphs, host);

        let (_, quiet, _) = on(&["--device", name, "--quiet"]);
        assert_eq!(quiet, host);
    }
}

#[test]
fn the_program_spreads_a_model_over_two_devices_and_the_cpu() {
    if !has_emulation() {
        return;
    }

    let base = [
        "run",
        "tiny-gpt2",
        "--prompt",
        "In the beginning",
        "-n",
        "12",
        "--ignore-eos",
        "--greedy",
    ];
    let on = |more: &[&str]| run(&[&base[..], more].concat());
    let map = [
        "--device",
        "emulated:0,emulated:1",
        "--device-map",
        "auto",
        "--max-memory",
        "0=16MiB,1=14MiB",
    ];
    let (code, spread, report) = on(&map);
    assert_eq!(code, Some(0), "{report}");

    let (_, host, _) = on(&["--device", "cpu"]);
    assert_eq!(spread, host);

    for line in [
        "device:  emulated:0",
        "device:  emulated:1",
        "device:  cpu (",
    ] {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn sampled_tokens_are_the_same_on_a_device() {
    let base = [
        "run",
        "tiny-gpt2",
        "--prompt",
        "ROMEO:",
        "-n",
        "10",
        "--quiet",
        "--print-ids",
        "--ignore-eos",
    ];

    for more in [
        &["--temperature", "0.9", "--top-k", "20", "--seed", "5"][..],
        &["--temperature", "0.7", "--top-k", "0", "--top-p", "0.9"],
        &["--repetition-penalty", "1.4"],
    ] {
        let on = |device| run(&[&base[..], more, &["--device", device]].concat());
        for name in testing::names() {
            assert_eq!(on(name), on("cpu"), "{name}, {more:?}");
        }
    }
}

#[test]
fn inspect_shows_what_each_device_would_hold() {
    if !has_emulation() {
        return;
    }

    let on = |more: &[&str]| run(&[&["inspect", "tiny-gpt2"][..], more].concat());
    let map = [
        "--device",
        "emulated:0",
        "--device-map",
        "auto",
        "--max-memory",
        "0=16MiB",
    ];
    let (code, loaded, _) = on(&map);
    let (_, planned, _) = on(&[&map[..], &["--headers-only"]].concat());
    assert_eq!(code, Some(0));
    assert_eq!(loaded, planned);
    assert!(
        loaded.contains("emulated:0 (emulated on the CPU): embedding and head"),
        "{loaded}"
    );

    let (_, json, _) = on(&[&map[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["devices"][0]["device"], "emulated:0");

    let (_, plain, _) = on(&[]);
    assert!(
        !plain.contains("cpu ("),
        "a model on the CPU alone has no placement to show"
    );
}

#[test]
fn invalid_device_options_are_explained() {
    let on = |more: &[&str]| {
        run(&[&["run", "tiny-gpt2", "--prompt", "x", "-n", "1"][..], more].concat())
    };
    for (arguments, words) in [
        (
            &["--device", "gpu"][..],
            "expected auto, cpu, cuda or cuda:N",
        ),
        (
            &["--device", "cpu", "--device-map", "auto"],
            "a device map needs devices",
        ),
        (&["--device", "cuda:0,cuda:1"], "--device-map auto"),
        (&["--max-memory", "0=1GB"], "--device-map"),
        (&["--device", "cpu,cuda"], "cannot be combined with"),
        (
            &["--device-map", "auto", "--max-memory", "x=1GB"],
            "is not a device",
        ),
        (
            &[
                "--device",
                "emulated",
                "--outliers",
                "row",
                "--speculate",
                "4",
            ],
            "use --device cpu",
        ),
    ] {
        let (code, _, error) = on(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }

    if has_emulation() {
        let (code, _, error) = on(&["--device", "emulated", "--outlier-weights", "original"]);
        assert_eq!(code, Some(2), "{error}");
        assert!(error.contains("omit --outlier-weights original"), "{error}");

        let (code, _, error) = on(&["--device", "emulated", "--cache-dtype", "int8"]);
        assert_eq!(code, Some(2), "{error}");
        assert!(
            error.contains("keys and values in int8") && error.contains("omit --cache-dtype"),
            "{error}"
        );
        let (code, _, error) = on(&["--device", "emulated", "--cache-dtype", "float16"]);
        assert_eq!(code, Some(0), "{error}");
    }

    if Device::cuda_count() == Ok(0) {
        let (code, _, error) = on(&["--device", "cuda"]);
        assert_eq!(code, Some(1));
        assert!(error.contains("--device cpu"), "{error}");
        let (code, ..) = on(&["--device", "auto"]);
        assert_eq!(code, Some(0));
    }
}
