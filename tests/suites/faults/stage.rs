//! The stage of a row: a world with a second intake that breaks, the proxy, and a load through it to the first.

use std::io::Write;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use harness::agent::Load;
use harness::ca::Fault;
use harness::cgroup::MemoryLimit;
use harness::clock::Clock;
use harness::dns::Says;
use harness::held::Held;
use harness::hostile::Hostile;
use harness::proxy::{Launch, Proxy};
use harness::world::{API_KEY, World, hosts, names};
use harness::{check, eventually, succeed};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::client::{Answer, file, send};
use crate::table::{
    Ask, BROKEN4, BROKEN6, Certificate, Dns, Inject, LOG_FOLDER, Leads, NAME, PORT, Place, REFUSING, Row,
    SILENT, SILENT6, Side,
};

/// Clients of the load, and the pause of each between two requests.
const CLIENTS: u64 = 24;
const INTERVAL_MS: &str = "150";

/// A world in which one intake can break.
pub struct Set {
    pub broken: Hostile,
    pub world: World,
}

/// Everything of a row. Fields are dropped in this order.
pub struct Stage<'a> {
    load: Option<Load>,
    pub proxy: Proxy<'a>,
    pub set: &'a Set,
    clock: Option<Clock>,
    /// Connections of clients that a fault is made of.
    pub held: Vec<TcpStream>,
    /// Of [`Place::Memory`].
    pub memory: Option<MemoryLimit>,
    /// Master and worker, as they were at first.
    processes: (Pid, Pid),
    /// Open files of the worker under the load alone.
    pub descriptors_at_first: usize,
    asked: u32,
}

impl Set {
    /// The usual world, with the addresses that rows speak of.
    pub fn new(leads: Leads) -> Result<Self> {
        let world = World::new()?;
        for address in [BROKEN4, REFUSING] {
            world.net.ip(&format!("address add {address}/32 dev lo"))?;
        }
        world.net.ip(&format!("address add {BROKEN6}/128 dev lo nodad"))?;
        // Nobody says that there is nobody.
        world.net.ip(&format!("route add blackhole {SILENT}/32"))?;
        world.net.ip(&format!("-6 route add blackhole {SILENT6}/128"))?;
        let leaf = world.authority.leaf(&names(), Fault::None)?;
        let broken = Hostile::start(&world.net, &[BROKEN4, BROKEN6], &leaf)?;
        let set = Self { broken, world };
        set.lead(leads)?;
        Ok(set)
    }

    /// Where [`NAME`] leads from now on.
    pub fn lead(&self, leads: Leads) -> Result<()> {
        let mut known = hosts();
        known.retain(|(name, _)| name != NAME);
        match leads {
            Leads::Hosts(ips) => known.extend(ips.iter().map(|ip| (NAME.to_owned(), *ip))),
            Leads::Dns(ips, ttl) => self.says(addresses(ips, ttl, Duration::ZERO))?,
        }
        self.world.host.set_names(&known)
    }

    /// What the name server says from now on.
    pub fn says(&self, says: Says) -> Result<()> {
        let server = self.world.name_server.as_ref().context("no name server")?;
        server.says(says);
        Ok(())
    }

    /// The settings of a row.
    pub fn config(&self, row: &Row) -> Result<Value> {
        let mut config = self.world.config();
        // Longer than a busy machine needs for the load.
        config["upstream"]["connect_timeout"] = json!("20s");
        config["upstream"]["response_timeout"] = json!("20s");
        if row.warm {
            // Each data thread has connections of its own.
            config["worker"]["threads"] = json!(1);
        }
        for (path, value) in row.settings {
            let (folder, key) = path.rsplit_once('.').context("a path has two parts")?;
            let mut at = &mut config;
            for part in folder.split('.') {
                at = &mut at[part];
            }
            at[key] = serde_json::from_str(value).with_context(|| format!("{path}: {value}"))?;
        }
        Ok(config)
    }

