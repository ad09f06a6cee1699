//! Following pods, against an API server of ours: real TLS with an IP address as its name, list and watch as Kubernetes
//! does them, and every way that it can fail.
#![expect(
    clippy::disallowed_methods,
    reason = "the server of a test is not one of ours"
)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use agent_fips_proxy::config::TlsPolicy;
use agent_fips_proxy::kubernetes::{self, Reach};
use agent_fips_proxy::supervise::protocol::Pods;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;
use serde_json::{Value, json};

const TOKEN: &str = "canary-token-7f3a";
const SELECTOR: &str = "agent.datadoghq.com/component=agent";

type Session = StreamOwned<ServerConnection, TcpStream>;

/// What a watch does after its head.
enum Watch {
    /// Sends these lines, then more from the channel; ends in order with its sender.
    Lines(mpsc::Receiver<String>),
    /// Breaks the connection off.
    Cut,
}

#[derive(Default)]
struct Script {
    /// Answers to lists; the last one stays.
    lists: VecDeque<(u16, String)>,
    /// Answers to watches; without one a watch is quiet for ever.
    watches: VecDeque<Watch>,
    /// Every request line and token.
    seen: Vec<(String, String)>,
}

struct Api {
    reach: Reach,
    script: Arc<Mutex<Script>>,
    folder: tempfile::TempDir,
}

impl Api {
    fn start() -> Self {
        Self::with(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Its certificate is for `name`; it listens on 127.0.0.1.
    fn with(name: IpAddr) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(Vec::new()).unwrap();
        leaf.subject_alt_names = vec![SanType::IpAddress(name)];
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key);
        let server = Arc::new(server.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = Arc::clone(&script);
        // Ends with the test process: `accept` cannot be woken without a connection.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let session = ServerConnection::new(Arc::clone(&server)).unwrap();
                let script = Arc::clone(&shared);
                std::thread::spawn(move || serve(StreamOwned::new(session, stream), &script));
            }
        });
        let reach = Reach {
            host: "127.0.0.1".to_owned(),
            port,
            service_account: folder.path().to_owned(),
            node: "node-1".to_owned(),
            label_selector: SELECTOR.to_owned(),
            tls_policy: TlsPolicy::Fips,
        };
        Self {
            reach,
            script,
            folder,
        }
    }

    fn list(&self, status: u16, body: &impl ToString) {
        let body = body.to_string();
        self.script.lock().unwrap().lists.push_back((status, body));
    }

    fn watch(&self) -> mpsc::Sender<String> {
        let (lines, coming) = mpsc::channel();
        self.script
            .lock()
            .unwrap()
            .watches
            .push_back(Watch::Lines(coming));
        lines
    }

    fn seen(&self) -> Vec<(String, String)> {
        self.script.lock().unwrap().seen.clone()
    }

    /// Follows in the background.
    fn follow(&self) -> tokio::sync::mpsc::UnboundedReceiver<Pods> {
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let reach = self.reach.clone();
        tokio::spawn(async move { kubernetes::watch(&reach, |pods| drop(tell.send(pods))).await });
        told
    }
}

/// Requests of one connection.
fn serve(session: Session, script: &Mutex<Script>) {
    let mut reader = BufReader::new(session);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(1..) if line != "\r\n" => head.push(line.trim_end().to_owned()),
                Ok(1..) => break,
                // The client left, or did not like our certificate.
                _ => return,
            }
        }
        let token = head
            .iter()
            .find_map(|line| line.strip_prefix("authorization: "))
            .unwrap_or_default()
            .to_owned();
        let watching = head[0].contains("watch=");
        let mut script = script.lock().unwrap();
        script.seen.push((head[0].clone(), token));
        if !watching {
            let (status, body) = match script.lists.len() {
                0 => (200, list(&[])),
                1 => script.lists[0].clone(),
                _ => script.lists.pop_front().unwrap(),
            };
            drop(script);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        let next = script.watches.pop_front();
        drop(script);
        let out = reader.get_mut();
        out.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        match next {
            None => loop {
                std::thread::park();
            },
            Some(Watch::Cut) => return,
            Some(Watch::Lines(lines)) => {
                for line in lines {
                    let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
                    if out.write_all(chunk.as_bytes()).is_err() {
                        return;
                    }
                }
                if out.write_all(b"0\r\n\r\n").is_err() {
                    return;
                }
            }
        }
    }
}

fn pod(uid: &str) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadata",
        "metadata": {"uid": uid, "name": format!("agent-{uid}"), "namespace": "monitoring", "resourceVersion": "11"},
    })
}

fn list(uids: &[&str]) -> String {
    let items: Vec<Value> = uids.iter().map(|uid| pod(uid)).collect();
    json!({
        "apiVersion": "meta.k8s.io/v1",
        "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": "10"},
        "items": items,
    })
    .to_string()
}

