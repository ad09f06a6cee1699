//! The local authority: what other people's verifiers say of it, that
//! `install` and `uninstall` leave a system as it was, rotation, permissions, and how the worker comes by the key.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use harness::local_ca::LocalAuthority;
use harness::suite::{Need, case, run};
use harness::world::SITE;

#[path = "ca/install.rs"]
mod install;
#[path = "ca/process.rs"]
mod process;
#[path = "ca/rotation.rs"]
mod rotation;
#[path = "ca/stolen.rs"]
mod stolen;

fn main() -> ExitCode {
    run(vec![
        case(
            "stolen_key_openssl",
            &[Need::OpenSsl],
            stolen::openssl_refuses_what_is_not_an_intake,
        ),
        case(
            "stolen_key_go",
            &[Need::Go],
            stolen::go_refuses_what_is_not_an_intake,
        ),
        case(
            "openssl_finds_it_by_its_hash",
            &[Need::OpenSsl],
            stolen::openssl_finds_it_by_its_hash,
        ),
        case(
            "install_and_uninstall_leave_nothing",
            &[],
            install::install_and_uninstall_leave_the_system_as_it_was,
        ),
        case("install_is_careful", &[], install::foreign_files_are_left_alone),
        case(
            "install_host_store",
            &[Need::Root, Need::OpenSsl],
            install::the_distributions_own_store,
        ),
        case(
            "install_reaches_every_unit",
            &[Need::Systemd],
            install::every_unit_of_the_agent_is_reached,
        ),
        case("permissions", &[Need::Root], rotation::permissions_are_looked_at),
        case(
            "rotation",
            &[Need::Root],
            rotation::a_rotation_waits_for_those_that_run,
        ),
        case("exit_codes", &[], rotation::exit_codes),
        case(
            "worker_gets_the_key_by_descriptor",
            &[Need::Root],
            process::the_worker_gets_the_key_by_descriptor,
        ),
        case(
            "proxy_does_not_trust_it_towards_the_intake",
            &[],
            process::the_proxy_itself_does_not_trust_it,
        ),
        case(
            "a_missing_authority_is_made",
            &[],
            process::a_missing_authority_is_made_by_a_process_of_its_own,
        ),
        case("worker_warns", &[Need::Root], process::the_end_is_announced),
        case(
            "worker_refuses_an_unfit_authority",
            &[Need::Root],
            process::an_unfit_authority_is_not_used,
        ),
    ])
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
