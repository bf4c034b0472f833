//! A machine for `scripts/gpu_first_light.sh` whose program, test executables and tools are
//! stand-ins that pass, fail, crash or hang as a test says, and the outcome of a run of the script.

use serde_json::Value;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Starts a process that hangs, ignores SIGTERM and leaves its process group. It appends its id to
/// the file `$HUNG`, so that tests can check that it is gone.
const HANG: &str = "python3 -c 'import os, signal, sys, time\nos.setpgid(0, 0)\nsignal.signal(15, signal.SIG_IGN)\n\
                    open(sys.argv[1], \"a\").write(f\"{os.getpid()}\\n\")\ntime.sleep(60)' \"$HUNG\" & wait";

/// The program: prints what each command would print. `OVERLAP` is what layers without overlapping
/// kernels do.
const PROGRAM: &str = r#"#!/bin/sh
case "$*" in
    --version) echo "llm-int8 0" ;;
    run*) echo "a text" ;;
    *--linear*--no-cuda-overlap*) OVERLAP ;;
    *--linear*) echo '{"linear": [{"out_features": 4096, "in_features": 4096, "rows": 1, "outlier_columns": 0,'
        echo '"microseconds": 9.5}]}' ;;
    *) echo '{"load": {"seconds": 1.5}, "memory": {"model_bytes": 5}, "prefill": [], "decode": [{"context": 128,'
        echo '"batch": 1, "tokens_per_second": 1234.0, "bytes_per_token": 10}]}' ;;
esac
"#;

/// A test executable with libtest's options and output. Lines `run NAME BEHAVIOUR` follow, one for
/// each test; `alone` is a test that passes only when it runs alone.
const SUITE: &str = r#"#!/bin/sh
list= exact= filters= status=0
while [ $# -gt 0 ]; do
    case "$1" in
        --list) list=1 ;;
        --exact) exact=1 ;;
        --format | --test-threads | --skip) shift ;;
        --nocapture) ;;
        *) filters="$filters $1" ;;
    esac
    shift
done
run() {
    chosen=$([ -n "$filters" ] || echo 1)
    for filter in $filters; do
        case "$1" in
            "$filter") chosen=1 ;;
            *"$filter"*) [ -n "$exact" ] || chosen=1 ;;
        esac
    done
    [ -n "$chosen" ] || return 0
    [ -z "$list" ] || { echo "$1: test"; return 0; }
    case "$2$exact" in
        passes* | alone1) echo "test $1 ... ok" ;;
        fails* | alone) echo "test $1 ... FAILED"; status=101 ;;
        crashes*) kill -SEGV $$ ;;
        hangs*) HANG ;;
    esac
}
"#;

/// NVIDIA's tools: they run their arguments, or write the files they would write.
const TOOLS: [(&str, &str); 4] = [
    ("nvidia-smi", "#!/bin/sh\necho a card\n"),
    (
        "nvcc",
        "#!/bin/sh\n[ \"$1\" != --version ] || exit 0\nwhile [ $# -gt 1 ]; do shift; done\nprintf '#!/bin/sh\\necho {}\\n' > \"$1\"; chmod +x \"$1\"\n",
    ),
    (
        "ncu",
        "#!/bin/sh\n[ \"$1\" != --version ] || exit 0\nwhile [ \"$1\" != --log-file ]; do shift; done\necho csv > \"$2\"\n",
    ),
    (
        "compute-sanitizer",
        "#!/bin/sh\n[ \"$1\" != --version ] || exit 0\nshift 4; exec \"$@\"\n",
    ),
];

/// Python modules that hide the installed ones: numpy can be imported, torch cannot.
const MODULES: [(&str, &str); 2] = [
    (
        "sitecustomize.py",
        "import sys\nsys.path = [p for p in sys.path if not p.endswith('-packages')]\n",
    ),
    ("numpy.py", ""),
];

/// `make_random_gpt2.py`: makes a folder with an empty `config.json`.
const MAKE_MODEL: &str = "import pathlib, sys\nSIZES = {}\n\ndef main():\n    folder = pathlib.Path(sys.argv[-1])\n    \
                          folder.mkdir()\n    (folder / 'config.json').write_text('{}')\n";

/// Packs the folders that the script unpacks.
const PACK: &str = "import sys, tarfile\nwith tarfile.open(f'{sys.argv[1]}/tests.tar.xz', 'w:xz', preset=0) as archive:\n    \
                    for name in ['bin', 'project']: archive.add(f'{sys.argv[1]}/{name}', name)\n";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("scripts")
        .join(name)
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What the stand-ins do.
pub(crate) struct StandIns {
    /// Tests of `cuda_kernels`: name and behaviour (see [`SUITE`]).
    pub(crate) kernels: &'static [(&'static str, &'static str)],
    /// Tests of `device_tests`.
    pub(crate) models: &'static [(&'static str, &'static str)],
    /// Whether the benchmark of layers without overlapping kernels hangs.
    pub(crate) overlap_hangs: bool,
}

/// Everything passes.
pub(crate) const FINE: StandIns = StandIns {
    kernels: &[
        ("golden::codes", "passes"),
        ("device::copies", "passes"),
        ("linear::large_tiles_match_the_reference", "passes"),
    ],
    models: &[
        ("devices::logits", "passes"),
        ("gpt2_large::logits", "passes"),
    ],
    overlap_hangs: false,
};

