//! Where a request goes: the name that is verified, with everything made once that every request to it needs.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use http::uri::Authority;

use crate::catalog::{Catalog, Product};
use crate::relay::decide::Route;

/// Different names that are remembered per thread. Patterns such as `*-intake` allow endless ones.
const MAX_TARGETS: usize = 512;

/// An intake, with everything made once that every request to it needs.
#[derive(Debug)]
pub(in crate::relay) struct Target {
    pub(in crate::relay) product: Product,
    /// The name: in SNI, in Host, and what the certificate is verified for.
    pub(in crate::relay) name: Arc<str>,
    pub(in crate::relay) host: HeaderValue,
    pub(super) authority: Option<Authority>,
}

impl Target {
    fn new(product: Product, name: &str) -> Self {
        Self {
            product,
            // Catalogue names are DNS names, which both types accept.
            host: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("")),
            authority: name.parse().ok(),
            name: name.into(),
        }
    }
}

/// One thread's targets.
#[derive(Debug, Default)]
pub(in crate::relay) struct Targets {
    own: RefCell<HashMap<Product, Rc<Target>>>,
    named: RefCell<HashMap<(Product, String), Rc<Target>>>,
}

impl Targets {
    /// The target of a decided route.
    pub(in crate::relay) fn get(&self, route: Route, catalog: &Catalog) -> Rc<Target> {
        let Route { product, name } = route;
        let Some(name) = name else {
            let mut own = self.own.borrow_mut();
            let target = own
                .entry(product)
                .or_insert_with(|| Rc::new(Target::new(product, &catalog.host(product))));
            return Rc::clone(target);
        };
        let key = (product, name);
        let mut named = self.named.borrow_mut();
        if let Some(target) = named.get(&key) {
            return Rc::clone(target);
        }
        if named.len() >= MAX_TARGETS {
            named.clear();
        }
        let target = Rc::new(Target::new(product, &key.1));
        named.insert(key, Rc::clone(&target));
        target
    }
}
