//! The account of a load: what was lost, doubled, refused or broken is seen, and nothing else is complained about.

use anyhow::Result;
use harness::agent::{Failed, Report};
use harness::intake::{Seen, Session};
use harness::steady::Account;
use harness::{check, check_eq};
use serde_json::{Value, json};

/// One try of a request of the load `a`, as the intake sees it.
fn came(number: u64, tries: u32) -> Seen {
    let here = ([127, 0, 0, 1], 1).into();
    Seen {
        connection: 0,
        local: here,
        peer: here,
        session: Session::default(),
        http: "1.1",
        method: "POST".to_owned(),
        target: "/".to_owned(),
        host: "a".to_owned(),
        headers: vec![
            ("x-test-id".to_owned(), format!("a-{number}")),
            ("x-test-try".to_owned(), tries.to_string()),
        ],
        body_len: 0,
        body_sha256: String::new(),
        faults: Vec::new(),
    }
}

/// What a client of three requests reports.
fn report(again: &Value) -> Report {
    Report(json!({"attempts": 3, "statuses": {"202": 3}, "again": again}))
}

fn judged(seen: Vec<Seen>, report: &Report) -> Result<Vec<harness::steady::Twice>> {
    let mut account = Account::default();
    account.add(seen);
    account.whole("a", report, "")
}

pub fn an_account_sees_what_is_wrong() -> Result<()> {
    let once = || vec![came(0, 0), came(1, 0), came(2, 0)];
    check!(
        judged(once(), &report(&json!({})))?.is_empty(),
        "nothing is wrong"
    );

    let broke = json!({"a-1": [{"why": "closed_without_response", "port": 40001}]});
    let mut seen = once();
    seen.push(came(1, 1));
    let twice = judged(seen, &report(&broke))?;
    check_eq!(twice.len(), 1, "came twice");
    check_eq!(twice[0].id, "a-1", "came twice");
    let failed = Failed {
        why: "closed_without_response".to_owned(),
        port: Some(40001),
    };
    check_eq!(twice[0].failed, [failed], "what became of the first try");
    let second = vec![came(0, 0), came(1, 1), came(2, 0)];
    check!(
        judged(second, &report(&broke))?.is_empty(),
        "the first try never came"
    );

    let mut faulty = once();
    faulty[0].faults.push("body".to_owned());
    let mut odd = once();
    odd.push(came(0, 200));
    let wrong = [
        ("one is lost", vec![came(0, 0), came(1, 0)], json!({})),
        (
            "one try came twice",
            [once(), vec![came(2, 0)]].concat(),
            json!({}),
        ),
        (
            "a try that the client did not make",
            [once(), vec![came(2, 1)]].concat(),
            json!({}),
        ),
        ("the answered try did not come", once(), broke),
        ("a fault", faulty, json!({})),
        ("no number of a try", odd, json!({})),
        (
            "sent again after an answer",
            vec![came(0, 0), came(1, 1), came(2, 0)],
            json!({"a-1": [{"why": "502", "port": 40001}]}),
        ),
        (
            "refused",
            vec![came(0, 0), came(1, 1), came(2, 0)],
            json!({"a-1": [{"why": "connect_ConnectionRefused", "port": null}]}),
        ),
    ];
    for (what, seen, again) in wrong {
        check!(judged(seen, &report(&again)).is_err(), "{what}: not seen");
    }
    let unanswered = Report(json!({"attempts": 3, "statuses": {"202": 2, "503": 1}, "again": {}}));
    check!(
        judged(once(), &unanswered).is_err(),
        "an answer that is no 202: not seen"
    );
    Ok(())
}
