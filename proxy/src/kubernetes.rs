//! Which pods of this node are Agents, asked of the Kubernetes API server. The worker's work: the master parses no byte
//! from the network, it is told the result.
//!
//! [`Reach`] is where the API server is and as whom we ask; [`client`] makes requests over our own TLS; [`watch`] follows the
//! pods. Only metadata is asked for: of it, names, UIDs and the annotations of mirror pods are read.

use std::fmt;
use std::path::{Path, PathBuf};

use kube::api::{Api, ListParams};

use crate::config::{Config, PodsApi, TlsPolicy};
use crate::intercept::PodRef;

pub mod client;
pub mod watch;

pub use watch::watch;

/// Pods that are followed at most. A kubelet runs 110 by default; a selector that matches more than this is a mistake.
pub const MAX_PODS: usize = 2000;
/// Bytes of a name or UID: a DNS subdomain (RFC 1123), which both are, has 253 at most.
const MAX_NAME: usize = 253;

/// Where the API server is, as whom we ask, and for which pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// `KUBERNETES_SERVICE_HOST`: an address, as a rule; IPv6 without brackets.
    pub host: String,
    /// `KUBERNETES_SERVICE_PORT`.
    pub port: u16,
    /// `intercept.agents.pods.service_account`: the folder with `token` and `ca.crt`.
    pub service_account: PathBuf,
    /// This node's name.
    pub node: String,
    /// `intercept.agents.pods.label_selector`.
    pub label_selector: String,
    /// `upstream.tls_policy`.
    pub tls_policy: TlsPolicy,
}

impl Reach {
    /// As this process's environment tells it. `None`: nobody is asked (`intercept.agents.pods.api`: `off`, or `auto` where
    /// this is no pod).
    ///
    /// # Errors
    /// `on`, and the environment does not tell.
    pub fn find(config: &Config) -> Result<Option<Self>, Error> {
        Self::find_in(config, |name| std::env::var(name).ok())
    }

    /// As [`Reach::find`], in another environment.
    ///
    /// # Errors
    /// As [`Reach::find`].
    pub fn find_in(
        config: &Config,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, Error> {
        let pods = &config.intercept.agents.pods;
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let host = variable(HOST);
        let token = pods.service_account.join(TOKEN);
        match pods.api {
            PodsApi::Off => return Ok(None),
            PodsApi::Auto if host.is_none() || !token.exists() => return Ok(None),
            PodsApi::Auto | PodsApi::On => {}
        }
        let host = host.ok_or(Error::Variable {
            name: HOST,
            problem: "is not set",
        })?;
        let port = match variable(PORT) {
            None => HTTPS,
            Some(port) => port.parse().map_err(|_| Error::Variable {
                name: PORT,
                problem: "is not a port number",
            })?,
        };
        let node = match &pods.node {
            Some(node) => node.clone(),
            None => own_name()?,
        };
        Ok(Some(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            service_account: pods.service_account.clone(),
            node,
            label_selector: pods.label_selector.clone(),
            tls_policy: config.upstream.tls_policy,
        }))
    }

    fn token(&self) -> PathBuf {
        self.service_account.join(TOKEN)
    }

    fn ca_file(&self) -> PathBuf {
        self.service_account.join("ca.crt")
    }

    /// The server as an authority of a URI.
    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Which pods, as the API server filters them by field.
    fn field_selector(&self) -> String {
        format!("spec.nodeName={}", self.node)
    }
}

const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
const HTTPS: u16 = 443;
const TOKEN: &str = "token";

/// Kubernetes knows a node by its host name in lower case, unless the kubelet was told otherwise.
fn own_name() -> Result<String, Error> {
    let name = nix::unistd::gethostname().map_err(|error| Error::NodeName(error.to_string()))?;
    let name = name
        .into_string()
        .map_err(|_| Error::NodeName("it is not UTF-8".to_owned()))?;
    Ok(name.to_lowercase())
}

/// Why the pods are not known. No message holds the token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is to be asked.
    #[error(
        "the Kubernetes API server is not asked: intercept.agents.pods.api is off, or it is auto and this is no pod with a \
         service account"
    )]
    NotAsked,
    /// The environment does not tell where the API server is.
    #[error(
        "{name} {problem}, so the Kubernetes API server cannot be found: run in a pod, or set intercept.agents.pods.api to \
         auto or off"
    )]
    Variable {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The node has no usable host name.
    #[error(
        "the host name cannot be read ({0}): set intercept.agents.pods.node to this node's name in Kubernetes"
    )]
    NodeName(String),
    /// The service account's files are of no use.
    #[error(
        "cannot use {}: {problem}; intercept.agents.pods.service_account names its folder, which the worker's user must be \
         able to read",
        path.display()
    )]
    ServiceAccount {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It was asked and did not tell.
    #[error("{0}")]
    Asked(String),
    /// No event loop.
    #[error("cannot start an event loop to ask the Kubernetes API server: {0}")]
    Runtime(std::io::Error),
}

impl Error {
    fn service_account(path: &Path, problem: impl fmt::Display) -> Self {
        Self::ServiceAccount {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

/// The Agent pods of this node at this moment, by a runtime of its own: for commands. Must not be called inside a runtime.
///
/// # Errors
/// Why they are not known, and what to do about it.
pub fn list_once(config: &Config) -> Result<Vec<PodRef>, Error> {
    let reach = Reach::find(config)?.ok_or(Error::NotAsked)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(list(&reach))
}

/// The Agent pods of this node at this moment, ordered by their UID.
///
/// # Errors
/// As [`list_once`].
pub async fn list(reach: &Reach) -> Result<Vec<PodRef>, Error> {
    let (client, _) = client::new(reach);
    let api: Api<k8s_openapi::api::core::v1::Pod> = Api::all(client);
    let what = ListParams::default()
        .fields(&reach.field_selector())
        .labels(&reach.label_selector);
    let found = api
        .list_metadata(&what)
        .await
        .map_err(|error| Error::Asked(client::explain(reach, &error)))?;
    let mut pods: Vec<PodRef> = found
        .items
        .into_iter()
        .filter_map(|pod| pod_ref(pod.metadata))
        .collect();
    pods.sort();
    pods.dedup_by(|a, b| a.uid == b.uid);
    Ok(pods)
}

/// On a pod of the API that stands for a static one (kubelet's `ConfigMirrorAnnotationKey`).
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The UID that kubelet itself gave a static pod, and named its cgroups by (kubelet's `ConfigHashAnnotationKey`).
const HASH: &str = "kubernetes.io/config.hash";

/// What we keep of a pod; `None` for one that has no names, or such as no pod has. A static pod is known by the UID that
/// names its cgroups, which `metadata.uid` does not: that is the API server's, for the mirror. A copy of its manifest
/// that is no mirror (kubelet removes mirrors that are not its own) carries the hash for nothing.
fn pod_ref(metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<PodRef> {
    let fine = |name: Option<String>| name.filter(|name| !name.is_empty() && name.len() <= MAX_NAME);
    let mut annotations = metadata.annotations.unwrap_or_default();
    let hash = annotations
        .remove(HASH)
        .filter(|_| annotations.contains_key(MIRROR));
    Some(PodRef {
        uid: fine(hash).or_else(|| fine(metadata.uid))?,
        namespace: fine(metadata.namespace)?,
        name: fine(metadata.name)?,
    })
}

#[cfg(test)]
#[path = "kubernetes/tests.rs"]
mod tests;
