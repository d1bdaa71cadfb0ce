//! The daemon: builds everything from the configuration, starts it, and stops it in order.
//!
//! Stopping begins nothing more: neither sessions nor attempts. What is being received and what is
//! being delivered is finished side by side, within one time limit, and last the spool is closed.

mod build;
mod gauges;
mod lanes;
mod pauses;
mod reload;
mod systemd;
mod views;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin;
use crate::clock::{Clock, SystemClock};
use crate::config::{self, Config};
use crate::delivery::{self, Scheduler};
use crate::event;
use crate::server;
use crate::spool::{self, SegmentLog, Spool};
use crate::telemetry;

pub use self::build::BuildError;
use self::pauses::Pauses;
use self::reload::Live;

/// Why the daemon did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is wrong; the report says all that is.
    #[error("{0}")]
    Config(config::Report),
    /// A part of it is right by itself and does not work on this machine.
    #[error("{0}")]
    Build(#[from] build::BuildError),
    /// The spool cannot be opened.
    #[error("{0}")]
    Spool(#[from] crate::spool::OpenError),
    /// A listener cannot be opened.
    #[error("{0}")]
    Bind(#[from] server::BindError),
    /// The operator's door cannot be opened.
    #[error("{0}")]
    Admin(#[from] admin::BindError),
    /// The system refused something the daemon cannot run without.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Runs the daemon in the foreground until SIGTERM or SIGINT.
///
/// `started` is told the configuration once mail is taken.
pub fn run(path: &Path, started: impl FnOnce(&Config)) -> Result<(), RunError> {
    let (config, warnings) =
        config::load(path, &config::environment()).map_err(RunError::Config)?;
    let telemetry = telemetry::start(config.log);
    if !warnings.problems.is_empty() {
        event::ConfigWarnings { report: &warnings }.emit();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let result = runtime.block_on(async {
        let daemon = Daemon::start(path, config, telemetry)?;
        started(&daemon.live.config);
        daemon.serve().await
    });
    // Dropping it would wait for every thread that blocks, as for a name server that is silent.
    // The spool is closed by now; nothing else is worth that wait.
    runtime.shutdown_background();
    result
}

/// How long requests at the operator's door may take when all else is done.
const DOOR_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that runs.
struct Daemon {
    live: Live,
    spool: Arc<dyn Spool>,
    /// No more mail comes in.
    close: CancellationToken,
    /// No more attempts start.
    halt: CancellationToken,
    /// The operator's door closes.
    leave: CancellationToken,
    receiving: JoinHandle<io::Result<()>>,
    delivering: JoinHandle<()>,
    administering: JoinHandle<io::Result<()>>,
    socket: PathBuf,
    reloads: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Daemon {
    fn start(
        path: &Path,
        config: Config,
        telemetry: telemetry::Telemetry,
    ) -> Result<Self, RunError> {
        // First of all: uncaught, a SIGHUP would end what a socket already promises to serve.
        let hangup = signal(SignalKind::hangup()).map_err(system("catch SIGHUP"))?;
        let terminate = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let inherited = systemd::inherited().map_err(system("take sockets from systemd"))?;
        // Before the sockets: who starts it twice is told the process, not only the port.
        spool::check_free(&config.spool.path)?;
        let bound = server::bind(&config.listeners, inherited)?;
        let socket = config.admin.socket.clone();
        let live = Live::build(path, config, telemetry)?;
        let spool = open_spool(&live.config, Arc::clone(&clock))?;
        Pauses::of(&live.config.spool.path)
            .restore(&live.plan.load())
            .map_err(system("read pauses.json in the spool"))?;

        let (close, halt, leave) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        open_probes(&live, &spool, &leave)?;
        tokio::spawn(live.telemetry.upkeep());
        // Last of all: a start that fails must not leave a socket that is in the way of the next.
        let door = admin::bind(&socket)?;
        let drain = live.config.delivery.drain_timeout;
        let receiving = tokio::spawn(server::run(
            bound,
            Arc::clone(&live.policy),
            Arc::clone(&spool),
            Arc::clone(&clock),
            close.clone(),
            drain,
        ));
        let scheduler = Scheduler::new(
            Arc::clone(&spool),
            delivery::LEASE,
            Arc::clone(&clock),
            Arc::clone(&live.plan),
            Arc::clone(&live.wake),
        );
        let delivering = tokio::spawn(scheduler.run(halt.clone(), drain));
        let (reload, reloads) = mpsc::channel(1);
        let handles = views::handles(&live, &spool, reload, clock);
        let administering =
            tokio::spawn(admin::serve(door, handles, leave.clone().cancelled_owned()));
        Ok(Self {
            live,
            spool,
            close,
            halt,
            leave,
            receiving,
            delivering,
            administering,
            socket,
            reloads,
            hangup,
            terminate,
            interrupt,
        })
    }

    async fn serve(mut self) -> Result<(), RunError> {
        let _watchdog = systemd::ready();
        event::Started { version: env!("CARGO_PKG_VERSION") }.emit();
        let failed = loop {
            tokio::select! {
                _ = self.terminate.recv() => break None,
                _ = self.interrupt.recv() => break None,
                _ = self.hangup.recv() => {
                    // What came of it is in the log; nobody waits for the answer.
                    let _ = self.reload();
                }
                Some(request) = self.reloads.recv() => {
                    let answer = self.reload();
                    let _ = request.send(answer);
                }
                ended = &mut self.receiving => break Some(ended),
            }
        };
        systemd::stopping();
        event::Stopping.emit();
        // Both at once: one after the other they could take twice the time limit, and whoever stops
        // us kills us meanwhile. What comes in from here on is delivered after the next start.
        self.halt.cancel();
        self.close.cancel();
        let received = match failed {
            Some(ended) => ended,
            None => (&mut self.receiving).await,
        };
        // A task ends abnormally only by a panic, and a panic ends the process.
        let _ = self.delivering.await;
        self.spool.close().await;
        self.leave.cancel();
        // A client that keeps its connection open does not keep the daemon from stopping.
        let _ = tokio::time::timeout(DOOR_TIMEOUT, self.administering).await;
        let _ = std::fs::remove_file(&self.socket);
        event::Stopped.emit();
        match received {
            Ok(result) => result.map_err(system("serve the listeners")),
            Err(join) => Err(system("receive mail")(io::Error::other(join))),
        }
    }

    fn reload(&mut self) -> Result<String, String> {
        systemd::reloading();
        let answer = self.live.reload();
        event::Reloaded { result: &answer }.emit();
        systemd::reloaded();
        answer
    }
}

/// Opens the door for Prometheus, where one is configured.
fn open_probes(
    live: &Live,
    spool: &Arc<dyn Spool>,
    leave: &CancellationToken,
) -> Result<(), RunError> {
    let Some(address) = live.config.metrics.listen else { return Ok(()) };
    let open = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    };
    let listener = open().map_err(|source| server::BindError::Bind { address, source })?;
    let probes = gauges::probes(live, Arc::clone(spool));
    tokio::spawn(admin::serve_probes(listener, probes, leave.clone().cancelled_owned()));
    Ok(())
}

fn open_spool(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<dyn Spool>, RunError> {
    let (spool, recovered) = SegmentLog::open(config.spool.clone(), clock)?;
    for damage in &recovered.damage {
        event::SpoolDamage {
            path: &config.spool.path,
            segment: damage.segment,
            range: damage.range.clone(),
            id: damage.id,
        }
        .emit();
    }
    event::SpoolOpened {
        path: &config.spool.path,
        messages: recovered.messages,
        damaged: recovered.damage.len(),
        without_body: recovered.without_body.len(),
        torn_tail: recovered.torn_tail,
    }
    .emit();
    Ok(Arc::new(spool))
}
