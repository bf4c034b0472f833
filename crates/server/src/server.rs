//! The server: it listens first, loads the model meanwhile, and ends within a bounded time.

use crate::app::App;
use crate::config::ServerConfig;
use crate::connection;
use crate::error::{Result, RunError, ServerError};
use crate::model::Loaded;
use crate::routes::router;
use axum::Router;
use llm_int8::AutoModelForCausalLM;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;

/// Threads for what takes longer than the network's thread should: templates, tokenizers, grammars.
const BLOCKING_THREADS: usize = 4;
/// How long clients may take to read the end of their answers once the last sequence has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Pause after a connection could not be accepted, for want of file descriptors as a rule.
const PAUSE: Duration = Duration::from_millis(50);

/// A server that listens already. Until [`run`](Self::run) is called, clients wait.
///
/// ```
/// use llm_int8::{AutoModelForCausalLM, LoadConfig};
/// use llm_int8_server::{Server, ServerConfig};
/// let config = ServerConfig { address: ([127, 0, 0, 1], 0).into(), ..ServerConfig::default() };
/// let server = Server::bind(config)?;
/// println!("http://{}", server.address());
/// let shutdown = server.shutdown();
/// std::thread::spawn(move || shutdown.begin());
/// server.run(|| AutoModelForCausalLM::from_pretrained("tiny-gpt2", &LoadConfig::default()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    listener: std::net::TcpListener,
    address: SocketAddr,
    shutdown: Shutdown,
    heeds_signals: bool,
    when_ready: WhenReady,
}

/// What to call once requests can be answered.
#[derive(Default)]
struct WhenReady(Option<Box<dyn FnOnce() + Send>>);

impl fmt::Debug for WhenReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WhenReady").field(&self.0.is_some()).finish()
    }
}

/// Tells a server to end. Clones belong to the same server.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Sender<u32>);

impl Shutdown {
    /// Ends the server: it takes no more requests, and those that run may go on for the
    /// [grace](ServerConfig::grace). A second call ends them at once.
    pub fn begin(&self) {
        self.0.send_modify(|calls| *calls += 1);
    }
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// [`ServerError::Setting`], [`ServerError::Bind`].
    pub fn bind(config: ServerConfig) -> Result<Self> {
        config.check()?;
        let refused = |cause| ServerError::bind(config.address, cause);
        let listener = std::net::TcpListener::bind(config.address).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;

        Ok(Self {
            config,
            listener,
            address,
            shutdown: Shutdown(watch::Sender::new(0)),
            heeds_signals: false,
            when_ready: WhenReady::default(),
        })
    }

    /// The address, with the port that the system chose if none was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends the server.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Also ends on ctrl-C and, on Unix, SIGTERM; the second one ends running requests at once.
    pub fn with_signals(mut self) -> Self {
        self.heeds_signals = true;
        self
    }

    /// Calls `call` when the model is loaded and requests are no longer answered with status 503.
    pub fn when_ready(mut self, call: impl FnOnce() + Send + 'static) -> Self {
        self.when_ready = WhenReady(Some(Box::new(call)));
        self
    }

    /// Loads the model on a thread of its own and answers requests until [`Shutdown::begin`]. While
    /// the model is loaded, they are answered with status 503.
    ///
    /// # Errors
    /// [`RunError::Load`] if `load` fails; [`ServerError::Model`] and [`ServerError::Setting`] if
    /// the model cannot be served; [`ServerError::System`].
    pub fn run<E: Send + 'static>(
        self,
        load: impl FnOnce() -> Result<AutoModelForCausalLM, E> + Send + 'static,
    ) -> Result<(), RunError<E>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(ServerError::System)?;
        let outcome = runtime.block_on(self.serve(load));
        // A thread that encodes a text for nobody is not waited for.
        runtime.shutdown_background();
        outcome
    }

    async fn serve<E: Send + 'static>(
        self,
        load: impl FnOnce() -> Result<AutoModelForCausalLM, E> + Send + 'static,
    ) -> Result<(), RunError<E>> {
        let listener = TcpListener::from_std(self.listener).map_err(ServerError::System)?;
        if self.heeds_signals {
            heed_signals(self.shutdown.clone()).map_err(ServerError::System)?;
        }

        let app = Arc::new(App::new(self.config));
        let mut calls = self.shutdown.0.subscribe();
        let (drains, is_draining) = watch::channel(false);
        let mut connections = Connections {
            listener,
            router: router(Arc::clone(&app)),
            stall: app.config.stall,
            is_draining,
            permits: Arc::new(Semaphore::new(app.config.max_connections)),
            tasks: JoinSet::new(),
        };

        let mut loaded = begin_loading(&app, load)?;
        let mut is_loaded = false;
        let mut when_ready = self.when_ready.0;
        loop {
            tokio::select! {
                () = connections.accept() => {}
                outcome = &mut loaded, if !is_loaded => {
                    app.serve(outcome.map_err(|_| ServerError::LoadPanicked)??);
                    is_loaded = true;
                    if let Some(call) = when_ready.take() {
                        call();
                    }
                }
                _ = calls.wait_for(|calls| *calls > 0) => break,
            }
        }

        app.drain();
        // Nobody listening is no error: there may be no connection.
        let _ = drains.send(true);
        connections.drain(&app, &mut calls).await;
        Ok(())
    }
}

