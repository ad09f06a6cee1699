//! Brings together what the kernel counted and who the Agents are.

use std::sync::Arc;
use std::time::Instant;

use proxy_ebpf::{Counter, Direct, Leak, LeakKey, Reason};

use super::names::Kin;
use crate::intercept::Interceptor;
use crate::intercept::agents::Agent;
use crate::intercept::error::InterceptError;
use crate::intercept::load::Loaded;
use crate::intercept::netns::NamespaceId;
use crate::intercept::prefixes::is_absent;
use crate::intercept::tables::entries;

impl Interceptor {
    /// Looks at the leaks that the kernel counted, and, when there is a reason, at the connections that are open. For every
    /// second: without news it is one system call.
    pub fn account(&mut self) {
        let now = Instant::now();
        self.audit(now);
        let counted = self.counter(Counter::Leaked).unwrap_or_default();
        if self.leaks.changed(counted) {
            match self.loaded.leaked() {
                Ok(entries) => self.leaks.read(counted, entries),
                Err(error) => tracing::warn!(%error, "cannot read the counts of leaks"),
            }
        }
        self.leaks.alarm(now);
    }

    /// Takes note of the Agents of the last look.
    pub(in crate::intercept) fn note_kin(&mut self, found: &[Agent]) {
        self.kin = found
            .iter()
            .map(|agent| Kin {
                name: agent.selector.to_string(),
                taken: self
                    .agents
                    .get(&agent.selector)
                    .and_then(|status| status.datapath),
                directories: agent
                    .cgroups
                    .values()
                    .map(|path| self.cgroups.directory(path))
                    .collect(),
                namespaces: agent.namespaces.values().map(Arc::clone).collect(),
            })
            .collect();
        let cookies = self.networks.cookies();
        let home = self.home_cookie.map(|cookie| (Some(self.home), cookie));
        let named: Vec<(u64, String)> = home
            .into_iter()
            .chain(cookies)
            .map(|(namespace, cookie)| (cookie, self.name_of(namespace)))
            .collect();
        self.leaks.learn(&self.kin, named);
    }

    /// A namespace by the Agent that lives there; by its own name where there are several, or none.
    fn name_of(&self, namespace: Option<NamespaceId>) -> String {
        let Some(id) = namespace else {
            return "intercept.interfaces".to_owned();
        };
        let only = |lives: &dyn Fn(&Kin) -> bool| {
            let mut living = self.kin.iter().filter(|kin| lives(kin));
            match (living.next(), living.next()) {
                (Some(kin), None) => Some(kin.name.clone()),
                _ => None,
            }
        };
        let here = |kin: &Kin| kin.namespaces.iter().any(|one| one.id() == id);
        // One that had no process yet when we looked may be anywhere, and most are the host's.
        let waiting = |kin: &Kin| id == self.home && (kin.namespaces.is_empty() || here(kin));
        let name = only(&here).or_else(|| only(&waiting));
        name.unwrap_or_else(|| match id == self.home {
            true => "host".to_owned(),
            false => id.to_string(),
        })
    }
}

impl Loaded {
    /// Every count of leaks, in no order.
    ///
    /// # Errors
    /// The table could not be read.
    fn leaked(&self) -> Result<Vec<(LeakKey, Leak)>, InterceptError> {
        entries(&self.leaked).map_err(InterceptError::map("read", "LEAKED"))
    }

    /// Counts a leak that no program saw, and remembers its socket. Nobody else counts for these reasons, so that reading
    /// and writing is no race.
    ///
    /// # Errors
    /// A table could not be written.
    pub(in crate::intercept) fn count_leak(
        &mut self,
        key: &LeakKey,
        last: Direct,
        cookie: u64,
        reason: Reason,
    ) -> Result<(), InterceptError> {
        let before = match self.leaked.get(key, 0) {
            Ok(leak) => leak.count,
            Err(error) if is_absent(&error) => 0,
            Err(error) => return Err(InterceptError::map("read", "LEAKED")(error)),
        };
        let leak = Leak {
            count: before + 1,
            last,
        };
        self.leaked
            .insert(key, leak, 0)
            .map_err(InterceptError::map("write", "LEAKED"))?;
        self.counted
            .insert(cookie, reason as u32, 0)
            .map_err(InterceptError::map("write", "COUNTED"))
    }
}
