//! Closed loop: as many clients as connections on two threads, each of which sends when it was answered.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use super::super::NAME;
use super::wire::{SPACE, complete, failed};
use super::{GRACE, Mode, Plan, Rest, THREADS, Tally};

/// How long a server may take to close what it said it would.
const CLOSE: Duration = Duration::from_secs(5);
/// After a failure, so that a server that refuses is not asked a million times.
const PAUSE: Duration = Duration::from_millis(10);
/// Idle connections are opened by this many clients at once on each thread.
const OPENERS: usize = 16;

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A client and its connection.
struct Client {
    plan: Arc<Plan>,
    stream: Option<Box<dyn Stream>>,
    space: Vec<u8>,
}

/// One of the two threads.
pub(super) fn run(plan: &Arc<Plan>, index: usize, rest: &Rest) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let local = Rc::new(LocalSet::new());
    let share = plan.connections / THREADS + usize::from(index < plan.connections % THREADS);
    if plan.mode == Mode::Idle {
        return idle(plan, share, rest, &runtime, &local);
    }
    let clients: Vec<Client> = (0..share).map(|_| Client::new(plan)).collect();
    let until = Instant::now() + plan.warmup;
    let (mut clients, mut tally) = local.block_on(&runtime, together(clients, until));
    tally.times = super::Histogram::default();
    while let Some(start) = rest.rest(tally) {
        (clients, tally) = local.block_on(&runtime, together(clients, start + plan.window));
    }
    // Closing needs the runtime that the sockets belong to.
    let _guard = runtime.enter();
    drop(clients);
    Ok(())
}

/// Lets all clients work until then; those who are done in time come back.
async fn together(clients: Vec<Client>, until: Instant) -> (Vec<Client>, Tally) {
    let mut tasks = JoinSet::new();
    let wanted = clients.len();
    for mut client in clients {
        tasks.spawn_local(async move {
            let tally = client.work(until).await;
            (client, tally)
        });
    }
    let (mut back, mut all) = (Vec::new(), Tally::default());
    let deadline = tokio::time::Instant::from_std(until + GRACE);
    while let Ok(Some(result)) = tokio::time::timeout_at(deadline, tasks.join_next()).await {
        if let Ok((client, tally)) = result {
            back.push(client);
            all.merge(tally);
        }
    }
    // Each of those has exactly one request in flight.
    let missing = (wanted - back.len()) as u64;
    if missing > 0 {
        all.errors.insert("unanswered".to_owned(), missing);
    }
    (back, all)
}

impl Client {
    fn new(plan: &Arc<Plan>) -> Self {
        Self {
            plan: Arc::clone(plan),
            stream: None,
            space: vec![0; SPACE],
        }
    }

    async fn work(&mut self, until: Instant) -> Tally {
        let mut tally = Tally::default();
        while Instant::now() < until {
            let start = Instant::now();
            let result = self.request().await;
            let good = result.is_ok();
            tally.add(result, start);
            if good && self.plan.mode == Mode::New {
                if let Err(kind) = self.closed().await {
                    *tally.errors.entry(kind).or_default() += 1;
                }
            } else if !good {
                self.stream = None;
                tokio::time::sleep(PAUSE).await;
            }
        }
        tally
    }

    /// Connects if need be, sends one request, reads one answer.
    async fn request(&mut self) -> Result<(), String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(connect(&self.plan).await?),
        };
        stream
            .write_all(&self.plan.request)
            .await
            .map_err(failed("write"))?;
        stream.flush().await.map_err(failed("write"))?;
        let mut filled = 0;
        loop {
            match stream.read(&mut self.space[filled..]).await {
                Ok(0) => return Err("closed without an answer".to_owned()),
                Ok(length) => filled += length,
                Err(error) => return Err(failed("read")(error)),
            }
            if complete(&self.space[..filled])? {
                return Ok(());
            }
        }
    }

    /// Reads the end of a connection that the server has to close: then the waiting time of the port is at its side.
    async fn closed(&mut self) -> Result<(), String> {
        let Some(mut stream) = self.stream.take() else {
            return Ok(());
        };
        match tokio::time::timeout(CLOSE, stream.read(&mut self.space)).await {
            Ok(Ok(0)) => Ok(()),
            // TLS without a farewell, or a reset after the answer: closed all the same.
            Ok(Err(_)) => Ok(()),
            Ok(Ok(_)) => Err("more than one answer".to_owned()),
            Err(_) => Err("not closed".to_owned()),
        }
    }
}

async fn connect(plan: &Plan) -> Result<Box<dyn Stream>, String> {
    let stream = TcpStream::connect(plan.connect)
        .await
        .map_err(failed("connect"))?;
    stream.set_nodelay(true).map_err(failed("connect"))?;
    let Some(config) = &plan.tls else {
        return Ok(Box::new(stream));
    };
    let name = ServerName::try_from(NAME).map_err(|error| error.to_string())?;
    let connecting = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream);
    Ok(Box::new(
        Pin::from(Box::new(connecting)).await.map_err(failed("TLS"))?,
    ))
}

/// Opens the connections, one request on each, rests with all of them open, and closes them.
fn idle(
    plan: &Arc<Plan>,
    share: usize,
    rest: &Rest,
    runtime: &tokio::runtime::Runtime,
    local: &LocalSet,
) -> Result<(), String> {
    let (held, tally) = local.block_on(runtime, async {
        let mut tasks = JoinSet::new();
        for opener in 0..OPENERS.min(share.max(1)) {
            let plan = Arc::clone(plan);
            let count = share / OPENERS + usize::from(opener < share % OPENERS);
            tasks.spawn_local(async move {
                let (mut held, mut tally) = (Vec::new(), Tally::default());
                for _ in 0..count {
                    let mut client = Client::new(&plan);
                    let start = Instant::now();
                    tally.add(client.request().await, start);
                    client.space = Vec::new();
                    held.push(client);
                }
                (held, tally)
            });
        }
        let (mut all, mut sum) = (Vec::new(), Tally::default());
        while let Some(result) = tasks.join_next().await {
            if let Ok((held, tally)) = result {
                all.extend(held);
                sum.merge(tally);
            }
        }
        (all, sum)
    });
    rest.rest(tally);
    // Closing needs the runtime that the sockets belong to.
    let guard = runtime.enter();
    drop(held);
    drop(guard);
    rest.rest(Tally::default());
    Ok(())
}
