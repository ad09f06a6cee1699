//! How often name servers that do not answer are asked. Time is the test's: an outage of hours takes a moment.

use super::*;

/// Servers that count questions, and answer when they are told to.
#[derive(Debug, Default)]
pub(in super::super) struct Counting {
    questions: Mutex<Vec<String>>,
    /// Names with an address: 198.18.0.0 and the place in this list.
    names: Mutex<Vec<String>>,
    answers: AtomicBool,
}

impl Counting {
    /// TTL 60.
    pub(in super::super) fn ask(&self, name: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        lock(&self.questions).push(name.to_owned());
        if self.answers.load(Ordering::Relaxed) {
            let mut names = lock(&self.names);
            let place = names
                .iter()
                .position(|known| known == name)
                .unwrap_or(names.len());
            if place == names.len() {
                names.push(name.to_owned());
            }
            let address = Ipv4Addr::from(0xc612_0000 + u32::try_from(place).unwrap());
            Ok((vec![address.into()], Duration::from_secs(60)))
        } else {
            Err(ResolveError::Lookup("timed out".to_owned()))
        }
    }

    fn count(&self) -> usize {
        lock(&self.questions).len()
    }

    /// The questions since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.questions))
    }

    fn answer(&self, answers: bool) {
        self.answers.store(answers, Ordering::Relaxed);
    }
}

/// A resolver that asks them. The folder holds its files.
fn resolver() -> (tempfile::TempDir, Arc<Resolver>, Arc<Counting>) {
    let (folder, sources) = files("", None);
    let resolver = Arc::new(Resolver::new(sources, Handle::current()));
    resolver.inner.reload_if_changed();
    let servers = Arc::new(Counting::default());
    lock(&resolver.inner.state).servers = Servers::Test(Arc::clone(&servers));
    (folder, resolver, servers)
}

#[tokio::test(start_paused = true)]
async fn requests_for_a_name_that_nobody_answers_for_do_not_each_ask() {
    let (_folder, resolver, servers) = resolver();
    let mut askers = JoinSet::new();
    for _ in 0..100 {
        let resolver = Arc::clone(&resolver);
        askers.spawn(async move { resolver.lookup("app.ddog-gov.com").await });
    }
    while let Some(answer) = askers.join_next().await {
        assert!(answer.unwrap().is_err());
    }
    assert_eq!(servers.count(), 1, "a hundred requests at once are one question");
    // 0.5, 1, 2 and 4 s after each other, then every 5 s.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let error = resolver.lookup("app.ddog-gov.com").await.unwrap_err();
        assert_eq!(error.to_string(), "timed out", "it is told why");
    }
    assert!((14..=16).contains(&servers.count()), "{}", servers.count());
    servers.answer(true);
    let start = Instant::now();
    while resolver.lookup("app.ddog-gov.com").await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(start.elapsed() <= RETRY_AFTER, "{:?}", start.elapsed());
    servers.answer(false);
    let asked = servers.count();
    assert!(resolver.lookup("api.ddog-gov.com").await.is_err());
    assert_eq!(
        servers.count(),
        asked + 1,
        "another name is a question of its own"
    );
}

