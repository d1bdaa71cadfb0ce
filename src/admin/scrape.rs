//! The door for machines: Prometheus and probes. It shows no mail and changes nothing, so it may be
//! open to more than the operator.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

/// What the door shows.
#[derive(Clone)]
pub struct Probes {
    /// All metrics in Prometheus' text format; must not block.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// Why new mail is refused; `None` when it is not.
    pub refusal: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Serves `/metrics`, `/livez` and `/readyz` until `shutdown` ends.
///
/// `/readyz` is about taking and storing mail. A smarthost that is down never fails it: the queue
/// must go on taking mail just then.
pub async fn serve_probes(
    listener: TcpListener,
    probes: Probes,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(probes);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (probes.metrics)())
}

async fn ready(State(probes): State<Probes>) -> impl IntoResponse {
    match (probes.refusal)() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_shows_metrics_and_whether_mail_is_taken_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let full = Arc::new(AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        let probes = Probes {
            metrics: Arc::new(|| "postgate_queue_bytes 7\n".into()),
            refusal: Arc::new(move || {
                is_full.load(Ordering::SeqCst).then(|| "spool is full".into())
            }),
        };
        tokio::spawn(serve_probes(listener, probes, std::future::pending()));
        assert!(get(address, "/metrics").await.ends_with("\r\n\r\npostgate_queue_bytes 7\n"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        full.store(true, Ordering::SeqCst);
        let refused = get(address, "/readyz").await;
        assert!(refused.starts_with("HTTP/1.1 503") && refused.ends_with("spool is full\n"));
        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/v1/queue").await.starts_with("HTTP/1.1 404"));
    }
}
