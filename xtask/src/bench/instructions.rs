//! `cargo xtask bench instructions`: how many instructions each step of a request takes, counted by callgrind and compared with
//! the record in the repository. No clock is read and no second run is needed: the same code gives the same counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{build, sh};

/// The record, from the root of the checkout.
const RECORD: &str = "proxy/counts/record.json";
/// Above and below this much, in per cent of what is recorded, the record has to be written anew. Less comes from code that was
/// merely placed otherwise by the compiler.
const LIMIT: u64 = 5;
/// Counted is what happens inside of this function (proxy/src/counts.rs). The pattern is compared with its demangled name.
const COUNTED: &str = "*instructions_counted_here*";

/// Options of `cargo xtask bench instructions`.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Write what was counted into proxy/counts/record.json, to be committed with the change that explains it
    #[arg(long)]
    update: bool,
}

/// What counts depend on beside our code.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MadeWith {
    rustc: String,
    /// Architecture, and what code that chooses at run time finds there.
    processor: String,
    libc: String,
    valgrind: String,
}

/// Counts by name, and what they were made with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    made_with: MadeWith,
    counts: BTreeMap<String, u64>,
}

/// Builds, counts, compares.
pub fn run(options: &Options) -> Result<()> {
    let program = program()?;
    let (processor, names) = list(&program)?;
    let mut counts = BTreeMap::new();
    for name in &names {
        if counts.insert(name.clone(), count(&program, name)?).is_some() {
            bail!("two things that are counted have the name {name}");
        }
    }
    let now = Counts {
        made_with: MadeWith::here(processor)?,
        counts,
    };
    let path = sh::root().join(RECORD);
    let record = match std::fs::read_to_string(&path) {
        Ok(text) => Some(Counts::parse(&text).with_context(|| format!("cannot read {RECORD}"))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {RECORD}")),
    };
    let none = BTreeMap::new();
    let recorded = record.as_ref().map_or(&none, |record| &record.counts);
    let rows = rows(&names, recorded, &now.counts);
    print!("{}", table(&rows));
    if options.update {
        std::fs::write(&path, now.print()).with_context(|| format!("cannot write {RECORD}"))?;
        eprintln!("wrote {RECORD}");
        return Ok(());
    }
    let record = record.with_context(|| format!("{RECORD} is not there; --update writes it"))?;
    judge(&rows, &record.made_with, &now.made_with)
}

/// The program, with the release's profile and dependencies: after a build of the release only the proxy is compiled again. The
/// linker leaves out what no counted function reaches, so it takes less time than the release's.
fn program() -> Result<PathBuf> {
    let mut command = sh::cargo();
    command
        .args(["build", "--locked", "--release", "--package", "agent-fips-proxy"])
        .args(["--features", "counts", "--bin", "instructions"])
        // Nothing here loads the programs.
        .env("AGENT_FIPS_PROXY_SKIP_EBPF", "1");
    sh::run(build::release(&mut command)?)?;
    Ok(build::target().join("release/instructions"))
}

/// The program inside of valgrind. It sees the same arguments and environment everywhere: their length moves the stack, and with
/// it how buffers are aligned.
fn valgrind(program: &Path, options: &[String], words: &[&str]) -> Result<Command> {
    let (Some(folder), Some(name)) = (program.parent(), program.file_name()) else {
        bail!("{} is no program", program.display());
    };
    let mut command = Command::new("valgrind");
    command
        .current_dir(folder)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .args(["--tool=callgrind", "--quiet"])
        .args(options)
        .arg(Path::new(".").join(name))
        .args(words);
    Ok(command)
}

/// What the processor is inside of valgrind, and the names in their order.
fn list(program: &Path) -> Result<(String, Vec<String>)> {
    let options = ["--callgrind-out-file=/dev/null".to_owned()];
    let text = sh::output(&mut valgrind(program, &options, &["list"])?)?;
    let mut lines = text.lines();
    let processor = lines.next().and_then(|line| line.strip_prefix("processor "));
    let processor = processor.context("the program does not say what processor it sees")?;
    let names = lines
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect();
    Ok((processor.to_owned(), names))
}

/// Instructions of one case. callgrind's file stays in `target/bench/instructions`, for callgrind_annotate.
fn count(program: &Path, name: &str) -> Result<u64> {
    let folder = build::target().join("bench/instructions");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("{name}.out"));
    let options = [
        format!("--toggle-collect={COUNTED}"),
        format!("--callgrind-out-file={}", file.display()),
    ];
    sh::output(&mut valgrind(program, &options, &["run", name])?)?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    match total(&text) {
        Some(0) | None => bail!(
            "callgrind counted nothing of {name}: it did not find the function {COUNTED} of proxy/src/counts.rs"
        ),
        Some(count) => Ok(count),
    }
}

/// The sum of a file of callgrind with the one event Ir, instructions.
fn total(text: &str) -> Option<u64> {
    let of = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    if of("events:")?.trim() != "Ir" {
        return None;
    }
    of("totals:")?.trim().parse().ok()
}

impl MadeWith {
    fn here(processor: String) -> Result<Self> {
        let line = |program: &str, argument: &str| {
            let text = sh::output(sh::command(program).arg(argument))?;
            anyhow::Ok(text.trim().to_owned())
        };
        Ok(Self {
            rustc: line("rustc", "--version")?,
            processor,
            libc: sh::output(sh::command("getconf").arg("GNU_LIBC_VERSION"))?
                .trim()
                .to_owned(),
            valgrind: line("valgrind", "--version")?,
        })
    }

