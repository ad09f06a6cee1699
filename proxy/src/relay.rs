//! The worker's work: one connection's way from accept to its record.

pub mod outcome;
