//! The comparison, on both sides of its limit; what is read of callgrind and of the record.

use super::*;

fn made_with() -> MadeWith {
    MadeWith {
        rustc: "rustc 1.95.0".to_owned(),
        processor: "x86_64 with AVX2".to_owned(),
        libc: "glibc 2.36".to_owned(),
        valgrind: "valgrind-3.19.0".to_owned(),
    }
}

fn counts(all: &[(&str, u64)]) -> BTreeMap<String, u64> {
    all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

/// What the gate says when `recorded` became `now`.
fn gate(recorded: &[(&str, u64)], now: &[(&str, u64)]) -> Result<()> {
    let names: Vec<String> = now.iter().map(|(name, _)| (*name).to_owned()).collect();
    judge(
        &rows(&names, &counts(recorded), &counts(now)),
        &made_with(),
        &made_with(),
    )
}

#[test]
fn a_growth_of_more_than_five_per_cent_fails() {
    for (now, good) in [
        (949, false),
        (950, true),
        (1000, true),
        (1050, true),
        (1051, false),
    ] {
        let result = gate(&[("a", 1000), ("b", 7)], &[("a", now), ("b", 7)]);
        assert_eq!(result.is_ok(), good, "{now}");
        if let Err(error) = result {
            let error = error.to_string();
            assert!(
                error.contains(if now > 1000 {
                    "a grew (+5.10 %)"
                } else {
                    "a shrank (-5.10 %)"
                }),
                "{error}"
            );
            assert!(error.contains("--update") && !error.contains("b "), "{error}");
        }
    }
}

#[test]
fn a_name_that_is_new_or_gone_fails() {
    let error = gate(&[("a", 1)], &[("a", 1), ("b", 1)]).unwrap_err().to_string();
    assert!(error.contains("b is counted and not recorded"), "{error}");
    let error = gate(&[("a", 1), ("b", 1)], &[("a", 1)]).unwrap_err().to_string();
    assert!(error.contains("b is recorded and not counted"), "{error}");
}

#[test]
fn another_compiler_is_told_and_another_processor_is_not_compared() {
    let rows = rows(&["a".to_owned()], &counts(&[("a", 100)]), &counts(&[("a", 110)]));
    let other = MadeWith {
        rustc: "rustc 1.96.0".to_owned(),
        ..made_with()
    };
    let error = judge(&rows, &made_with(), &other).unwrap_err().to_string();
    assert!(
        error.contains("recorded with rustc 1.95.0, counted with rustc 1.96.0"),
        "{error}"
    );
    let other = MadeWith {
        processor: "aarch64".to_owned(),
        ..made_with()
    };
    let error = judge(&[], &made_with(), &other).unwrap_err().to_string();
    assert!(error.contains("cannot be compared"), "{error}");
}

#[test]
fn the_sum_of_callgrind_is_read() {
    let text = "version: 1\nevents: Ir\nsummary: 1\n\nfn=(1) x\n0 7\ntotals: 1234\n";
    assert_eq!(total(text), Some(1234));
    assert_eq!(total(&text.replace("Ir", "Ir Dr")), None);
    assert_eq!(total("events: Ir\n"), None);
}

#[test]
fn the_record_is_read_as_it_is_written() {
    let written = Counts {
        made_with: made_with(),
        counts: counts(&[("a", 1), ("b", 2)]),
    };
    assert_eq!(Counts::parse(&written.print()).unwrap(), written);
    for bad in [
        written.print().replace("\"a\": 1", "\"a\": 0"),
        written.print().replace("\"a\": 1", "\"a\": \"x\""),
        written.print().replace("rustc\"", "compiler\""),
        "{}".to_owned(),
    ] {
        assert!(Counts::parse(&bad).is_err(), "{bad}");
    }
}

#[test]
fn changes_are_shown_with_their_sign() {
    let row = |recorded, now| Row {
        name: "a".to_owned(),
        recorded,
        now,
    };
    let text = table(&[
        row(Some(2000), Some(1999)),
        row(Some(2000), Some(2101)),
        row(None, Some(5)),
        row(Some(5), None),
    ]);
    let lines: Vec<&str> = text.lines().skip(2).collect();
    assert_eq!(
        lines,
        [
            "| a | 2000 | 1999 | -0.05 % |",
            "| a | 2000 | 2101 | +5.05 % |",
            "| a | - | 5 | new |",
            "| a | 5 | - | gone |",
        ]
    );
}
