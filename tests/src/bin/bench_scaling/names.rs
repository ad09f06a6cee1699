//! What the name servers are asked: a name server of our own answers, and counts.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent_fips_proxy::catalog::Catalog;
use anyhow::Result;
use harness::cgroup::Cgroup;
use harness::proxy::Launch;
use harness::world::{SITE, Setup, World};
use serde_json::json;

use crate::fit::{Table, number};

/// What the name servers are asked, by a name server that answers everything and counts.
pub fn names() -> Result<Vec<Table>> {
    const TTL: u32 = 30;
    let world = World::with(Setup {
        name_server: false,
        ..Setup::default()
    })?;
    world.host.set_names(&[])?;
    let socket = world.host.within(|| Ok(UdpSocket::bind("127.0.0.1:53")?))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (asked, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, until) = (Arc::clone(&asked), Arc::clone(&stop));
    let server = std::thread::spawn(move || {
        let mut query = [0; 512];
        while !until.load(Ordering::Relaxed) {
            let Ok((length, client)) = socket.recv_from(&mut query) else {
                continue;
            };
            if let Some(answer) = answer(&query[..length], TTL) {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&answer, client);
            }
        }
    });
    let agent = Cgroup::new("agent")?;
    let mut config = world.intercepting(&agent);
    config["intercept"]["agents"]["pods"] = json!({"api": "off"});
    let proxy = Launch::new(&world.host).config(&config)?.start()?;
    let mut table = Table::new(
        "Questions to the name servers",
        "seconds since the start",
        &["questions", "intake names"],
        "Intake names of the site that are resolved for the kernel's table: A and AAAA each, again when the TTL is over (here 30 s; the \
         proxy keeps within 30 s to 5 min). No request is served meanwhile.",
    );
    let site = SITE.parse().map_err(anyhow::Error::msg)?;
    let names = number(Catalog::new(&site).names().len());
    let start = Instant::now();
    for seconds in [5, 45, 85] {
        let at = start + Duration::from_secs(seconds);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let questions = f64::from(asked.load(Ordering::Relaxed));
        table.add(usize::try_from(seconds)?, vec![questions, names]);
    }
    drop(proxy);
    stop.store(true, Ordering::Relaxed);
    let _ = server.join();
    Ok(vec![table])
}

/// RFC 1035: the same question with one A record, or none for other types.
fn answer(query: &[u8], ttl: u32) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
    let mut answer = query.get(..end)?.to_vec();
    let is_a = answer[end - 4..end - 2] == [0, 1];
    // A response, recursion available, no error; counts of answers, authorities and additional records.
    answer[2] |= 0x80;
    answer[3] = 0x80;
    answer[6..12].copy_from_slice(&[0, u8::from(is_a), 0, 0, 0, 0]);
    if is_a {
        // The name by a pointer to the question, A, IN.
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(Ipv4Addr::new(203, 0, 113, 10).octets());
    }
    Some(answer)
}
