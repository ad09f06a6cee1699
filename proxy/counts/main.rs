//! `instructions`: runs one thing that is counted, by its name, inside callgrind. `cargo xtask bench instructions` starts it and
//! reads the counts.

use std::io::{self, Write};
use std::process::ExitCode;

use agent_fips_proxy::counts::cases;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["list"] => list().map_err(|error| error.to_string()),
        ["run", name] => run(name),
        _ => Err("use it as `instructions list` or `instructions run NAME`".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the processor offers to code that chooses at run time, then a line for each case: its name, and what it is.
fn list() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "processor {}", processor())?;
    for case in cases() {
        writeln!(out, "{} {}", case.name, case.what)?;
    }
    Ok(())
}

fn run(name: &str) -> Result<(), String> {
    let case = cases().find(|case| case.name == name);
    let case =
        case.ok_or_else(|| format!("nothing is called {name}; `instructions list` tells the names"))?;
    (case.run)().map_err(|error| format!("{name}: {error}"))
}

/// memchr and httparse have code for AVX2 and take it where it is there. Inside valgrind this is what valgrind emulates: AVX2 on a
/// processor that has it, and never AVX-512.
#[cfg(target_arch = "x86_64")]
fn processor() -> &'static str {
    match std::arch::is_x86_feature_detected!("avx2") {
        true => "x86_64 with AVX2",
        false => "x86_64 without AVX2",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> &'static str {
    std::env::consts::ARCH
}
