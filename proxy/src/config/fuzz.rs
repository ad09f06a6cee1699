//! What is fuzzed of the configuration. See [`crate::fuzz`].
#![expect(clippy::panic, reason = "that is how a finding is reported")]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Inputs, Loaded, Paths, Source, load, show};

thread_local! {
    static FILES: RefCell<Option<[Nameless; 2]>> = const { RefCell::new(None) };
}

/// See [`crate::fuzz::configuration`].
pub(crate) fn configuration(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let [file, environment] = [parts.next(), parts.next()].map(Option::unwrap_or_default);
    let first = match loaded(file, environment) {
        Ok(Ok(first)) => first,
        Ok(Err(errors)) => {
            assert!(!errors.0.is_empty() && !errors.to_string().is_empty());
            return;
        }
        Err(error) => panic!("no file to read from: {error}"),
    };
    let shown = show(&first);
    assert!(first.settings.iter().all(|setting| shown.contains(&setting.key)));
    let written = written(&first);
    match loaded(written.as_bytes(), b"") {
        Ok(Ok(second)) => {
            assert_eq!(first.config, second.config, "{written}");
            assert_eq!(placeless(&first), placeless(&second), "{written}");
        }
        other => panic!("what is shown is refused: {other:?}\n{written}"),
    }
}

/// The warnings without their places, which are others in what was written.
fn placeless(loaded: &Loaded) -> Vec<String> {
    let place = |warning: &String| match warning.split_once(" (/proc/self/fd/") {
        Some((before, rest)) => before.to_owned() + rest.split_once(')').map_or("", |(_, after)| after),
        None => warning.clone(),
    };
    loaded.warnings.iter().map(place).collect()
}

/// What was set, as a file in which every value stands as it is shown.
fn written(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut open: Vec<&str> = Vec::new();
    for setting in &loaded.settings {
        if setting.source == Source::Default {
            continue;
        }
        let mut headings: Vec<&str> = setting.key.split('.').collect();
        let name = headings.pop().unwrap_or_default();
        let common = open.iter().zip(&headings).take_while(|(a, b)| a == b).count();
        for (depth, heading) in headings.iter().enumerate().skip(common) {
            text.push_str(&format!("{}{heading}:\n", "  ".repeat(depth)));
        }
        text.push_str(&format!(
            "{}{name}: {}\n",
            "  ".repeat(headings.len()),
            setting.value
        ));
        open = headings;
    }
    text
}

fn loaded(file: &[u8], environment: &[u8]) -> io::Result<Result<Loaded, super::ConfigErrors>> {
    FILES.with_borrow_mut(|files| {
        let files = match files {
            Some(files) => files,
            None => files.insert([Nameless::new()?, Nameless::new()?]),
        };
        files[0].fill(file)?;
        files[1].fill(environment)?;
        Ok(load(&Inputs {
            file: Some(files[0].path.clone()),
            env_file: Some(files[1].path.clone()),
            defaults: Paths::default(),
            ..Inputs::default()
        }))
    })
}

/// A file in memory without a name, which is gone when we are, however we end.
struct Nameless {
    file: File,
    /// By which it can be opened all the same.
    path: PathBuf,
}

impl Nameless {
    fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"settings", MFdFlags::MFD_CLOEXEC)?);
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(Self { file, path })
    }

    fn fill(&self, bytes: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(bytes, 0)
    }
}
