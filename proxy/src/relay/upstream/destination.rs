//! Where a request goes, and which connections it may use: decided once for all requests of a data thread that ask for the same.
//!
//! Agents ask for a handful of names, over and over, by connections that come and go. What was decided for one request holds for the
//! next one that asks the same; nobody is remembered to whom no was said.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::connect::{self, Handshake};
use super::pool::{Key, Shelf};
use super::target::{Target, Targets};
use crate::catalog::{Catalog, Product};
use crate::relay::decide::{self, Refusal};
use crate::relay::http::Client;
use crate::relay::network::NetworkId;
use crate::relay::origin::Origin;

/// Answers that are remembered by a thread: each is for one name, at one address where connections are intercepted.
const MAX_KNOWN: usize = 64;

/// Where a request goes.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Destination {
    pub(in crate::relay) target: Rc<Target>,
    /// Its idle connections.
    pub(in crate::relay) shelf: Rc<Shelf>,
}

/// All that an answer depends on, beside the catalogue, which is the worker's for good, and what servers are judged by.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    network: NetworkId,
    origin: Origin,
    /// The name that the client's TLS session was made for.
    session: Option<&'a str>,
    /// The Host header, as it was written.
    host: Option<&'a str>,
    /// What matters of the path, on an explicit port.
    product: Option<Product>,
}

/// An answer.
#[derive(Debug)]
struct Known {
    network: NetworkId,
    origin: Origin,
    session: Option<Box<str>>,
    host: Option<Box<str>>,
    product: Option<Product>,
    destination: Destination,
}

impl Known {
    fn answers(&self, asked: &Asked<'_>) -> bool {
        self.host.as_deref() == asked.host
            && self.origin == asked.origin
            && self.network == asked.network
            && self.product == asked.product
            && self.session.as_deref() == asked.session
    }
}

/// What a thread knows.
#[derive(Debug, Default)]
pub(in crate::relay) struct Destinations {
    targets: Targets,
    recent: RefCell<Recent>,
}

/// The answers of late, the last one first.
#[derive(Debug, Default)]
struct Recent {
    /// What servers were judged by.
    trust: u64,
    known: Vec<Known>,
}

impl Recent {
    fn find(&mut self, trust: u64, asked: &Asked<'_>) -> Option<&Destination> {
        if self.trust != trust {
            self.known.clear();
            self.trust = trust;
        }
        let at = self.known.iter().position(|known| known.answers(asked))?;
        if at > 0 {
            self.known[..=at].rotate_right(1);
        }
        self.known.first().map(|known| &known.destination)
    }

    fn add(&mut self, asked: &Asked<'_>, destination: &Destination) {
        self.known.truncate(MAX_KNOWN - 1);
        let known = Known {
            network: asked.network,
            origin: asked.origin,
            session: asked.session.map(Into::into),
            host: asked.host.map(Into::into),
            product: asked.product,
            destination: destination.clone(),
        };
        self.known.insert(0, known);
    }
}

impl Destinations {
    /// Where the request of `client` for `path` goes; `authority` is that of an absolute-form target.
    ///
    /// # Errors
    /// As [`decide::request`] says.
    pub(in crate::relay) fn find<H: Handshake>(
        &self,
        client: &Client<H>,
        authority: Option<&str>,
        host: Option<&str>,
        path: &str,
    ) -> Result<Destination, Refusal> {
        let shared = &client.thread.shared;
        let asked = Asked {
            network: client.network,
            origin: client.origin,
            session: client.asking.as_ref().map(|asking| asking.name.as_str()),
            host,
            product: match client.origin {
                Origin::Explicit { product, .. } => Some(Catalog::route(product, path)),
                Origin::Intercepted(_) => None,
            },
        };
        let trust = shared.tls.generation();
        // No Agent writes an absolute target.
        if authority.is_none()
            && let Some(known) = self.recent.borrow_mut().find(trust, &asked)
        {
            return Ok(known.clone());
        }
        let route = decide::request(
            &client.origin,
            asked.session,
            authority,
            host,
            path,
            &shared.catalog,
        )?;
        let target = self.targets.get(route, &shared.catalog);
        let way = connect::way(shared, &target, client.origin.original());
        let shelf = client.thread.pool.shelf(Key {
            network: client.network,
            name: Arc::clone(&target.name),
            original: way.original(),
            trust,
        });
        let destination = Destination { target, shelf };
        if authority.is_none() {
            self.recent.borrow_mut().add(&asked, &destination);
        }
        Ok(destination)
    }

