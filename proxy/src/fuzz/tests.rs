//! The corpora hold without an engine, in every run of the tests: what was found once is tested for ever.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use super::TARGETS;

/// The package of the programs.
fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
}

fn names(folder: &str, ending: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(package().join(folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .map(|name| name.strip_suffix(ending).unwrap().to_owned())
        .collect()
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(targets.len(), TARGETS.len());
    assert_eq!(names("fuzz_targets", ".rs"), targets);
    assert_eq!(names("corpus", ""), targets);
    for name in &targets {
        let program = fs::read_to_string(package().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(
            program.contains(&format!("agent_fips_proxy::fuzz::{name}(bytes)")),
            "{name}"
        );
    }
}

#[test]
fn every_input_of_every_corpus_holds() {
    let mut broken = Vec::new();
    for (target, run) in TARGETS {
        let inputs = names(&format!("corpus/{target}"), "");
        assert!(!inputs.is_empty(), "the corpus of {target} is empty");
        for input in inputs {
            let path = package().join("corpus").join(target).join(&input);
            let bytes = fs::read(&path).unwrap();
            if catch_unwind(|| run(&bytes)).is_err() {
                broken.push(format!("tests/fuzz/corpus/{target}/{input}"));
            }
        }
    }
    assert!(broken.is_empty(), "what broke stands above: {broken:#?}");
}

#[test]
fn pieces_are_the_bytes() {
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let mut lengths = BTreeSet::new();
    for seed in 0..64 {
        let (pieces, whole) = super::Pieces::of(&bytes[seed..]);
        let pieces: Vec<&[u8]> = pieces.collect();
        assert_eq!(pieces.concat(), whole);
        lengths.extend(pieces.iter().map(|piece| piece.len()));
    }
    assert!(
        lengths.first() == Some(&1) && lengths.last().is_some_and(|most| (200..=256).contains(most)),
        "{lengths:?}"
    );
}
