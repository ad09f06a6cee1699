//! The rows of `ca`, in the order of the file.

use super::{KEY, SECURITY};
use crate::config::keys::parse::{path, path_text, yaml_text};
use crate::config::keys::{Key, Shape};
use crate::config::value::{integer, optional};

pub(super) const ROWS: &[Key] = &[
    Key {
        path: "ca.dir",
        accepted: "an absolute path",
        effect: "The folder of the local authority, by which Agents that speak HTTPS trust us: made by `ca init`, \
                 changed by `ca rotate`. Keys in it are for root alone, certificates for everybody: Agents read \
                 `<ca.dir>/trust`.",
        who: "operators of images whose /var/lib is not kept",
        set: |draft, raw| path(raw).map(|value| draft.config.ca.dir = value),
        get: |config| yaml_text(&config.ca.dir.to_string_lossy()),
        ..KEY
    },
    Key {
        path: "ca.validity_days",
        accepted: "a number from 2 to 365",
        effect: "How many days the next authority that `ca init` or `ca rotate` makes is valid for. Thirty days \
                 before the end the log, `status` and the metrics say so.",
        who: SECURITY,
        set: |draft, raw| integer(raw, 2..=365).map(|value| draft.config.ca.validity_days = value),
        get: |config| config.ca.validity_days.to_string(),
        ..KEY
    },
    Key {
        path: "ca.certificate_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file, or null; together with ca.key_file",
        effect: "An issuing authority of your own in place of ours: its certificate, then those that lead to its \
                 root. It must say what ours says: path length 0, critical name constraints that permit the \
                 site's domains only and exclude every IP address.",
        who: "operators whose Agents trust a company's root already",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.ca.certificate_file = value),
        get: |config| path_text(config.ca.certificate_file.as_deref()),
        ..KEY
    },
    Key {
        path: "ca.key_file",
        shape: Shape::Optional,
        accepted: "an absolute path of a PEM file, or null; together with ca.certificate_file",
        effect: "The key of ca.certificate_file: P-256, P-384 or RSA of 2048 bits and more, unencrypted, readable \
                 by root alone.",
        who: "operators whose Agents trust a company's root already",
        set: |draft, raw| optional(raw, path).map(|value| draft.config.ca.key_file = value),
        get: |config| path_text(config.ca.key_file.as_deref()),
        ..KEY
    },
];
