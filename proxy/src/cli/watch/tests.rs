//! What the screen shows, from an answer of a real proxy (`tests/status.json`), at the sizes and in the states that matter.

use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use super::draw::draw;
use super::screen::Screen;
use super::table::{Tab, count};

fn body() -> Value {
    serde_json::from_str(include_str!("tests/status.json")).unwrap()
}

/// An Agent that is taken, one that is not, an interface that is shadowed, and leaks.
fn trouble() -> Value {
    let mut body = body();
    body["ready"] = json!(false);
    body["not_ready"] = json!(["listener metrics on 127.0.0.1:9804: address already in use"]);
    let mut lost = body["interception"]["agents"][0].clone();
    lost["selector"] = json!({"cgroup": "/kubepods.slice/pod1"});
    lost["datapath"] = Value::Null;
    lost["waiting"] = json!(false);
    lost["why"] = json!("the pod's interface eth0 is a netkit device");
    body["interception"]["agents"].as_array_mut().unwrap().push(lost);
    body["interception"]["interfaces"] = json!([{
        "name": "lxc1234", "index": 7, "attached": "netlink", "priority": 10, "handle": 1, "state": "shadowed",
        "detail": "behind cil_from_container: set intercept.classifier_priority below 1, or use TCX",
        "seen": 0, "missed": 120, "reassertions": 0, "tcx": false
    }]);
    body["warnings"] = json!([
        {"level": "error", "what": "LEAKED: cgroup /datadog-agent.service: 3 connections (open_before), the last to 203.0.113.10:443",
         "cure": "docs/OPERATIONS.md, Leaks"},
        {"level": "warning", "what": "listener metrics on 127.0.0.1:9804: address already in use", "cure": null}
    ]);
    body["interception"]["leaked"] = json!([{
        "agent": "cgroup /datadog-agent.service", "reason": "open_before", "connections": 3, "reset": 0,
        "last_destination": "203.0.113.10:443", "last_process": "agent (4711)"
    }]);
    body
}

/// The screen as text, after these looks, a second apart, and these keys.
fn screen(size: (u16, u16), looks: &[Result<Value, String>], keys: &[KeyCode]) -> String {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    let mut screen = Screen::default();
    let start = Instant::now();
    let mut now = start;
    for look in looks {
        now += Duration::from_secs(1);
        screen.take(look.clone(), now);
    }
    for key in keys {
        assert!(!screen.key(KeyEvent::new(*key, KeyModifiers::NONE)));
        terminal.draw(|frame| draw(frame, &mut screen, now)).unwrap();
    }
    now += Duration::from_secs(2);
    terminal.draw(|frame| draw(frame, &mut screen, now)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn rates_are_those_between_two_looks() {
    let mut later = body();
    later["products"][0]["requests"]["ok"] = json!(250);
    later["products"][0]["bytes_up"] = json!(1_258_291);
    later["products"][1]["requests"]["upstream_connect"] = json!(3);
    later["products"][0]["state"] = json!("ok");
    later["products"][0]["recent"]["p50_ms"] = json!(3.21);
    later["products"][0]["recent"]["p99_ms"] = json!(1234.0);
    insta::assert_snapshot!(screen((100, 10), &[Ok(body()), Ok(later)], &[]));
}

#[test]
fn counts_of_another_worker_begin_anew() {
    let mut later = body();
    later["worker"]["pid"] = json!(1);
    let shown = screen((100, 10), &[Ok(body()), Ok(later)], &[]);
    assert!(shown.contains("metrics") && !shown.contains("0B"), "{shown}");
}

#[test]
fn what_is_wrong_stands_above_every_page() {
    for (name, tab) in [
        ("products", '1'),
        ("agents", '2'),
        ("listeners", '4'),
        ("self_tests", '5'),
    ] {
        insta::assert_snapshot!(
            format!("trouble_{name}"),
            screen((100, 16), &[Ok(trouble())], &[KeyCode::Char(tab)])
        );
    }
}

#[test]
fn a_proxy_that_does_not_answer_is_told_and_the_last_look_stays() {
    let why =
        "no proxy answers at /run/agent-fips-proxy/admin.sock (status.socket): is it running?".to_owned();
    insta::assert_snapshot!("never_answered", screen((80, 8), &[Err(why.clone())], &[]));
    insta::assert_snapshot!("answered_before", screen((80, 10), &[Ok(body()), Err(why)], &[]));
    let other = screen((80, 8), &[Ok(json!({"version": "9"}))], &[]);
    assert!(other.contains("of another version"), "{other}");
}

#[test]
fn every_size_is_drawn() {
    for width in [1, 2, 7, 20, 40, 80, 300] {
        for height in [1, 2, 3, 5, 8, 24, 100] {
            for tab in Tab::ALL {
                let digit = char::from_digit(tab as u32 + 1, 10).unwrap();
                screen(
                    (width, height),
                    &[Ok(trouble())],
                    &[KeyCode::Char(digit), KeyCode::PageDown, KeyCode::End],
                );
            }
        }
    }
}

#[test]
fn tables_scroll_within_their_rows() {
    let at = |keys: &[KeyCode]| screen((60, 9), &[Ok(body())], &[&[KeyCode::Char('4')], keys].concat());
    let top = at(&[]);
    assert!(
        top.contains("127.0.0.1:37431") && !top.contains("[::1]:9805"),
        "{top}"
    );
    let end = at(&[KeyCode::End]);
    assert!(
        !end.contains("127.0.0.1:37431") && end.contains("[::1]:9805"),
        "{end}"
    );
    assert_eq!(end, at(&[KeyCode::End, KeyCode::Down, KeyCode::PageDown]));
    assert_eq!(
        top,
        at(&[KeyCode::Down, KeyCode::Up, KeyCode::Up, KeyCode::PageUp])
    );
    assert_eq!(top, at(&[KeyCode::End, KeyCode::Home]));
}

#[test]
fn keys_turn_pages_pause_and_leave() {
    let mut screen = Screen::default();
    let mut press = |code, modifiers| screen.key(KeyEvent::new(code, modifiers));
    assert!(press(KeyCode::Char('q'), KeyModifiers::NONE));
    assert!(press(KeyCode::Esc, KeyModifiers::NONE));
    assert!(press(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert!(!press(KeyCode::Char('c'), KeyModifiers::NONE));
    assert!(!press(KeyCode::Char('9'), KeyModifiers::NONE));
    assert!(!press(KeyCode::BackTab, KeyModifiers::NONE));
    assert_eq!(screen.tab, Tab::SelfTests);
    assert!(!screen.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE)));
    assert_eq!(screen.tab, Tab::Products);
    screen.take(Ok(body()), Instant::now());
    assert!(!screen.key(KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE)));
    screen.take(Err("gone".to_owned()), Instant::now());
    assert_eq!(screen.trouble, None, "paused");
}

#[test]
fn numbers_stay_short() {
    for (n, shown) in [
        (0, "0"),
        (9_999, "9999"),
        (10_000, "10.0k"),
        (999_499, "999k"),
        (999_999, "1.0M"),
        (u64::MAX, "18446744T"),
    ] {
        assert_eq!(count(n), shown);
    }
}
