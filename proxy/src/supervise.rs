//! The process model: a small privileged master that owns descriptors and kernel state, and an unprivileged worker that
//! does the network work. The master parses no byte from the network and holds no TLS state.
//!
//! - [`master`]: the event loop; starts, replaces and drains workers, reloads, toggles, stops.
//! - [`listeners`]: what is bound, each by itself; a busy port is reported by name and the others serve.
//! - [`interception`]: on, off and unavailable: the master's side of the kernel programs.
//! - [`channel`] and [`protocol`]: how master and worker talk; descriptors travel beside their messages.
//! - [`process`]: starting a worker and knowing when it ended.
//! - [`worker`]: what the child does; [`privileges`]: what it gives up first, [`sandbox`]: what the kernel refuses it
//!   from then on; [`broker`]: how its data threads get sockets
//!   of Agent pods' namespaces.
//! - [`authority`]: the key of the local authority, opened by the master and read by the worker.
//! - [`prober`]: connections of our own through the live datapath, for readiness.
//! - [`admission`]: who may use the explicit ports, judged by the master; [`door`]: how the worker asks it.
//! - [`admin`]: the socket that `status`, `intercept on|off` and `upgrade` speak to.
//! - [`handover`]: another program takes this one's place in the same process; [`descriptors`]: what comes as bare numbers.
//! - [`notify`]: the service manager; [`store`]: what it keeps for us while nobody runs.

pub mod admin;
pub mod admission;
pub mod authority;
pub mod broker;
pub mod channel;
pub mod descriptors;
pub mod door;
pub mod handover;
pub mod interception;
pub mod listeners;
pub mod master;
pub mod notify;
pub mod privileges;
pub mod prober;
pub mod process;
pub mod protocol;
pub mod sandbox;
pub mod store;
pub mod worker;
