//! The shipped unit, as systemd itself runs it: a master that is no root, with what the unit leaves it and nothing else.

use std::process::ExitCode;

use harness::suite::{Need, case, run};

#[path = "systemd/authority.rs"]
mod authority;
#[path = "systemd/exposure.rs"]
mod exposure;
#[path = "systemd/files.rs"]
mod files;
#[path = "systemd/life.rs"]
mod life;
#[path = "systemd/pods.rs"]
mod pods;
#[path = "systemd/stage.rs"]
mod stage;

fn main() -> ExitCode {
    run(vec![
        case("exposure", &[Need::Systemd], exposure::exposure),
        case(
            "the_unit_serves_from_start_to_uninstall",
            &[Need::Bpf, Need::Systemd],
            life::from_start_to_uninstall,
        ),
        case("who_is_who", &[Need::Bpf, Need::Systemd], life::who_is_who),
        case(
            "pins_of_a_master_that_was_root_are_taken_over",
            &[Need::Bpf, Need::Systemd],
            life::pins_of_root,
        ),
        case(
            "a_stop_in_open_mode_leaves_nothing",
            &[Need::Bpf, Need::Systemd],
            life::a_stop_in_open_mode,
        ),
        case(
            "the_hosts_bpffs_is_unmounted",
            &[Need::Bpf, Need::Systemd],
            life::bpffs_unmounted,
        ),
        case(
            "secrets_of_root_are_read_by_the_masters_group",
            &[Need::Bpf, Need::Systemd],
            files::secrets_of_root,
        ),
        case(
            "an_authority_is_made_rotated_and_used",
            &[Need::Bpf, Need::Systemd],
            authority::made_rotated_and_used,
        ),
        case(
            "agents_in_pods_need_the_drop_in",
            &[Need::Bpf, Need::Systemd],
            pods::need_the_drop_in,
        ),
    ])
}