fn event(kind: &str, uid: &str) -> String {
    json!({"type": kind, "object": pod(uid)}).to_string()
}

fn status(code: u16, message: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": "Test"})
}

fn uids(pods: &Pods) -> Vec<&str> {
    pods.found.iter().map(|pod| pod.uid.as_str()).collect()
}

/// The pod that stands in the API for a static one.
fn mirror(uid: &str, hash: &str) -> Value {
    let mut pod = pod(uid);
    pod["metadata"]["annotations"] = json!({
        "kubernetes.io/config.hash": hash,
        "kubernetes.io/config.mirror": hash,
        "kubernetes.io/config.seen": "2026-11-22T00:00:00Z",
        "kubernetes.io/config.source": "file",
    });
    pod
}

type Told = tokio::sync::mpsc::UnboundedReceiver<Pods>;

/// The next report for which `wanted` holds.
async fn until(told: &mut Told, wanted: impl Fn(&Pods) -> bool) -> Pods {
    let mut last = None;
    let next = async {
        loop {
            let pods = told.recv().await.unwrap();
            if wanted(&pods) {
                return pods;
            }
            last = Some(pods);
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), next).await;
    found.unwrap_or_else(|_| panic!("the last report: {last:?}"))
}

async fn until_uids(told: &mut Told, wanted: &[&str]) -> Pods {
    until(told, |pods| pods.synced && uids(pods) == wanted).await
}

#[tokio::test]
async fn pods_come_and_go_as_the_server_tells() {
    let api = Api::start();
    api.list(200, &list(&["b", "a"]));
    let watch = api.watch();
    let mut told = api.follow();
    let first = told.recv().await.unwrap();
    assert!(first.synced && first.problem.is_none());
    assert_eq!(uids(&first), ["a", "b"]);
    assert_eq!(
        (first.found[0].namespace.as_str(), first.found[0].name.as_str()),
        ("monitoring", "agent-a")
    );
    watch.send(event("ADDED", "c")).unwrap();
    until_uids(&mut told, &["a", "b", "c"]).await;
    watch.send(event("MODIFIED", "c")).unwrap();
    // A pod that lost its label is DELETED for this selector.
    watch.send(event("DELETED", "a")).unwrap();
    until_uids(&mut told, &["b", "c"]).await;
    // A storm of events is one report.
    for number in 0..50 {
        watch.send(event("ADDED", &format!("x{number:02}"))).unwrap();
        watch.send(event("DELETED", &format!("x{number:02}"))).unwrap();
    }
    watch.send(event("ADDED", "d")).unwrap();
    let mut reports = 0;
    loop {
        reports += 1;
        let pods = tokio::time::timeout(Duration::from_secs(10), told.recv())
            .await
            .unwrap()
            .unwrap();
        if uids(&pods) == ["b", "c", "d"] {
            break;
        }
    }
    assert!(reports <= 10, "{reports} reports for 101 events");

    for (line, token) in api.seen() {
        assert_eq!(token, format!("Bearer {TOKEN}"));
        assert!(line.starts_with("GET /api/v1/pods?"), "{line}");
        assert!(line.contains("fieldSelector=spec.nodeName%3Dnode-1"), "{line}");
        assert!(
            line.contains("labelSelector=agent.datadoghq.com%2Fcomponent%3Dagent"),
            "{line}"
        );
    }
    assert!(api.seen()[1].0.contains("resourceVersion=10"), "{:?}", api.seen());
}

/// Kubelet names a static pod's cgroups by its own hash, not by the mirror's UID.
#[tokio::test]
async fn static_pods_are_known_by_their_hash() {
    let items = json!({"items": [mirror("a", "0123456789abcdef"), pod("b")]});
    let mut all: Value = serde_json::from_str(&list(&[])).unwrap();
    all["items"] = items["items"].clone();
    let api = Api::start();
    api.list(200, &all.to_string());
    let once = kubernetes::list(&api.reach).await.unwrap();
    let known: Vec<&str> = once.iter().map(|pod| pod.uid.as_str()).collect();
    assert_eq!(known, ["0123456789abcdef", "b"]);

    let api = Api::start();
    api.list(200, &all.to_string());
    let watch = api.watch();
    let mut told = api.follow();
    let pods = until_uids(&mut told, &["0123456789abcdef", "b"]).await;
    assert_eq!(pods.found[0].name, "agent-a");
    let event = |kind: &str, pod: Value| json!({"type": kind, "object": pod}).to_string();
    watch
        .send(event("DELETED", mirror("a", "0123456789abcdef")))
        .unwrap();
    until_uids(&mut told, &["b"]).await;
    watch
        .send(event("ADDED", mirror("c", "fedcba9876543210")))
        .unwrap();
    until_uids(&mut told, &["b", "fedcba9876543210"]).await;
    // A copy of its manifest is an ordinary pod.
    let mut copy = mirror("d", "fedcba9876543210");
    copy["metadata"]["annotations"]
        .as_object_mut()
        .unwrap()
        .remove("kubernetes.io/config.mirror");
    watch.send(event("ADDED", copy)).unwrap();
    until_uids(&mut told, &["b", "d", "fedcba9876543210"]).await;
}

