//! What we tell the world: logs, metrics, the status page, and what must never be told.

pub mod access;
pub mod distrust;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod page;
pub mod redact;
pub mod view;
