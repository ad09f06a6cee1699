//! What is wrong with a request that is refused for its form.

use std::fmt;

/// Why a request was refused. The set is closed; the text is safe to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum Violation {
    BareLf,
    BareCr,
    ControlByte,
    RequestLine,
    Method,
    Connect,
    Target,
    Asterisk,
    Version,
    HeadTooLarge,
    TooManyHeaders,
    ObsFold,
    HeaderName,
    SpaceBeforeColon,
    HeaderValue,
    NoHost,
    DuplicateHost,
    ContentLength,
    DuplicateContentLength,
    TransferEncoding,
    BothFramings,
    TransferEncodingOn10,
    Upgrade,
    Chunk,
    ChunkTooLong,
    HeadTimeout,
    BodyTimeout,
}

impl Violation {
    /// For the client and the record.
    pub(in crate::relay) fn reason(self) -> &'static str {
        match self {
            Self::BareLf => "a line ends with a bare LF",
            Self::BareCr => "a CR stands without its LF",
            Self::ControlByte => "a control byte in the request head",
            Self::RequestLine => "malformed request line",
            Self::Method => "invalid method",
            Self::Connect => "CONNECT is not served",
            Self::Target => "invalid request target",
            Self::Asterisk => "asterisk-form is not served",
            Self::Version => "only HTTP/1.0 and HTTP/1.1 are served",
            Self::HeadTooLarge => "the request head is longer than limits.max_header_bytes",
            Self::TooManyHeaders => "more than 100 headers",
            Self::ObsFold => "obsolete line folding",
            Self::HeaderName => "invalid header name",
            Self::SpaceBeforeColon => "white space before the colon of a header",
            Self::HeaderValue => "invalid byte in a header value",
            Self::NoHost => "no Host",
            Self::DuplicateHost => "more than one Host",
            Self::ContentLength => "invalid Content-Length",
            Self::DuplicateContentLength => "more than one Content-Length",
            Self::TransferEncoding => "Transfer-Encoding other than chunked",
            Self::BothFramings => "Transfer-Encoding together with Content-Length",
            Self::TransferEncodingOn10 => "Transfer-Encoding on HTTP/1.0",
            Self::Upgrade => "Upgrade is not served",
            Self::Chunk => "malformed chunked body",
            Self::ChunkTooLong => "chunk extensions or trailers are too long",
            Self::HeadTimeout => "the request head was not complete within limits.header_timeout",
            Self::BodyTimeout => {
                "the request body made no progress within limits.idle_timeout, or less than limits.min_body_rate"
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Violation {}