#[tokio::test]
async fn a_server_that_forgot_is_asked_for_the_list_again() {
    let api = Api::start();
    api.list(200, &list(&["a"]));
    api.list(200, &list(&["b"]));
    let watch = api.watch();
    let mut told = api.follow();
    until_uids(&mut told, &["a"]).await;
    let gone = json!({"type": "ERROR", "object": status(410, "too old resource version")});
    watch.send(gone.to_string()).unwrap();
    drop(watch);
    let pods = until_uids(&mut told, &["b"]).await;
    assert_eq!(pods.problem, None);
}

#[tokio::test]
async fn a_cut_connection_loses_no_pod_and_its_problem_goes() {
    let api = Api::start();
    api.list(200, &list(&["a"]));
    api.script.lock().unwrap().watches.push_back(Watch::Cut);
    let watch = api.watch();
    let mut told = api.follow();
    watch.send(event("ADDED", "b")).unwrap();
    let pods = until_uids(&mut told, &["a", "b"]).await;
    assert_eq!(pods.problem, None);
}

#[tokio::test]
async fn what_fails_is_told_with_what_to_do_and_tried_again() {
    for (code, body, hint) in [
        (
            401,
            status(401, "Unauthorized").to_string(),
            "intercept.agents.pods.service_account",
        ),
        (
            403,
            status(403, "pods is forbidden").to_string(),
            "verbs get, list and watch on pods",
        ),
        (
            400,
            status(400, "unable to parse").to_string(),
            "intercept.agents.pods.label_selector",
        ),
        (500, "<html>oops</html>".to_owned(), "answered 500"),
        (200, "{]".to_owned(), "cannot ask the Kubernetes API server"),
        // A server that sends back what it got.
        (
            401,
            status(401, &format!("bad token {TOKEN}")).to_string(),
            "bad token (token)",
        ),
    ] {
        println!("the API server answers {code}: {body}");
        let api = Api::start();
        api.list(code, &body);
        api.list(200, &list(&["a"]));
        let mut told = api.follow();
        let pods = until(&mut told, |pods| pods.problem.is_some()).await;
        let problem = pods.problem.unwrap();
        assert!(problem.contains(hint), "{code}: {problem}");
        assert!(!problem.contains(TOKEN) && !pods.synced);
        assert_eq!(until_uids(&mut told, &["a"]).await.problem, None);
    }
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_asked() {
    let api = Api::with("127.0.0.2".parse().unwrap());
    let problem = kubernetes::list(&api.reach).await.unwrap_err().to_string();
    assert!(problem.contains("127.0.0.1"), "{problem}");
    let api = Api::start();
    let other = Api::start();
    std::fs::copy(
        other.folder.path().join("ca.crt"),
        api.folder.path().join("ca.crt"),
    )
    .unwrap();
    kubernetes::list(&api.reach).await.unwrap_err();
    assert!(api.seen().is_empty(), "the token went to nobody");
}

#[tokio::test]
async fn the_token_is_read_anew_and_a_missing_file_is_named() {
    let api = Api::start();
    api.list(200, &list(&["b", "a", "a"]));
    let pods = kubernetes::list(&api.reach).await.unwrap();
    assert_eq!(
        pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    std::fs::write(api.folder.path().join("token"), "second").unwrap();
    kubernetes::list(&api.reach).await.unwrap();
    assert_eq!(api.seen()[1].1, "Bearer second");
    for file in ["token", "ca.crt"] {
        let api = Api::start();
        let path = api.folder.path().join(file);
        std::fs::remove_file(&path).unwrap();
        let problem = kubernetes::list(&api.reach).await.unwrap_err().to_string();
        assert!(problem.contains(path.to_str().unwrap()), "{problem}");
        assert!(
            problem.contains("intercept.agents.pods.service_account"),
            "{problem}"
        );
    }
}

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_holds_the_token() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let api = Api::start();
    api.list(403, &status(403, "pods is forbidden"));
    api.list(200, &"{]");
    api.list(200, &list(&["a"]));
    let mut told = api.follow();
    until_uids(&mut told, &["a"]).await;
    let logged = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("watching the Agent pods") && logged.contains("is forbidden"),
        "{logged}"
    );
    assert!(!logged.contains(TOKEN), "{logged}");
    assert!(!format!("{:?}", api.reach).contains(TOKEN));
}