    /// True when a request of a connection in the clear from `origin` that named `host` has found its way before: the host is an
    /// intake's then.
    pub(in crate::relay) fn knows(&self, trust: u64, network: NetworkId, origin: Origin, host: &str) -> bool {
        let asked = Asked {
            network,
            origin,
            session: None,
            host: Some(host),
            product: None,
        };
        self.recent.borrow_mut().find(trust, &asked).is_some()
    }

    /// A network is gone, and with it what was known for its clients.
    pub(in crate::relay) fn leave(&self, network: NetworkId) {
        self.recent
            .borrow_mut()
            .known
            .retain(|known| known.network != network);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::Pool;
    use super::*;
    use crate::catalog::Site;
    use crate::relay::decide::Route;
    use crate::relay::origin::OriginalDst;
    use std::time::Duration;

    const HOST: &str = "trace.agent.ddog-gov.com";

    fn asked(last: u8, host: &'static str) -> Asked<'static> {
        Asked {
            network: NetworkId::HOST,
            origin: Origin::Intercepted(OriginalDst(([203, 0, 113, last], 80).into())),
            session: None,
            host: Some(host),
            product: None,
        }
    }

    fn destination(trust: u64) -> Destination {
        let catalog = Catalog::new(&Site::default());
        let target = Targets::default().get(
            Route {
                product: Product::Traces,
                name: Some(HOST.to_owned()),
            },
            &catalog,
        );
        let shelf = Pool::new(Duration::from_secs(1)).shelf(Key {
            network: NetworkId::HOST,
            name: Arc::clone(&target.name),
            original: None,
            trust,
        });
        Destination { target, shelf }
    }

    #[test]
    fn only_the_same_question_has_the_same_answer() {
        let mut recent = Recent::default();
        let first = asked(1, HOST);
        recent.add(&first, &destination(0));
        assert!(recent.find(0, &first).is_some());
        let mut others = vec![asked(2, HOST), asked(1, "trace.agent.ddog-gov.com.")];
        others.push(Asked {
            network: NetworkId(7),
            ..first
        });
        others.push(Asked {
            session: Some(HOST),
            ..first
        });
        others.push(Asked { host: None, ..first });
        others.push(Asked {
            product: Some(Product::Traces),
            ..first
        });
        let local = ([127, 0, 0, 1], 9804).into();
        others.push(Asked {
            origin: Origin::Explicit {
                product: Product::Traces,
                local,
                stranger: false,
            },
            ..first
        });
        for other in others {
            assert!(recent.find(0, &other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn other_roots_other_answers() {
        let mut recent = Recent::default();
        let question = asked(1, HOST);
        recent.add(&question, &destination(0));
        assert!(recent.find(1, &question).is_none());
        // What is made anew stays.
        recent.add(&question, &destination(1));
        assert!(recent.find(1, &question).is_some());
        assert!(recent.find(2, &question).is_none());
    }

    #[test]
    fn the_one_that_was_not_asked_for_longest_goes_first() {
        let mut recent = Recent::default();
        let destination = destination(0);
        for last in 0..u8::try_from(MAX_KNOWN).unwrap() {
            recent.add(&asked(last, HOST), &destination);
        }
        // Asked for again, so the second is the oldest.
        assert!(recent.find(0, &asked(0, HOST)).is_some());
        recent.add(&asked(200, HOST), &destination);
        assert_eq!(recent.known.len(), MAX_KNOWN);
        assert!(recent.find(0, &asked(0, HOST)).is_some());
        assert!(recent.find(0, &asked(1, HOST)).is_none());
        assert!(recent.find(0, &asked(2, HOST)).is_some());
    }

    #[test]
    fn nothing_is_known_of_a_network_that_is_gone() {
        let destinations = Destinations::default();
        let question = Asked {
            network: NetworkId(3),
            ..asked(1, HOST)
        };
        destinations.recent.borrow_mut().add(&question, &destination(0));
        let knows = |network| destinations.knows(0, network, question.origin, HOST);
        assert!(knows(NetworkId(3)) && !knows(NetworkId(4)));
        destinations.leave(NetworkId(4));
        assert!(knows(NetworkId(3)));
        destinations.leave(NetworkId(3));
        assert!(!knows(NetworkId(3)));
    }
}
