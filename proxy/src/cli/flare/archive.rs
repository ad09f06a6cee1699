//! The zip: written as a stream, one file after the other.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use flate2::Compression;
use flate2::write::DeflateEncoder;
use rawzip::{CompressionMethod, ZipArchiveWriter};

use super::collect::Collected;

/// Writes the bundle; returns its size in bytes. It is on the disk when this returns.
///
/// # Errors
/// What the disk says.
pub(super) fn write(file: &File, collected: &[Collected]) -> io::Result<u64> {
    let mut archive = ZipArchiveWriter::new(BufWriter::new(file));
    for Collected { name, bytes, .. } in collected {
        let (mut entry, data) = archive
            .new_file(name)
            .compression_method(CompressionMethod::DEFLATE)
            .unix_permissions(0o600)
            .start()
            .map_err(|error| io(&error))?;
        let mut writer = data.wrap(DeflateEncoder::new(&mut entry, Compression::default()));
        writer.write_all(bytes)?;
        let (encoder, descriptor) = writer.finish().map_err(|error| io(&error))?;
        encoder.finish()?;
        entry.finish(descriptor).map_err(|error| io(&error))?;
    }
    let mut out = archive.finish().map_err(|error| io(&error))?;
    out.flush()?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// The disk's own word where it is one.
fn io(error: &rawzip::Error) -> io::Error {
    let words = error.to_string();
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = source {
        if let Some(code) = one.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return io::Error::from_raw_os_error(code);
        }
        source = one.source();
    }
    io::Error::other(words)
}
