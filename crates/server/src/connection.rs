//! Connections: one task each, HTTP/1.1, with a bound on how long a client may stall.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

/// A socket whose writes fail once the client has taken nothing for a while.
struct Patient {
    socket: TcpStream,
    stall: Duration,
    /// Runs while a write waits.
    waits: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn bounded<T>(
        &mut self,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let done = write(Pin::new(&mut self.socket), context);
        if done.is_ready() {
            self.waits = None;
            return done;
        }

        let ends = Instant::now() + self.stall;
        let waits = self
            .waits
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(ends)));
        match waits.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bounded(context, |socket, context| socket.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.bounded(context, |socket, context| {
            socket.poll_write_vectored(context, slices)
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.bounded(context, |socket, context| socket.poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Answers the requests of a connection until the client closes it or `is_draining` becomes true
/// and the present answer is out. One that begins during draining has a single answer.
pub(crate) async fn serve(
    socket: TcpStream,
    router: Router,
    stall: Duration,
    mut is_draining: watch::Receiver<bool>,
) {
    // Events are small, and each is to arrive at once.
    let _ = socket.set_nodelay(true);
    let io = TokioIo::new(Patient {
        socket,
        stall,
        waits: None,
    });
    let begins_late = *is_draining.borrow();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(stall)
        .keep_alive(!begins_late)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);

    let drains = async {
        // An error means that the server has ended; then this task is aborted.
        let _ = is_draining.wait_for(|is_draining| *is_draining).await;
    };
    let result = if begins_late {
        connection.await
    } else {
        tokio::select! {
            result = connection.as_mut() => result,
            () = drains => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = result {
        log::debug!("a connection ended: {error}");
    }
}