/// Runs the watcher for so long; what it told.
async fn watch(
    resolver: &Resolver,
    catalog: &Catalog,
    steps: impl Future<Output = ()>,
) -> Vec<(Instant, Intake)> {
    let told = Mutex::new(Vec::new());
    tokio::select! {
        () = resolver.watch_intake(catalog, |what| lock(&told).push((Instant::now(), what))) => {}
        () = steps => {}
    }
    told.into_inner().unwrap()
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

#[tokio::test(start_paused = true)]
async fn an_outage_from_the_start_is_a_question_now_and_then_and_its_end_is_seen() {
    let (_folder, resolver, servers) = resolver();
    let catalog = Catalog::new(&"ddog-gov.com".parse().unwrap());
    let names = catalog.names();
    let back = Mutex::new(None);
    let told = watch(&resolver, &catalog, async {
        tokio::time::sleep(minutes(10)).await;
        // Eight at once; pauses of 1, 2, 4, 8, 16 and then 30 s, each up to a quarter longer or shorter.
        let asked = servers.take();
        assert!(
            (8 + 18..=8 + 31).contains(&asked.len()),
            "{} questions in 10 min",
            asked.len()
        );
        let different: std::collections::HashSet<_> = asked.iter().collect();
        assert_eq!(different.len(), asked.len(), "each time another name");
        servers.answer(true);
        *lock(&back) = Some(Instant::now());
        tokio::time::sleep(Duration::from_secs(45)).await;
        let asked = servers.take();
        let different: std::collections::HashSet<_> = asked.iter().collect();
        assert_eq!(different.len(), names.len(), "then every name is asked for");
        assert!(asked.len() <= names.len() + 1, "once: {}", asked.len());
    })
    .await;
    let back = lock(&back).unwrap();
    assert_eq!(
        told.iter().filter(|(_, what)| *what == Intake::Asked).count(),
        1,
        "readiness did not wait for the end of the outage"
    );
    assert!(told.iter().any(|(at, what)| *what == Intake::Asked && *at < back));
    let last = told.iter().map(|(at, _)| *at).max().unwrap();
    assert!(
        last.duration_since(back) <= Duration::from_secs(40),
        "{:?}",
        last.duration_since(back)
    );
}

#[tokio::test(start_paused = true)]
async fn addresses_are_told_again_through_an_outage_of_hours() {
    let (_folder, resolver, servers) = resolver();
    let catalog = Catalog::new(&"ddog-gov.com".parse().unwrap());
    servers.answer(true);
    let told = watch(&resolver, &catalog, async {
        tokio::time::sleep(minutes(3)).await;
        servers.answer(false);
        // The watcher notices when the first TTLs are over.
        tokio::time::sleep(minutes(3)).await;
        servers.take();
        tokio::time::sleep(minutes(120)).await;
        let asked = servers.take().len();
        // Every 30 s, up to a quarter more often.
        assert!((180..=320).contains(&asked), "{asked} questions in two hours");
    })
    .await;
    let mut last: HashMap<IpAddr, Instant> = HashMap::new();
    let mut gap = Duration::ZERO;
    let addresses = told.iter().filter_map(|(at, what)| match what {
        Intake::Addresses(addresses) => Some((*at, addresses)),
        Intake::Asked => None,
    });
    let end = told.last().unwrap().0;
    for (at, addresses) in addresses {
        for (ip, _) in addresses {
            let before = last.insert(*ip, at).unwrap_or(at);
            gap = gap.max(at - before);
        }
    }
    assert_eq!(last.len(), catalog.names().len());
    gap = last.values().fold(gap, |gap, at| gap.max(end - *at));
    let most = Duration::from_secs(60) + WATCH_FILES * 2;
    assert!(
        gap <= most,
        "the kernel's filter heard nothing of a name for {gap:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn names_of_their_own_trouble_do_not_keep_the_others_from_being_asked() {
    let (_folder, resolver, servers) = resolver();
    let catalog = Catalog::new(&"ddog-gov.com".parse().unwrap());
    let names = catalog.names().len();
    let mut seen = std::collections::HashSet::new();
    watch(&resolver, &catalog, async {
        tokio::time::sleep(minutes(40)).await;
        seen.extend(servers.take());
    })
    .await;
    assert_eq!(seen.len(), names, "each name has its turn");
}

#[tokio::test(start_paused = true)]
async fn addresses_that_take_no_connection_are_asked_for_again_but_not_over_and_over() {
    let (_folder, resolver, servers) = resolver();
    let name = "app.ddog-gov.com";
    assert!(!resolver.doubt(name), "nothing is known of it");
    servers.answer(true);
    let first = resolver.lookup(name).await.unwrap();
    assert!(!resolver.doubt(name), "it was asked for a moment ago");
    tokio::time::sleep(RETRY_AFTER).await;
    assert_eq!(resolver.lookup(name).await.unwrap(), first);
    assert_eq!(servers.count(), 1, "its time is not over");
    assert!(resolver.doubt(name));
    resolver.lookup(name).await.unwrap();
    assert_eq!(servers.count(), 2);
    assert!(!resolver.doubt(name));
    servers.answer(false);
    tokio::time::sleep(RETRY_AFTER).await;
    assert!(
        resolver.doubt("App.ddog-gov.com."),
        "names are compared as always"
    );
    assert_eq!(resolver.lookup(name).await.unwrap(), first, "the last good ones");
    assert!(!resolver.doubt(name), "an outage is not asked about more often");
}

#[tokio::test(start_paused = true)]
async fn the_age_of_the_last_good_addresses_is_told_until_there_are_newer_ones() {
    let (_folder, resolver, servers) = resolver();
    let name = "app.ddog-gov.com";
    servers.answer(true);
    resolver.lookup(name).await.unwrap();
    assert_eq!(resolver.stale(), []);
    servers.answer(false);
    tokio::time::sleep(minutes(2)).await;
    assert_eq!(resolver.stale(), [], "nobody asked for it again");
    resolver.lookup(name).await.unwrap();
    tokio::time::sleep(minutes(1)).await;
    let stale = Stale {
        name: name.to_owned(),
        age_s: 180,
        problem: "timed out".to_owned(),
    };
    assert_eq!(resolver.stale(), [stale]);
    servers.answer(true);
    resolver.lookup(name).await.unwrap();
    assert_eq!(resolver.stale(), []);
}