    /// The proxy with a row's settings, and the load.
    pub fn stage(&self, row: &Row) -> Result<Stage<'_>> {
        self.stage_with(row, &self.config(row)?)
    }

    /// The same with other settings.
    pub fn stage_with(&self, row: &Row, config: &Value) -> Result<Stage<'_>> {
        let host = &self.world.host;
        let launch = Launch::new(host).config(config)?;
        let mut memory = None;
        let launch = match row.place {
            Place::Usual => launch,
            Place::LogFile => {
                let mount = format!("mkdir {LOG_FOLDER} && mount -t tmpfs -o size=8m afp-logs {LOG_FOLDER}");
                succeed(host.command("sh").args(["-ec", &mount]))?;
                let log = format!("exec \"$@\" 2>>{LOG_FOLDER}/log");
                launch.through(&["sh", "-c", &log, "sh"])
            }
            Place::Memory(mib) => {
                let limit = memory.insert(MemoryLimit::new(mib << 20)?);
                let procs = limit.path().join("cgroup.procs").display().to_string();
                launch.through(&["sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", &procs])
            }
        };
        let proxy = launch.start()?;
        let processes = (proxy.pid(), proxy.worker()?);
        let mut stage = Stage {
            load: None,
            proxy,
            set: self,
            clock: None,
            held: Vec::new(),
            memory,
            processes,
            descriptors_at_first: 0,
            asked: 0,
        };
        let per_connection = match row.load {
            crate::table::Load::Turns => "20",
            crate::table::Load::Keeps => "1000000",
        };
        let words = [
            "--url",
            "http://127.0.0.1:9804/api/v2/series",
            "--clients",
            &CLIENTS.to_string(),
            "--interval-ms",
            INTERVAL_MS,
            "--per-connection",
            per_connection,
            "--body",
            "300",
            "--api-key",
            API_KEY,
        ];
        stage.load = Some(Load::start(&self.world.host, None, &words)?);
        eventually("a load", Duration::from_secs(20), || {
            Ok((self.world.intake.count() as u64 > 2 * CLIENTS).then_some(()))
        })
        .with_context(|| stage.proxy.log())?;
        stage.descriptors_at_first = stage.descriptors()?;
        Ok(stage)
    }
}

