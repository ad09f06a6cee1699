//! What the Agent talks to: one table of products, their ports and their intake names.
//!
//! Routing, the allow-list, what the local authority may sign for, the addresses that the kernel selects and the generated
//! reference all come from [`TABLE`]. A name is an intake's, or it is none of our business.

mod name;
mod product;
mod reference;
mod site;
mod table;

pub use name::{covers, is_dns_name, normalise};
pub use product::{Entry, Product, Protocol};
pub use reference::reference;
pub use site::{KNOWN_SITES, KnownSite, Site};
pub use table::TABLE;

/// The catalogue for one site.
#[derive(Clone, Debug)]
pub struct Catalog {
    site: Site,
    /// `.` + site.
    suffix: String,
    /// The site, and the browser's intake beside it.
    domains: [String; 2],
}

impl Catalog {
    /// The catalogue of `site`.
    pub fn new(site: &Site) -> Self {
        let domain = site.as_str();
        // The dots of the site but the last are dashes there.
        let dashed = match domain.rsplit_once('.') {
            Some((name, top)) => format!("{}.{top}", name.replace('.', "-")),
            None => domain.to_owned(),
        };
        Self {
            suffix: format!(".{domain}"),
            domains: [domain.to_owned(), format!("browser-intake-{dashed}")],
            site: site.clone(),
        }
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The domains that intake names of this site are, or are below: what a local authority may sign for, and all of it. The
    /// first is the site. The browser's intake stands beside the site's domain and not below it
    /// (`browser-intake-us5-datadoghq.com`).
    pub fn domains(&self) -> Vec<String> {
        self.domains.to_vec()
    }

    /// The intake name that the explicit port of `product` leads to.
    pub fn host(&self, product: Product) -> String {
        format!("{}{}", product.entry().hosts[0], self.suffix)
    }

    /// Which product an intake name belongs to; `None` for a name that is not an intake's. The name is compared whole, label
    /// by label, after [`normalise`]. A name that the table has wins over every pattern, wherever the two stand; among names
    /// and among patterns the first counts. So `agent-intake.logs` is the TCP logs' although `*-intake.logs` covers it.
    ///
    /// A name alone does not say that it may be terminated: [`Product::protocol`] does.
    pub fn lookup(&self, name: &str) -> Option<Product> {
        let name = name::normalised(name);
        let [_, browser] = &self.domains;
        if *name == **browser {
            return Some(Product::OtherIntake);
        }
        let prefix = name.strip_suffix(&self.suffix)?;
        if !is_dns_name(prefix) {
            return None;
        }
        find(TABLE, prefix).map(|entry| entry.product)
    }

    /// Where a request on the explicit port of `product` goes: the metrics port also serves key validation and flares.
    /// The Agent asks for flares with and without a trailing slash.
    pub fn route(product: Product, path: &str) -> Product {
        if product != Product::Metrics {
            return product;
        }
        let under = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if under("/api/v1/validate") {
            Product::Api
        } else if under("/support/flare") {
            Product::Flare
        } else {
            Product::Metrics
        }
    }

    /// Every intake name that can be resolved as it stands (no pattern), without repeats: their addresses are what the
    /// kernel selects. A versioned name (`7-81-0-app.agent.<site>`) is an alias of `metrics.agent.<site>`.
    pub fn names(&self) -> Vec<String> {
        let [_, browser] = &self.domains;
        let mut names: Vec<String> = TABLE
            .iter()
            .flat_map(|entry| entry.hosts)
            .filter(|host| !name::is_pattern(host))
            .map(|host| format!("{host}{}", self.suffix))
            .chain([browser.clone()])
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The row of `table` that has this part of a name before the site: by name, and only then by pattern.
fn find<'t>(table: &'t [Entry], prefix: &str) -> Option<&'t Entry> {
    let first = |is: fn(&str, &str) -> bool| {
        table
            .iter()
            .find(|entry| entry.hosts.iter().any(|host| is(host, prefix)))
    };
    first(|host, prefix| host == prefix).or_else(|| first(covers))
}

#[cfg(test)]
mod tests;