/// Starts the thread that loads the model and prepares it.
fn begin_loading<E: Send + 'static>(
    app: &Arc<App>,
    load: impl FnOnce() -> Result<AutoModelForCausalLM, E> + Send + 'static,
) -> Result<oneshot::Receiver<Result<Loaded, RunError<E>>>> {
    let (sender, receiver) = oneshot::channel();
    let app = Arc::clone(app);
    let work = move || {
        let model = load().map_err(RunError::Load);
        let loaded = model.and_then(|model| Ok(Loaded::new(model, &app.config)?));
        // The server may have ended meanwhile.
        let _ = sender.send(loaded);
    };
    let thread = thread::Builder::new().name("llm-int8 loading".into());
    thread.spawn(work).map_err(ServerError::System)?;
    Ok(receiver)
}

/// The listener and its connections.
struct Connections {
    listener: TcpListener,
    router: Router,
    stall: Duration,
    is_draining: watch::Receiver<bool>,
    permits: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Connections {
    /// Accepts one connection, as soon as there is a place for it.
    async fn accept(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
            return;
        };
        match self.listener.accept().await {
            Ok((socket, _)) => {
                let router = self.router.clone();
                let (stall, is_draining) = (self.stall, self.is_draining.clone());
                self.tasks.spawn(async move {
                    connection::serve(socket, router, stall, is_draining).await;
                    drop(permit);
                });
            }
            Err(error) => {
                log::warn!("a connection cannot be accepted: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Lets running sequences end within the grace, and clients read their last answers. New
    /// connections are still answered meanwhile, with 503, so that whoever asks for the state gets
    /// it.
    async fn drain(&mut self, app: &App, calls: &mut watch::Receiver<u32>) {
        let mut stopped = stop_engine(app, app.config.grace);
        let mut is_hurried = false;
        loop {
            tokio::select! {
                // An error: the thread has ended.
                _ = &mut stopped => break,
                () = self.accept() => {}
                _ = calls.wait_for(|calls| *calls > 1), if !is_hurried => {
                    is_hurried = true;
                    drop(stop_engine(app, Duration::ZERO));
                }
            }
        }

        let ends = tokio::time::sleep(LAST_WORDS);
        let mut ends = std::pin::pin!(ends);
        while !self.tasks.is_empty() {
            tokio::select! {
                () = &mut ends => break,
                _ = self.tasks.join_next() => {}
            }
        }
        self.tasks.abort_all();
    }
}

/// Stops the engine on a thread of its own, as that may take as long as the grace.
fn stop_engine(app: &App, grace: Duration) -> oneshot::Receiver<()> {
    let (sender, receiver) = oneshot::channel();
    if let Some(loaded) = app.model() {
        let service = loaded.service.clone();
        let work = move || {
            service.stop(grace);
            // The server may not wait any longer.
            let _ = sender.send(());
        };
        if let Err(error) = thread::Builder::new().spawn(work) {
            log::error!("the engine cannot be stopped in order: {error}");
        }
    }
    receiver
}

/// Ends the server on ctrl-C and SIGTERM.
fn heed_signals(shutdown: Shutdown) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
            let mut signals = signal(kind)?;
            let shutdown = shutdown.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    shutdown.begin();
                }
            });
        }
    }
    #[cfg(not(unix))]
    tokio::spawn(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            shutdown.begin();
        }
    });
    Ok(())
}
