//! Servers for tests.

use crate::client::get;
use llm_int8::decoder::{LoadOptions, Placement};
use llm_int8::hub::HubConfig;
use llm_int8::nn::linear::{Int8Config, OutlierRule};
use llm_int8::{AutoModelForCausalLM, LlmError, LoadConfig};
use llm_int8_server::{RunError, Server, ServerConfig, Shutdown};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shows tools as JSON and writes calls as Hermes does.
pub(crate) const TEMPLATE: &str = "{% if tools %}TOOLS: {{ tools | tojson }}{{ '\\n' }}{% endif %}\
    {% for m in messages %}{{ m.role.upper() }}: {{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n\
    {{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>\
    {% endfor %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}";

/// Positions of the built-in model.
pub(crate) const CONTEXT: usize = 512;

pub(crate) fn model() -> Result<AutoModelForCausalLM, LlmError> {
    model_on(Placement::default())
}

pub(crate) fn model_on(placement: Placement) -> Result<AutoModelForCausalLM, LlmError> {
    let int8 = Int8Config {
        outliers: OutlierRule::row(6.0),
        ..Int8Config::default()
    };
    let config = LoadConfig {
        options: LoadOptions {
            int8: Some(int8),
            placement,
            ..LoadOptions::default()
        },
        hub: HubConfig {
            offline: true,
            ..HubConfig::default()
        },
        ..LoadConfig::default()
    };
    AutoModelForCausalLM::from_pretrained("tiny-gpt2", &config)
}

pub(crate) fn config() -> ServerConfig {
    ServerConfig {
        address: ([127, 0, 0, 1], 0).into(),
        chat_template: Some(TEMPLATE.into()),
        grace: Duration::from_secs(20),
        ..ServerConfig::default()
    }
}

/// A server on a thread, which ends when this is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    thread: Option<JoinHandle<Result<(), RunError<LlmError>>>>,
}

impl Running {
    /// Starts a server and waits until it answers.
    pub(crate) fn start(config: ServerConfig) -> Self {
        let running = Self::loading(config, model);
        let is_ready = || get(running.address, "/health").status == 200;
        wait_until("the model is loaded", is_ready);
        running
    }

    /// Starts a server whose model is loaded by `load`.
    pub(crate) fn loading(
        config: ServerConfig,
        load: impl FnOnce() -> Result<AutoModelForCausalLM, LlmError> + Send + 'static,
    ) -> Self {
        let server = Server::bind(config).unwrap();
        Self {
            address: server.address(),
            shutdown: server.shutdown(),
            thread: Some(std::thread::spawn(move || server.run(load))),
        }
    }

    /// A server with the default settings.
    pub(crate) fn usual() -> Self {
        Self::start(config())
    }

    /// Waits for the end of the server and returns how it ended.
    pub(crate) fn join(mut self) -> Result<(), RunError<LlmError>> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// A number of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = get(self.address, "/metrics").body;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("llm_int8:{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}"))
            .parse()
            .unwrap()
    }

    /// Waits until nothing runs and nothing waits.
    pub(crate) fn wait_until_idle(&self) {
        wait_until("the engine is idle", || {
            self.metric("num_requests_running") == 0.0 && self.metric("num_requests_waiting") == 0.0
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.begin();
        self.shutdown.begin();
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !std::thread::panicking() {
                outcome.unwrap().unwrap();
            }
        }
    }
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let ends = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < ends, "waited a minute until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
