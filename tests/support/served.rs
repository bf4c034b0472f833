//! `llm-int8 serve` on a free port.

use super::program;
use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::thread;
use tempfile::TempDir;

/// A server of the built-in model. It ends with this value.
pub(crate) struct Served {
    child: Child,
    pub(crate) url: String,
    _home: TempDir,
}

impl Served {
    /// Starts a server with these options and environment variables, and waits for its address;
    /// the model may still be loading.
    pub(crate) fn start(options: &[&str], variables: &[(&str, &str)]) -> Self {
        let home = TempDir::new().unwrap();
        let arguments = [&["serve", "tiny-gpt2", "--port", "0"][..], options].concat();
        let mut command = program(&arguments, home.path());
        let mut child = command.envs(variables.iter().copied()).spawn().unwrap();

        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let url = loop {
            let count = lines.read_line(&mut said).unwrap();
            assert!(count > 0, "the server ended: {said}");
            let line = said.lines().last().unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(',').next().unwrap().to_owned();
            }
        };
        // A full pipe would stop the server.
        thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        Self {
            child,
            url,
            _home: home,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
