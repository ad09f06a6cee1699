//! Keeps what servers are judged by up to date, and says aloud when somebody should do something about it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::metrics::Metrics;
use crate::tls;

/// How often the folder of revocation lists and the clock are looked at. A look is one stat(2) for each file.
const LOOK: Duration = Duration::from_secs(5);

/// Never ends.
pub(super) async fn watch(client: tls::Client, metrics: Arc<Metrics>) {
    let mut told = HashSet::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let before = client.generation();
        // Lists of public authorities are large: a thread of its own, so that nobody waits for them.
        let looking = client.clone();
        let looked =
            tokio::task::spawn_blocking(move || looking.refresh().map_err(|error| error.to_string()));
        let refused = looked
            .await
            .unwrap_or_else(|ended| Err(ended.to_string()))
            .err()
            .map(|error| {
                format!("the changed revocation lists are not used, the ones before stay in force: {error}")
            });
        let mut trust = client.trust();
        trust.alarms.extend(refused);
        if client.generation() != before {
            let crls = trust.crls.as_ref();
            tracing::info!(
                lists = crls.map(|crls| crls.count),
                next_update = crls.and_then(|crls| crls.next_update.as_deref()),
                "revocation lists have changed or expired: new connections are judged by what holds now, earlier ones take no \
                 new request"
            );
        }
        let now: HashSet<String> = trust.alarms.iter().cloned().collect();
        for alarm in now.difference(&told) {
            tracing::error!("{alarm}");
        }
        for over in told.difference(&now) {
            tracing::info!("no longer so: {over}");
        }
        told = now;
        metrics.set_trust(trust);
    }
}
