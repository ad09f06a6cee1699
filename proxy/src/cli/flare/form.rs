//! The form that a bundle is sent in: `multipart/form-data` (RFC 7578), with the fields of the Agent's own flare.

use std::io::{self, Cursor, Read};

/// The body, its length in bytes, and its `Content-Type`.
pub(super) struct Form {
    pub(super) body: Box<dyn Read>,
    pub(super) length: u64,
    pub(super) content_type: String,
}

/// Fields before the file, the file, fields after it: in the order of the Agent's. Values have neither quotes nor line ends; the file's
/// name neither.
pub(super) fn form(
    before: &[(&str, &str)],
    (name, file, length): (&str, impl Read + 'static, u64),
    after: &[(&str, &str)],
) -> io::Result<Form> {
    let boundary = boundary()?;
    let mut head = String::new();
    for (field, value) in before {
        head.push_str(&part(&boundary, field, value));
    }
    head.push_str(&format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"flare_file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    ));
    let mut tail = String::from("\r\n");
    for (field, value) in after {
        tail.push_str(&part(&boundary, field, value));
    }
    tail.push_str(&format!("--{boundary}--\r\n"));
    Ok(Form {
        length: head.len() as u64 + length + tail.len() as u64,
        body: Box::new(
            Cursor::new(head)
                .chain(file.take(length))
                .chain(Cursor::new(tail)),
        ),
        content_type: format!("multipart/form-data; boundary={boundary}"),
    })
}

fn part(boundary: &str, field: &str, value: &str) -> String {
    format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n")
}

/// Nobody can have put it into the file: it is made now, of 128 random bits.
fn boundary() -> io::Result<String> {
    let mut random = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