    fn facts(&self) -> [(&'static str, &str); 4] {
        [
            ("rustc", &self.rustc),
            ("processor", &self.processor),
            ("libc", &self.libc),
            ("valgrind", &self.valgrind),
        ]
    }

    /// In what the two differ, in words.
    fn differences(&self, now: &Self) -> Vec<String> {
        self.facts()
            .iter()
            .zip(now.facts())
            .filter(|((_, recorded), (_, now))| recorded != now)
            .map(|((what, recorded), (_, now))| {
                format!("{what}: recorded with {recorded}, counted with {now}")
            })
            .collect()
    }
}

impl Counts {
    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let fact = |name: &str| {
            let fact = value["made_with"][name].as_str();
            fact.map(str::to_owned)
                .with_context(|| format!("made_with.{name} is missing"))
        };
        let counts = value["counts"].as_object().context("counts is missing")?;
        Ok(Self {
            made_with: MadeWith {
                rustc: fact("rustc")?,
                processor: fact("processor")?,
                libc: fact("libc")?,
                valgrind: fact("valgrind")?,
            },
            counts: counts
                .iter()
                .map(|(name, count)| {
                    let count = count.as_u64().filter(|count| *count > 0);
                    Ok((
                        name.clone(),
                        count.with_context(|| format!("counts.{name} is no count"))?,
                    ))
                })
                .collect::<Result<_>>()?,
        })
    }

    fn print(&self) -> String {
        let made_with: BTreeMap<_, _> = self.made_with.facts().into_iter().collect();
        let value = json!({ "made_with": made_with, "counts": self.counts });
        format!("{value:#}\n")
    }
}

/// What is to be said of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: String,
    recorded: Option<u64>,
    now: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Grew,
    Shrank,
    New,
    Gone,
}

impl Row {
    fn verdict(&self) -> Verdict {
        match (self.recorded, self.now) {
            (Some(recorded), Some(now)) if now * 100 > recorded * (100 + LIMIT) => Verdict::Grew,
            (Some(recorded), Some(now)) if now * 100 < recorded * (100 - LIMIT) => Verdict::Shrank,
            (Some(_), Some(_)) => Verdict::Good,
            (None, _) => Verdict::New,
            (Some(_), None) => Verdict::Gone,
        }
    }

    /// In hundredths of a per cent, so that nothing is rounded away.
    fn change(&self) -> String {
        match (self.recorded, self.now) {
            (Some(recorded), Some(now)) => {
                let hundredths = (i128::from(now) - i128::from(recorded)) * 10_000 / i128::from(recorded);
                let sign = if now < recorded { '-' } else { '+' };
                let size = hundredths.unsigned_abs();
                format!("{sign}{}.{:02} %", size / 100, size % 100)
            }
            (None, _) => "new".to_owned(),
            (Some(_), None) => "gone".to_owned(),
        }
    }
}

/// A row for every name that is counted, in their order, and for every name that is only recorded.
fn rows(names: &[String], recorded: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<Row> {
    let gone = recorded.keys().filter(|name| !names.contains(name));
    names
        .iter()
        .chain(gone)
        .map(|name| Row {
            name: name.clone(),
            recorded: recorded.get(name).copied(),
            now: now.get(name).copied(),
        })
        .collect()
}

/// Markdown.
fn table(rows: &[Row]) -> String {
    let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let mut text = "| instructions | recorded | now | change |\n|---|---:|---:|---:|\n".to_owned();
    for row in rows {
        let (recorded, now) = (number(row.recorded), number(row.now));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "| {} | {recorded} | {now} | {} |", row.name, row.change());
    }
    text
}

/// Fails when the record is not that of this code.
fn judge(rows: &[Row], recorded: &MadeWith, now: &MadeWith) -> Result<()> {
    let differences = recorded.differences(now);
    for difference in &differences {
        eprintln!("instructions: {difference}");
    }
    if recorded.processor != now.processor {
        bail!(
            "the counts of {RECORD} are those of {}, and this is {}: they cannot be compared here",
            recorded.processor,
            now.processor
        );
    }
    let bad: Vec<String> = rows
        .iter()
        .filter_map(|row| {
            let what = match row.verdict() {
                Verdict::Good => return None,
                Verdict::Grew => "grew",
                Verdict::Shrank => "shrank",
                Verdict::New => "is counted and not recorded",
                Verdict::Gone => "is recorded and not counted",
            };
            Some(format!("{} {what} ({})", row.name, row.change()))
        })
        .collect();
    if bad.is_empty() {
        return Ok(());
    }
    let why = match differences.is_empty() {
        true => String::new(),
        false => format!(
            "\nIt was recorded with something else ({}): that alone may be the reason.",
            differences.join("; ")
        ),
    };
    bail!(
        "{RECORD} is not that of this code, by more than {LIMIT} %: {}.{why}\nWhat is not meant has to go: callgrind_annotate \
         target/bench/instructions/NAME.out shows where instructions are. What is meant goes into the record, with the reason in the \
         commit: cargo xtask bench instructions --update",
        bad.join(", ")
    )
}

#[cfg(test)]
mod tests;
