//! Whom it asks before it writes, and where it writes.

use std::os::unix::fs::symlink;

use anyhow::Result;
use harness::world::World;
use harness::{check, check_eq, succeed};

use crate::stage::{Flare, read};

pub fn asks() -> Result<()> {
    let world = World::new()?;
    let flare = || Flare::new(&world, &world.config());
    // Nobody to ask.
    let said = flare()?.run()?;
    check_eq!(said.code, 64, "{said:?}");
    check!(said.err.contains("--yes"), "{said:?}");
    for no in ["n\n", "\n", "no\n", "what\n", "\u{4}"] {
        let said = flare()?.type_in(no)?;
        check_eq!(said.code, 0, "{no:?}: {said:?}");
        check!(
            said.out.contains("together") && said.out.contains("Write these files into a zip? [y/N]"),
            "{no:?}: {said:?}"
        );
        check!(said.out.contains("nothing was written"), "{no:?}: {said:?}");
        check!(
            flare()?.bundles()?.is_empty(),
            "{no:?}: {:?}",
            flare()?.bundles()?
        );
    }
    // Also two in the same second.
    let mut said = String::new();
    for _ in 0..2 {
        let yes = flare()?.type_in("y\n")?;
        check_eq!(yes.code, 0, "{yes:?}");
        check!(yes.out.contains("not sent: no API key"), "{yes:?}");
        said.push_str(&yes.out);
    }
    let bundles = flare()?.bundles()?;
    check_eq!(bundles.len(), 2, "{bundles:?}");
    for bundle in bundles {
        let name = bundle
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        check!(
            name.starts_with("agent-fips-proxy-flare-") && name.ends_with(".zip") && said.contains(&name),
            "{name}: {said}"
        );
        read(&bundle)?;
    }
    Ok(())
}

/// A file, a link to one, a link to nowhere, a folder that is not there or not ours.
pub fn stays() -> Result<()> {
    let world = World::new()?;
    let flare = |name: &str| -> Result<Flare<'_>> {
        Ok(Flare::new(&world, &world.config())?.words(&["--yes", "--no-send", "--output", name]))
    };
    let stage = flare("x")?;
    std::fs::write(stage.path("there.zip"), "mine")?;
    symlink(stage.path("there.zip"), stage.path("link.zip"))?;
    symlink(stage.path("elsewhere.zip"), stage.path("nowhere.zip"))?;
    for name in ["there.zip", "link.zip", "nowhere.zip", "no/such.zip"] {
        let said = flare(name)?.run()?;
        check_eq!(said.code, 64, "{name}: {said:?}");
        check!(
            said.err.contains(name) && said.err.contains("--output"),
            "{name}: {said:?}"
        );
    }
    check_eq!(
        std::fs::read_to_string(stage.path("there.zip"))?,
        "mine",
        "what was there"
    );
    check!(!stage.path("elsewhere.zip").exists(), "a link was followed");
    let outsider = flare("/proc/x.zip")?.run()?;
    check!(outsider.code == 64 || outsider.code == 77, "{outsider:?}");
    // Where one may not write, the default is the folder for temporary files.
    let temporary = stage.path("temporary");
    std::fs::create_dir(&temporary)?;
    std::os::unix::fs::chown(&temporary, Some(65534), Some(65534))?;
    std::fs::set_permissions(
        stage.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    let said = Flare::new(&world, &world.config())?
        .words(&["--yes", "--no-send"])
        .env("TMPDIR", &temporary.display().to_string())
        .through(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
        .run()?;
    check_eq!(said.code, 0, "{said:?}");
    check_eq!(
        std::fs::read_dir(&temporary)?.count(),
        1,
        "bundles in the folder for temporary files: {said:?}"
    );
    Ok(())
}

pub fn full() -> Result<()> {
    let world = World::new()?;
    let flare = Flare::new(&world, &world.config())?;
    let disk = flare.path("disk");
    std::fs::create_dir(&disk)?;
    succeed(
        world
            .host
            .command("mount")
            .args(["-t", "tmpfs", "-o", "size=4k", "afp-full"])
            .arg(&disk),
    )?;
    let said = flare
        .words(&["--yes", "--no-send", "--output", "disk/x.zip"])
        .run()?;
    check_eq!(said.code, 69, "{said:?}");
    check!(
        said.err.contains("No space left") && said.err.contains("another disk"),
        "{said:?}"
    );
    let inside = world.host.path(&disk.display().to_string());
    check_eq!(std::fs::read_dir(inside)?.count(), 0, "files on the full disk");
    Ok(())
}
