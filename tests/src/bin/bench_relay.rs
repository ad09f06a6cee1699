//! `bench-relay`: the relay benchmark (`harness::bench`), and the roles of which it is made. `cargo xtask bench` runs it.
//!
//! `bench-relay run [--workloads W1,W3] [--peers ours,haproxy] [--rounds 3] [--seconds 5] [--json PATH] [--gate]`;
//! `AGENT_FIPS_PROXY_BIN` is ours, `BENCH_ENVOY` the Python environment that has Envoy. The roles `backend` and `load` are started by
//! it. Exit code 1: a goal was missed under `--gate`; 2: it could not be measured.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use harness::bench::options::Words;
use harness::bench::{backend, load, run};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match role(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("bench-relay: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn role(words: &[String]) -> Result<bool> {
    let (role, words) = words.split_first().context("which role? run, backend or load")?;
    match role.as_str() {
        "run" => run::run(words),
        "load" => load::run(words).map(|()| true),
        "backend" => {
            let words = Words::parse(words, &["listen", "pem"], &[])?;
            let address = words.get("listen").context("--listen is missing")?.parse()?;
            let pem = words.get("pem").context("--pem is missing")?;
            backend::serve(address, pem.as_ref()).map(|()| true)
        }
        other => bail!("no role `{other}`: run, backend or load"),
    }
}