/// A temporary folder with the packed folder, the stand-ins and the script's output.
pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    /// `None` if what the script needs is not installed here. Prints the reason.
    pub(crate) fn new(stand_ins: &StandIns) -> Option<Self> {
        let needed = "command -v timeout && test -d /proc/self && \
                      python3 -c 'import lzma, sys; sys.exit(sys.version_info < (3, 11))'";
        let found = Command::new("bash")
            .args(["-c", needed])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();

        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: bash, timeout, /proc or Python 3.11 is missing");
            return None;
        }

        let machine = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        machine.write_scripts();
        machine.write_executables(stand_ins);
        machine.pack();

        for (name, text) in TOOLS {
            write(&machine.path("tools").join(name), text);
        }

        for (name, text) in MODULES {
            write(&machine.path("modules").join(name), text);
        }

        Some(machine)
    }

    /// The scripts under test, and the small files that are packed beside them.
    fn write_scripts(&self) {
        let pack = self.path("pack");
        for (from, to) in [
            ("gpu_first_light.sh", "first_light.sh"),
            ("gpu_report.py", "gpu_report.py"),
            ("bench_gpu.py", "bench_gpu.py"),
        ] {
            let text = std::fs::read_to_string(script(from)).unwrap();
            write(&pack.join(to), &text);
        }

        for (name, text) in [
            ("manifest.txt", "commit 0"),
            ("gpu_probe.cu", ""),
            ("reference.safetensors", ""),
            ("make_random_gpt2.py", MAKE_MODEL),
            ("project/tests/golden/file", ""),
        ] {
            write(&pack.join(name), text);
        }
    }

    /// The program and the test executables, as shell scripts.
    fn write_executables(&self, stand_ins: &StandIns) {
        let bin = self.path("pack/bin");
        let overlap = if stand_ins.overlap_hangs {
            HANG
        } else {
            "echo '{\"linear\": []}'"
        };
        write(&bin.join("llm-int8"), &PROGRAM.replace("OVERLAP", overlap));

        for (name, tests) in [
            ("cuda_kernels", stand_ins.kernels),
            ("device_tests", stand_ins.models),
            ("cpu_kernels", &[("float::sums", "passes")]),
        ] {
            let mut text = SUITE.replace("HANG", HANG);
            for (test, behaviour) in tests {
                writeln!(text, "run {test} {behaviour}").unwrap();
            }

            write(&bin.join(name), &(text + "exit $status\n"));
        }
    }

    /// Moves the executables and the test data into the archive that the script unpacks.
    fn pack(&self) {
        let pack = self.path("pack");
        let packed = Command::new("python3")
            .args(["-c", PACK])
            .arg(&pack)
            .status()
            .unwrap();
        assert!(packed.success());

        for name in ["bin", "project"] {
            std::fs::remove_dir_all(pack.join(name)).unwrap();
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the script with a time limit in seconds for the whole run and for each step.
    pub(crate) fn start(&self, limit: u32, step_limit: u32) -> Child {
        let path = std::env::var("PATH").unwrap();
        std::fs::create_dir_all(self.path("tmp")).unwrap();
        Command::new("bash")
            .arg(self.path("pack/first_light.sh"))
            .arg(self.path("out"))
            .arg(limit.to_string())
            .env("PATH", format!("{}:{path}", self.path("tools").display()))
            .env("PYTHONPATH", self.path("modules"))
            .env("TMPDIR", self.path("tmp"))
            .env("HUNG", self.path("hung"))
            .env("LLM_INT8_STEP_SECONDS", step_limit.to_string())
            .env_remove("LLM_INT8_REHEARSAL")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Runs the script to its end.
    pub(crate) fn run(&self, limit: u32, step_limit: u32) -> RunOutcome {
        self.finish(self.start(limit, step_limit))
    }

    /// Waits for the script and checks what must always hold.
    pub(crate) fn finish(&self, script: Child) -> RunOutcome {
        let output = script.wait_with_output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let files: Vec<String> = std::fs::read_dir(self.path("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(files.len() <= 8, "{files:?}");

        let required = ["results.json", "steps.tsv", "logs.tar.gz", "summary.txt"];
        assert!(
            required
                .iter()
                .all(|name| files.iter().any(|file| file == name)),
            "{files:?}"
        );
        assert!(
            !files
                .iter()
                .any(|name| name.ends_with(".new") || name.ends_with(".partial")),
            "{files:?}"
        );

        let results = std::fs::read_to_string(self.path("out/results.json")).unwrap();
        let archive = flate2::read::GzDecoder::new(
            std::fs::File::open(self.path("out/logs.tar.gz")).unwrap(),
        );
        let logs = std::io::read_to_string(archive).unwrap();
        for pid in std::fs::read_to_string(self.path("hung"))
            .unwrap_or_default()
            .lines()
        {
            let command =
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert!(!command.contains("SIG_IGN"), "process {pid} still runs");
        }
        assert_eq!(
            std::fs::read_dir(self.path("tmp")).unwrap().count(),
            0,
            "the scratch folder was not removed"
        );

        RunOutcome {
            code: output.status.code(),
            printed,
            results: serde_json::from_str(&results).unwrap(),
            logs,
        }
    }
}

/// The outcome of a run of the script.
pub(crate) struct RunOutcome {
    pub(crate) code: Option<i32>,
    pub(crate) printed: String,
    pub(crate) results: Value,
    pub(crate) logs: String,
}

impl RunOutcome {
    /// Each step's name and result.
    pub(crate) fn steps(&self) -> Vec<(String, String)> {
        let text = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
        let steps = self.results["steps"].as_array().unwrap();
        steps
            .iter()
            .map(|step| (text(step, "step"), text(step, "result")))
            .collect()
    }

    /// The result of one step.
    pub(crate) fn result(&self, step: &str) -> String {
        let found = self.steps().into_iter().find(|(name, _)| name == step);
        found
            .unwrap_or_else(|| panic!("no step {step}: {}", self.printed))
            .1
    }
}
