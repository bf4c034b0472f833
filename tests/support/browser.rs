//! A headless Chromium, driven over the WebDriver protocol by chromedriver: enough of it to open a
//! page, press keys and read texts.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The keys of the WebDriver specification (section 17.4.2).
pub(crate) const LEFT: &str = "\u{e012}";
pub(crate) const RIGHT: &str = "\u{e014}";
pub(crate) const HOME: &str = "\u{e011}";
pub(crate) const END: &str = "\u{e010}";
pub(crate) const ENTER: &str = "\u{e007}";
pub(crate) const ESCAPE: &str = "\u{e00c}";
pub(crate) const SHIFT: &str = "\u{e008}";

/// The name under which WebDriver passes elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one page. It ends with this value.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: TempDir,
}

/// A program of this environment variable, or of one of these names on PATH.
fn program(variable: &str, names: &[&str]) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|path| path.is_file())
}

impl Browser {
    /// Starts a browser of this width in pixels; `None`, with a message, if there is none here.
    pub(crate) fn start(width: usize) -> Option<Self> {
        let chromium = program("CHROME", &["chromium", "chromium-browser", "google-chrome"]);
        let driver = program("CHROMEDRIVER", &["chromedriver"]);
        let (Some(chromium), Some(driver)) = (chromium, driver) else {
            println!("skipped: no Chromium (packages chromium and chromium-driver of Debian)");
            return None;
        };

        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let port = port(&mut driver);
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self {
            driver,
            port,
            session: String::new(),
            _profile: profile,
        };

        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let window = format!("--window-size={width},1000");
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            &profile,
            &window,
        ];
        let options = json!({ "args": arguments, "binary": chromium });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let created = browser.call("POST", "/session", &wanted).unwrap();
        browser.session = format!("/session/{}", created["sessionId"].as_str().unwrap());
        Some(browser)
    }

    /// Opens a file, with what follows the `#` in its address.
    pub(crate) fn open(&self, path: &Path, fragment: &str) {
        let bytes = path.display().to_string();
        let address: String = bytes.bytes().map(escaped).collect();
        self.visit(&format!("file://{address}#{fragment}"));
    }

    /// Opens an address.
    pub(crate) fn visit(&self, address: &str) {
        self.do_in_session("/url", &json!({ "url": address }))
            .unwrap();
    }

    pub(crate) fn reload(&self) {
        self.do_in_session("/refresh", &json!({})).unwrap();
    }

    /// Shows pages as a telephone of this size does.
    pub(crate) fn is_telephone(&self, width: usize, height: usize) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": true });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.do_in_session("/goog/cdp/execute", &command).unwrap();
    }

    /// Waits until an expression holds.
    pub(crate) fn wait_for(&self, expression: &str) {
        let start = Instant::now();
        while self.run(&format!("return Boolean({expression})")) != true {
            let page = "return document.body.innerText";
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{expression}: {}",
                self.run(page)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The result of a script: the body of a function.
    pub(crate) fn run(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.do_in_session("/execute/sync", &body).unwrap()
    }

    /// The text of the element with this id.
    pub(crate) fn text(&self, id: &str) -> String {
        let script = format!("return document.getElementById('{id}').textContent");
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// A number with separators of thousands in the element with this id.
    pub(crate) fn number(&self, id: &str) -> u64 {
        self.text(id).replace(',', "").parse().unwrap()
    }

    fn element(&self, selector: &str) -> String {
        let wanted = json!({ "using": "css selector", "value": selector });
        let found = self.do_in_session("/element", &wanted).unwrap();
        format!("/element/{}", found[ELEMENT].as_str().unwrap())
    }

    /// Presses keys while the element has the focus.
    pub(crate) fn press(&self, selector: &str, keys: &str) {
        let path = format!("{}/value", self.element(selector));
        self.do_in_session(&path, &json!({ "text": keys })).unwrap();
    }

    pub(crate) fn click(&self, selector: &str) {
        let path = format!("{}/click", self.element(selector));
        self.do_in_session(&path, &json!({})).unwrap();
    }

    /// What the console says: errors of scripts, and what the page may not load.
    pub(crate) fn complaints(&self) -> Vec<Value> {
        let log = self.do_in_session("/se/log", &json!({ "type": "browser" }));
        log.unwrap().as_array().unwrap().clone()
    }

    fn do_in_session(&self, path: &str, body: &Value) -> Result<Value, Value> {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    /// A command of the protocol: its value, or the error.
    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();

        let mut answer = BufReader::new(stream);
        let mut status = String::new();
        answer.read_line(&mut status).unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line).unwrap();
            let line = line.trim().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        match status.contains(" 200 ") {
            true => Ok(value["value"].clone()),
            false => Err(value["value"].clone()),
        }
    }
}

/// The port that chromedriver chose, from what it prints.
fn port(driver: &mut Child) -> u16 {
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    for line in lines {
        let line = line.unwrap();
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return port.trim_end_matches('.').parse().unwrap();
        }
    }
    panic!("chromedriver did not start");
}

/// A byte of a path, as a file's address has it.
fn escaped(byte: u8) -> String {
    match byte {
        b'/' | b'.' | b'-' | b'_' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.call("DELETE", &self.session, &json!({}));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
