//! The list: every file of the packages, where it comes from and where it goes. Both packages are made from it.

/// Where a file comes from.
#[derive(Clone, Copy)]
pub enum Source {
    /// The program itself.
    Program,
    /// A file of the tree.
    Tree(&'static str),
    /// A file that was made for the packages.
    Made(&'static str),
    /// Every file of a folder that was made.
    MadeFolder(&'static str),
    /// Every file of a folder of the tree; none where there is no such folder.
    TreeFolder(&'static str),
}

/// What it is to the package manager.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Belongs to the package.
    Plain,
    /// Belongs to the administrator: never overwritten (dpkg: conffile, rpm: `%config(noreplace)`).
    Config,
    /// Documentation, which a minimal system may leave out.
    Doc,
    /// Licence texts, which are never left out.
    Licence,
}

/// Which package has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum In {
    Both,
    Deb,
    Rpm,
}

/// One row.
pub struct Asset {
    pub source: Source,
    /// A file, or a folder where it ends in `/`.
    pub to: &'static str,
    pub kind: Kind,
    pub within: In,
    /// Put in compressed, with `.gz` behind its name.
    pub gzip: bool,
}

const fn row(source: Source, to: &'static str) -> Asset {
    Asset {
        source,
        to,
        kind: Kind::Plain,
        within: In::Both,
        gzip: false,
    }
}

const fn config(source: Source, to: &'static str) -> Asset {
    Asset {
        kind: Kind::Config,
        ..row(source, to)
    }
}

const fn doc(source: Source, to: &'static str) -> Asset {
    Asset {
        kind: Kind::Doc,
        ..row(source, to)
    }
}

/// Everything is root's: 0755 for the program and folders, 0644 for the rest. The master, which is another user, reads its settings,
/// and no file of ours holds a secret (docs/OPERATIONS.md, "With systemd").
///
/// No logrotate: the product writes no log file, only to standard error, which is the journal's.
pub const ASSETS: &[Asset] = &[
    row(Source::Program, "usr/bin/agent-fips-proxy"),
    row(
        Source::Tree("proxy/dist/agent-fips-proxy.service"),
        "usr/lib/systemd/system/agent-fips-proxy.service",
    ),
    row(
        Source::Tree("proxy/dist/agent-fips-proxy.sysusers"),
        "usr/lib/sysusers.d/agent-fips-proxy.conf",
    ),
    row(
        Source::Tree("proxy/dist/agent-fips-proxy.tmpfiles"),
        "usr/lib/tmpfiles.d/agent-fips-proxy.conf",
    ),
    config(
        Source::Tree("proxy/dist/config.yaml"),
        "etc/agent-fips-proxy/config.yaml",
    ),
    config(
        Source::Tree("proxy/dist/agent-fips-proxy.default"),
        "etc/default/agent-fips-proxy",
    ),
    // To be linked to: a system may leave out /usr/share/doc.
    row(
        Source::Tree("proxy/dist/agent-fips-proxy-pods.conf"),
        "usr/share/agent-fips-proxy/agent-fips-proxy-pods.conf",
    ),
    row(
        Source::Made("config.example.yaml"),
        "usr/share/agent-fips-proxy/config.example.yaml",
    ),
    row(
        Source::Made("sbom.cdx.json"),
        "usr/share/agent-fips-proxy/sbom.cdx.json",
    ),
    row(
        Source::TreeFolder("proxy/dist/grafana"),
        "usr/share/agent-fips-proxy/grafana/",
    ),
    row(
        Source::TreeFolder("proxy/dist/prometheus"),
        "usr/share/agent-fips-proxy/prometheus/",
    ),
    row(
        Source::Made("completions/agent-fips-proxy.bash"),
        "usr/share/bash-completion/completions/agent-fips-proxy",
    ),
    row(
        Source::Made("completions/agent-fips-proxy.fish"),
        "usr/share/fish/vendor_completions.d/agent-fips-proxy.fish",
    ),
    Asset {
        within: In::Deb,
        ..row(
            Source::Made("completions/_agent-fips-proxy"),
            "usr/share/zsh/vendor-completions/_agent-fips-proxy",
        )
    },
    Asset {
        within: In::Rpm,
        ..row(
            Source::Made("completions/_agent-fips-proxy"),
            "usr/share/zsh/site-functions/_agent-fips-proxy",
        )
    },
    Asset {
        gzip: true,
        ..doc(Source::MadeFolder("man8"), "usr/share/man/man8/")
    },
    Asset {
        gzip: true,
        ..doc(Source::MadeFolder("man5"), "usr/share/man/man5/")
    },
    doc(
        Source::Tree("README.md"),
        "usr/share/doc/agent-fips-proxy/README.md",
    ),
    doc(Source::TreeFolder("docs"), "usr/share/doc/agent-fips-proxy/docs/"),
    doc(
        Source::TreeFolder("docs/reference"),
        "usr/share/doc/agent-fips-proxy/docs/reference/",
    ),
    Asset {
        within: In::Deb,
        gzip: true,
        ..doc(
            Source::Tree("CHANGELOG.md"),
            "usr/share/doc/agent-fips-proxy/changelog",
        )
    },
    Asset {
        within: In::Deb,
        gzip: true,
        ..doc(
            Source::Made("changelog.Debian"),
            "usr/share/doc/agent-fips-proxy/changelog.Debian",
        )
    },
    Asset {
        within: In::Rpm,
        ..doc(
            Source::Tree("CHANGELOG.md"),
            "usr/share/doc/agent-fips-proxy/CHANGELOG.md",
        )
    },
    Asset {
        within: In::Deb,
        kind: Kind::Licence,
        ..row(
            Source::Made("copyright"),
            "usr/share/doc/agent-fips-proxy/copyright",
        )
    },
    Asset {
        within: In::Deb,
        kind: Kind::Licence,
        gzip: true,
        ..row(
            Source::Made("third-party.txt"),
            "usr/share/doc/agent-fips-proxy/third-party.txt",
        )
    },
    Asset {
        within: In::Rpm,
        kind: Kind::Licence,
        ..row(
            Source::Tree("LICENSE"),
            "usr/share/licenses/agent-fips-proxy/LICENSE",
        )
    },
    Asset {
        within: In::Rpm,
        kind: Kind::Licence,
        ..row(
            Source::Made("third-party.txt"),
            "usr/share/licenses/agent-fips-proxy/third-party.txt",
        )
    },
    Asset {
        within: In::Deb,
        ..row(
            Source::Tree("proxy/dist/deb/lintian-overrides"),
            "usr/share/lintian/overrides/agent-fips-proxy",
        )
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    #[test]
    fn the_tree_has_what_the_list_names() {
        for asset in ASSETS {
            if let Source::Tree(path) = asset.source {
                assert!(sh::root().join(path).is_file(), "{path}");
            }
            assert!(!asset.to.starts_with('/'), "{}", asset.to);
            let folder = matches!(asset.source, Source::TreeFolder(_) | Source::MadeFolder(_));
            assert_eq!(asset.to.ends_with('/'), folder, "{}", asset.to);
        }
    }
}
