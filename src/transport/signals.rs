//! Ctrl-C and SIGTERM: a command that runs on ends in order, within seconds.

use std::io;
use tokio_util::sync::CancellationToken;

/// Returns a token that is cancelled by the first Ctrl-C or SIGTERM. A second one ends the program the hard way.
pub fn token() -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            wait().await;
            cancelled.cancel();
            wait().await;
            std::process::exit(130);
        });
    })?;
    Ok(token)
}

#[cfg(unix)]
async fn wait() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            tracing::error!(%error, "SIGTERM is not listened for");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

#[cfg(not(unix))]
async fn wait() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
