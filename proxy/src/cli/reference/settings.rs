//! The table of settings, for what makes pages of it.

use serde::Serialize;

use crate::config::{default_value, keys::TABLE};

/// A setting, in words.
#[derive(Serialize)]
pub(super) struct Setting {
    path: &'static str,
    variable: String,
    fallback: Option<&'static str>,
    default: String,
    accepted: &'static str,
    effect: &'static str,
}

/// All of them, in the order of the table.
pub(super) fn all() -> Vec<Setting> {
    TABLE
        .iter()
        .map(|key| Setting {
            path: key.path,
            variable: key.variable(),
            fallback: key.fallback,
            default: default_value(key),
            accepted: key.accepted,
            effect: key.effect,
        })
        .collect()
}