impl Stage<'_> {
    /// One request of the product that breaks.
    pub fn ask(&mut self, ask: Ask) -> Result<Answer> {
        self.asked += 1;
        let id = format!("x-test-id: fault-{}", self.asked);
        send(
            &self.set.world.host,
            ask,
            &id,
            &format!("http://127.0.0.1:{PORT}/api/v2/profile"),
        )
    }

    /// The fault begins.
    pub fn begin(&mut self, inject: &Inject) -> Result<()> {
        let broken = &self.set.broken;
        match inject {
            Inject::Nothing | Inject::Whole(_) => Ok(()),
            Inject::Play(script, times) => {
                broken.play(script, *times);
                Ok(())
            }
            Inject::HangUp(how) => {
                broken.hang_up(*how);
                // Until it has happened: a thread looks every 20 ms.
                std::thread::sleep(Duration::from_millis(200));
                Ok(())
            }
            Inject::Certificate(certificate) => self.certificate(*certificate),
            Inject::Script { side, begin, .. } => self.script(*side, begin),
            Inject::Dns(dns) => {
                // What was learnt is kept for this long whatever its TTL.
                std::thread::sleep(Duration::from_secs(6));
                // Who has a connection needs no address.
                self.restart();
                self.set.says(match dns {
                    Dns::Silence => Says::Silence,
                    Dns::Failure => Says::Failure,
                    Dns::Garbage => Says::Garbage,
                    Dns::Unknown => Says::Unknown,
                    Dns::Leads(ips) => addresses(ips, 1, Duration::ZERO),
                    Dns::Slow(ms) => addresses(&[BROKEN4], 1, Duration::from_millis(*ms)),
                })
            }
            Inject::Clock(seconds) => self.clock()?.shift(*seconds),
            Inject::Own { begin, .. } => begin(self),
        }
    }

    /// The fault ends.
    pub fn end(&mut self, inject: &Inject, leads: Leads) -> Result<()> {
        match inject {
            Inject::Nothing | Inject::Whole(_) | Inject::HangUp(_) => Ok(()),
            Inject::Play(..) => {
                self.set.broken.behave();
                Ok(())
            }
            Inject::Certificate(_) => self.certificate(Certificate::Good),
            Inject::Script { side, end, .. } => self.script(*side, end),
            Inject::Dns(_) => self.set.lead(leads),
            Inject::Clock(_) => self.clock()?.shift(0),
            Inject::Own { end, .. } => end(self),
        }
    }

    /// The worker's clock.
    fn clock(&mut self) -> Result<&Clock> {
        if self.clock.is_none() {
            self.clock = Some(Clock::of(self.processes.1)?);
        }
        self.clock.as_ref().context("no clock")
    }

    /// The intake starts again with such a certificate.
    fn certificate(&self, certificate: Certificate) -> Result<()> {
        let authority = &self.set.world.authority;
        let all = names();
        let leaf = match certificate {
            Certificate::Good => authority.leaf(&all, Fault::None)?,
            Certificate::Expired => authority.leaf(&all, Fault::Expired)?,
            Certificate::OtherAuthority => authority.leaf(&all, Fault::UnknownAuthority)?,
            Certificate::OtherName => authority.leaf(&all, Fault::WrongName)?,
            Certificate::Ends => {
                let ends = self.certificate_for(Duration::from_secs(6))?;
                // A session, and what is needed to resume it, from before the end.
                let answer = self.warm()?;
                check!(answer.status == 202, "before the certificate ends: {answer:?}");
                let rest = ends.duration_since(SystemTime::now()).unwrap_or_default();
                std::thread::sleep(rest + Duration::from_secs(2));
                self.restart();
                return Ok(());
            }
        };
        self.set.broken.certificate(&leaf)?;
        self.restart();
        Ok(())
    }

    /// The intake starts again with a certificate that ends then.
    pub fn certificate_for(&self, time: Duration) -> Result<SystemTime> {
        let ends = SystemTime::now() + time;
        let leaf = self
            .set
            .world
            .authority
            .leaf_until(&names(), Fault::None, Some(ends))?;
        self.set.broken.certificate(&leaf)?;
        self.restart();
        Ok(ends)
    }

    /// The intake's idle connections end.
    pub fn restart(&self) {
        self.set.broken.hang_up(harness::hostile::HangUp::Gently);
        std::thread::sleep(Duration::from_millis(200));
    }

    /// A request before the fault.
    pub fn warm(&self) -> Result<Answer> {
        let url = format!("http://127.0.0.1:{PORT}/warm");
        send(&self.set.world.host, Ask::Get, "x-test-id: warm", &url)
    }

    /// Open files of the worker.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(usize::try_from(Held::of(self.processes.1)?.descriptors)?)
    }

    /// The worker's memory in RAM, in bytes.
    pub fn resident(&self) -> Result<u64> {
        Ok(Held::of(self.processes.1)?.rss << 10)
    }

    /// Connections of so many clients to the product that breaks, each with this sent; held until the fault ends.
    pub fn hold(&mut self, count: usize, sent: &[u8]) -> Result<()> {
        let made = self.set.world.host.within(|| {
            let connect = |_| -> Result<TcpStream> {
                let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
                stream.write_all(sent)?;
                Ok(stream)
            };
            (0..count).map(connect).collect::<Result<Vec<_>>>()
        })?;
        self.held.extend(made);
        Ok(())
    }

    /// So many requests at once.
    pub fn ask_at_once(&mut self, count: u32, ask: Ask) -> Result<Vec<Answer>> {
        let first = self.asked + 1;
        self.asked += count;
        // Made before several need it.
        if let Ask::Post(length) | Ask::Expect(length) = ask {
            file(&self.set.world.host, length)?;
        }
        let host = &self.set.world.host;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (first..first + count)
                .map(|number| {
                    let id = format!("x-test-id: fault-{number}");
                    scope.spawn(move || {
                        send(host, ask, &id, &format!("http://127.0.0.1:{PORT}/api/v2/profile"))
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined
                .map(|answer| answer.map_err(|_| anyhow::anyhow!("a client panicked"))?)
                .collect()
        })
    }

    /// `sh` on one side.
    pub fn script(&self, side: Side, script: &str) -> Result<()> {
        let host = match side {
            Side::Host => &self.set.world.host,
            Side::Net => &self.set.world.net,
        };
        succeed(host.command("sh").args(["-ec", script])).map(drop)
    }

    /// Master and worker, as they were at first.
    pub fn processes(&self) -> (Pid, Pid) {
        self.processes
    }

    /// Ends the load; what it counted.
    pub fn finish(&mut self) -> Result<harness::agent::Report> {
        self.load.take().context("no load")?.finish()
    }
}

fn addresses(ips: &[IpAddr], ttl: u32, delay: Duration) -> Says {
    Says::Addresses {
        name: NAME.to_owned(),
        ips: ips.to_vec(),
        ttl,
        delay,
    }
}
