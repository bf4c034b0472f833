//! Chat on a terminal, which Python makes.

use crate::chat::{TEMPLATE, template};
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Starts a chat on a terminal, which Python makes: `None` without Python. Long replies by the
/// slowest kernels leave time to interrupt them.
fn chat_on_a_terminal(template: &str) -> Option<KilledOnDrop> {
    let pty = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    let program = env!("CARGO_BIN_EXE_llm-int8");
    let child = Command::new("python3")
        .args(["-c", pty, program, "chat", "tiny-gpt2"])
        .args(["--chat-template", template])
        .args(["-n", "490", "--threads", "1", "--ignore-eos"])
        .env("TERM", "xterm")
        .env("LLM_INT8_ISA", "scalar")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    child.ok().map(KilledOnDrop)
}

/// What a program shows on its terminal, read by a thread so that waiting for it can time out.
struct Screen {
    pieces: Receiver<String>,
    seen: String,
}

impl Screen {
    fn new(mut output: ChildStdout) -> Self {
        let (sender, pieces) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 256];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                let _ = sender.send(String::from_utf8_lossy(&bytes[..count]).into_owned());
            }
        });

        Self {
            pieces,
            seen: String::new(),
        }
    }

    /// Waits until the condition holds for all that was shown since the start.
    fn wait_for(&mut self, is_there: impl Fn(&str) -> bool) {
        while !is_there(&self.seen) {
            match self.pieces.recv_timeout(Duration::from_secs(30)) {
                Ok(piece) => self.seen.push_str(&piece),
                Err(cause) => panic!("{cause}: {}", self.seen),
            }
        }
    }
}

/// On a terminal the line editor handles ctrl-C as well. It must not keep ctrl-C from a reply.
#[test]
fn ctrl_c_on_a_terminal_stops_the_reply_but_not_the_program() {
    let (_folder, template) = template(TEMPLATE);
    let Some(mut child) = chat_on_a_terminal(&template) else {
        println!("skipped: there is no python3 to make a terminal");
        return;
    };

    let mut keys = child.0.stdin.take().unwrap();
    let mut screen = Screen::new(child.0.stdout.take().unwrap());
    screen.wait_for(|seen| seen.contains("> "));
    keys.write_all(b"Hi\r").unwrap();

    // The line editor takes keys until it has returned the line: wait until the reply has begun.
    screen.wait_for(|seen| {
        seen.split_once("Hi")
            .is_some_and(|(_, reply)| reply.len() > 60)
    });
    keys.write_all(b"\x03").unwrap();
    screen.wait_for(|seen| seen.contains("[stopped]") || seen.contains("490 written"));
    let was_stopped = screen.seen.contains("[stopped]");

    keys.write_all(b"/exit\r").unwrap();
    let status = (0..300).find_map(|_| {
        thread::sleep(Duration::from_millis(100));
        child.0.try_wait().unwrap()
    });
    assert!(
        status.is_some_and(|status| status.success()) && was_stopped,
        "{status:?}"
    );
}

/// A child process that does not outlive its test.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
