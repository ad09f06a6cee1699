//! The deb and the rpm, as `cargo xtask package` makes them of the program under test: what is in them, and what they do to a machine
//! from installation to removal.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "packages/contents.rs"]
mod contents;
#[path = "packages/deb.rs"]
mod deb;
#[path = "packages/made.rs"]
mod made;
#[path = "packages/old_proxy.rs"]
mod old_proxy;
#[path = "packages/rpm.rs"]
mod rpm;
#[path = "systemd/stage.rs"]
mod stage;

fn main() -> ExitCode {
    run(vec![
        case(
            "distributions_find_no_fault",
            &[Need::Packages],
            contents::no_fault,
        ),
        case("one_list_for_both", &[Need::Packages], contents::one_list),
        case(
            "pages_and_completions_are_sound",
            &[Need::Packages],
            contents::pages,
        ),
        case(
            "the_sbom_is_valid_and_names_the_module",
            &[Need::Packages, Need::Python],
            contents::sbom,
        ),
        case(
            "deb_from_install_to_purge",
            &[Need::Bpf, Need::Systemd, Need::Packages],
            deb::from_install_to_purge,
        ),
        case(
            "deb_leaves_the_administrators_choices",
            &[Need::Bpf, Need::Systemd, Need::Packages],
            deb::choices,
        ),
        case(
            "rpm_from_install_to_erase",
            &[Need::Bpf, Need::Systemd, Need::Packages],
            rpm::from_install_to_erase,
        ),
        case(
            "takes_over_from_the_old_proxy",
            &[Need::Bpf, Need::Systemd, Need::Packages],
            old_proxy::takes_over,
        ),
    ])
}
