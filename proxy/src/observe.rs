//! What we tell the world: logs, metrics, the status page, and what must never be told.

pub mod redact;
