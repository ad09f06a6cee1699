//! Rows: an intake that breaks TLS, and its certificates.

use harness::hostile::Kind::{Best, Tls12};
use harness::hostile::Step::{Clear, Close, Hello, Request, Sealed, Send, Shake, Stall};

use crate::intake::{LAST, OK, PROTOCOL, TLS, every};
use crate::table::Hold::{Logs, Relayed, Retries, Untouched};
use crate::table::{Certificate, Inject, ROW, Row};

/// RFC 8446 section 6: a fatal alert handshake_failure (40) and internal_error (80).
const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
const INTERNAL_ERROR: &[u8] = &[2, 80];
const ALERT_RECORD: u8 = 21;
/// RFC 5246 section 7.4.1.1: HelloRequest, which asks for a renegotiation.
const HELLO_REQUEST: &[u8] = &[0, 0, 0, 0];
const HANDSHAKE_RECORD: u8 = 22;
/// A record whose tag is wrong.
const FORGED: &[u8] = &[
    23, 3, 3, 0, 32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
    25, 26, 27, 28, 29, 30, 31, 32,
];

pub const ROWS: &[Row] = &[
    Row {
        name: "tls_alert_at_hello",
        fault: "the intake answers the ClientHello with an alert, handshake_failure",
        inject: every(&[Hello, Clear(ALERT), Close]),
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "tls_alert_in_session",
        fault: "the intake ends the session with an alert, internal_error, when it has the request",
        inject: every(&[Shake(Best), Request, Sealed(ALERT_RECORD, INTERNAL_ERROR), Close]),
        holds: &[TLS, Retries(0)],
        ..ROW
    },
    Row {
        name: "tls_is_not_spoken",
        fault: "the intake answers the ClientHello with HTTP in the clear",
        inject: every(&[Hello, Clear(OK), Close]),
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "tls_record_forged",
        fault: "a record with a wrong tag stands in place of the answer",
        inject: every(&[Shake(Best), Request, Clear(FORGED), Stall]),
        holds: &[PROTOCOL, Retries(0)],
        ..ROW
    },
    Row {
        name: "renegotiation_attempt",
        fault: "TLS 1.2: the intake asks for a renegotiation before its answer",
        inject: every(&[
            Shake(Tls12),
            Request,
            Sealed(HANDSHAKE_RECORD, HELLO_REQUEST),
            Send(LAST),
            Stall,
        ]),
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "renegotiation_flood",
        fault: "TLS 1.2: it asks again and again",
        inject: every(&[
            Shake(Tls12),
            Request,
            Sealed(HANDSHAKE_RECORD, HELLO_REQUEST),
            Sealed(HANDSHAKE_RECORD, HELLO_REQUEST),
            Sealed(HANDSHAKE_RECORD, HELLO_REQUEST),
            Sealed(HANDSHAKE_RECORD, HELLO_REQUEST),
            Send(OK),
            Stall,
        ]),
        holds: &[PROTOCOL],
        ..ROW
    },
    // Certificates.
    Row {
        name: "certificate_expired",
        fault: "the intake starts again with a certificate that has expired",
        inject: Inject::Certificate(Certificate::Expired),
        warm: true,
        holds: &[TLS, Untouched, Logs("certificate_expired")],
        ..ROW
    },
    Row {
        name: "certificate_expires_during_run",
        fault: "the intake's certificate ends while it runs",
        inject: Inject::Certificate(Certificate::Ends),
        warm: true,
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "certificate_of_another_authority",
        fault: "the intake starts again with a certificate that somebody else signed",
        inject: Inject::Certificate(Certificate::OtherAuthority),
        warm: true,
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "certificate_for_another_name",
        fault: "the intake starts again with a certificate for another name",
        inject: Inject::Certificate(Certificate::OtherName),
        warm: true,
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "certificate_swap",
        fault: "the intake starts again with a new certificate that is good",
        inject: Inject::Certificate(Certificate::Good),
        warm: true,
        holds: &[Relayed(202)],
        ..ROW
    },
];
