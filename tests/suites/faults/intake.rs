//! Rows: an intake that breaks a connection or HTTP, at every stage of a request.

use harness::hostile::HangUp;
use harness::hostile::Kind::{Best, ByByte, Http2};
use harness::hostile::Step::{
    self, Body, ByByte as SendByByte, Clear, Close, Head, Hello, Notify, Pause, Repeat, Request, Reset, Send,
    Shake, Stall, Stream,
};
use harness::hostile::Times::{Every, First};

use crate::table::Hold::{Answered, Connections, Cut, Relayed, Retries, Untouched, Within};
use crate::table::{Ask, Inject, ROW, Row, SHORT};

pub const PROTOCOL: crate::table::Hold = Answered(502, "upstream_protocol");
pub const TLS: crate::table::Hold = Answered(502, "upstream_tls");
const LATE: crate::table::Hold = Answered(504, "upstream_timeout");

pub const OK: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";
/// The same as the last on its connection.
pub const LAST: &[u8] =
    b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}";
/// The same without its second half.
const HALF: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 15\r\n\r\n{\"statu";
const HALF_HEAD: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Le";
const CHUNKED: &[u8] = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n";
/// The first 20 bytes of a ServerHello that is longer.
const PART_OF_HELLO: &[u8] = &[22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9];
/// HTTP/2 (RFC 9113): SETTINGS, `:status: 200` on stream 1, RST_STREAM with INTERNAL_ERROR and REFUSED_STREAM, GOAWAY.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEADERS_200: &[u8] = &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
const RST_INTERNAL: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
const RST_REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
/// The last stream that it answers for is none, and stream 1.
const GO_AWAY_0: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const GO_AWAY_1: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];

/// Every new connection plays a script.
pub const fn every(script: &'static [Step]) -> Inject {
    Inject::Play(script, Every)
}

/// The next one does.
const fn first(script: &'static [Step]) -> Inject {
    Inject::Play(script, First)
}

pub const ROWS: &[Row] = &[
    // Resets.
    Row {
        name: "intake_resets_at_accept",
        fault: "the intake accepts, and resets before it has said anything",
        // A reset that comes sooner is one of the connection attempt, as in `network_rejects_by_reset`.
        inject: every(&[Pause(100), Reset]),
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "intake_resets_after_hello",
        fault: "the intake resets after the ClientHello",
        inject: every(&[Hello, Reset]),
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "intake_resets_before_head",
        fault: "the intake resets when it has the request",
        inject: every(&[Shake(Best), Request, Reset]),
        holds: &[PROTOCOL, Connections(2), Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_resets_in_head",
        fault: "the intake resets in the middle of the head of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF_HEAD), Pause(100), Reset]),
        holds: &[PROTOCOL, Connections(2), Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_resets_in_body",
        fault: "the intake resets in the middle of the body of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF), Pause(100), Reset]),
        holds: &[Cut("upstream_protocol"), Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_resets_in_request",
        fault: "the intake resets in the middle of a request's body",
        inject: every(&[Shake(Best), Head, Body(1000), Reset]),
        asks: &[Ask::Post(2_000_000)],
        holds: &[PROTOCOL, Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_resets_an_idle_connection",
        fault: "the intake resets a connection that waits for its next request",
        inject: Inject::HangUp(HangUp::Reset),
        warm: true,
        holds: &[Relayed(202)],
        ..ROW
    },
    // Ends.
    Row {
        name: "intake_closes_at_accept",
        fault: "the intake closes each connection that it accepts",
        inject: every(&[Close]),
        holds: &[TLS, Untouched],
        ..ROW
    },
    Row {
        name: "intake_closes_before_head",
        fault: "the intake ends session and connection when it has the request",
        inject: every(&[Shake(Best), Request, Notify, Close]),
        holds: &[PROTOCOL, Connections(2), Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_closes_in_head",
        fault: "the intake ends in the middle of the head of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF_HEAD), Notify]),
        holds: &[PROTOCOL, Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_closes_in_body",
        fault: "the intake ends in the middle of the body of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF), Notify]),
        holds: &[Cut("upstream_protocol"), Retries(0)],
        ..ROW
    },
    Row {
        name: "intake_truncates_by_tcp",
        fault: "the end of TCP, not of the session, ends an answer that has no length",
        inject: every(&[Shake(Best), Request, Send(b"HTTP/1.1 202 Accepted\r\n\r\nhalf of it"), Close]),
        holds: &[Cut("upstream_protocol")],
        ..ROW
    },
    Row {
        name: "intake_closes_an_idle_connection",
        fault: "the intake closes a connection that waits for its next request",
        inject: Inject::HangUp(HangUp::Gently),
        warm: true,
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "intake_says_connection_close",
        fault: "maintenance: each answer says Connection: close, and the intake closes",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
            Notify,
        ]),
        asks: &[Ask::Get, Ask::Post(20_000), Ask::Post(100), Ask::Get],
        holds: &[Relayed(202), Retries(0)],
        ..ROW
    },
    // One byte at a time.
    Row {
        name: "intake_writes_single_bytes",
        fault: "the intake writes its answer in records of one byte",
        inject: every(&[Shake(Best), Request, SendByByte(LAST), Close]),
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "intake_shakes_hands_in_single_bytes",
        fault: "the intake's part of the handshake comes in segments of one byte",
        inject: every(&[Shake(ByByte), Request, Send(LAST), Close]),
        holds: &[Relayed(202)],
        ..ROW
    },
    // Stalls.
    Row {
        name: "intake_stalls_at_accept",
        fault: "the intake accepts, and says nothing",
        inject: every(&[Stall]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Untouched, Within(15)],
        ..ROW
    },
    Row {
        name: "intake_stalls_in_handshake",
        fault: "the intake stops in the middle of its ServerHello",
        inject: every(&[Hello, Clear(PART_OF_HELLO), Stall]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Untouched, Within(15)],
        ..ROW
    },
    Row {
        name: "intake_stalls_before_head",
        fault: "the intake has the request, and says nothing",
        inject: every(&[Shake(Best), Request, Stall]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Connections(2), Retries(0), Within(15)],
        ..ROW
    },
    Row {
        name: "intake_stalls_in_head",
        fault: "the intake stops in the middle of the head of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF_HEAD), Stall]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[LATE, Retries(0), Within(15)],
        ..ROW
    },
    Row {
        name: "intake_stalls_in_body",
        fault: "the intake stops in the middle of the body of its answer",
        inject: every(&[Shake(Best), Request, Send(HALF), Stall]),
        asks: &[Ask::Post(20_000)],
        settings: SHORT,
        holds: &[Cut("upstream_timeout"), Within(15)],
        ..ROW
    },
    Row {
        name: "intake_reads_nothing",
        fault: "the intake stops reading in the middle of a request's body",
        inject: every(&[Shake(Best), Head, Body(1000), Stall]),
        asks: &[Ask::Post(16_000_000)],
        settings: SHORT,
        holds: &[LATE, Retries(0), Within(20)],
        ..ROW
    },
    // 100-continue.
    Row {
        name: "continue_never_comes",
        fault: "a client waits for 100 Continue, which the intake never says",
        inject: every(&[Shake(Best), Request, Send(LAST), Close]),
        asks: &[Ask::Expect(20_000)],
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "continue_comes_twice",
        fault: "the intake says 100 Continue twice, to a request that waits for it and to one that does not",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"),
            Send(LAST),
            Close,
        ]),
        asks: &[Ask::Expect(20_000), Ask::Post(20_000)],
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "continue_comes_for_ever",
        fault: "the intake says 100 Continue again and again",
        inject: every(&[Shake(Best), Request, Repeat(b"HTTP/1.1 100 Continue\r\n\r\n", 200), Stall]),
        asks: &[Ask::Expect(20_000), Ask::Get],
        holds: &[PROTOCOL, Within(10)],
        ..ROW
    },
    Row {
        name: "continue_is_refused",
        fault: "the intake answers 413 to the head of a request that waits for 100 Continue",
        inject: every(&[
            Shake(Best),
            Head,
            Send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"),
            Stall,
        ]),
        asks: &[Ask::Expect(20_000)],
        holds: &[Relayed(413)],
        ..ROW
    },
    Row {
        name: "switching_protocols_unasked",
        fault: "the intake answers 101 to a request that asked for no upgrade",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
            Stall,
        ]),
        holds: &[PROTOCOL],
        ..ROW
    },
    // Early answers.
    Row {
        name: "early_response",
        fault: "the intake answers 202 to the head, and reads the body afterwards",
        inject: every(&[Shake(Best), Head, Send(OK), Pause(300), Body(500_000), Close]),
        asks: &[Ask::Post(500_000)],
        holds: &[Relayed(202)],
        ..ROW
    },
    Row {
        name: "response_before_body_end",
        fault: "the intake answers 413 in the middle of the body and reads no more of it",
        inject: every(&[
            Shake(Best),
            Head,
            Body(1000),
            Send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig"),
            Stall,
        ]),
        asks: &[Ask::Post(8_000_000)],
        holds: &[Relayed(413), Within(20)],
        ..ROW
    },
    Row {
        name: "response_without_request",
        fault: "the intake sends an answer when nobody has asked, and another behind its first",
        inject: first(&[Shake(Best), Request, Send(OK), Send(OK), Stall]),
        asks: &[Ask::Get, Ask::Post(20_000), Ask::Get],
        holds: &[Relayed(202), Retries(0)],
        ..ROW
    },
    // What is no HTTP.
    Row {
        name: "oversized_head",
        fault: "the head of the answer is a megabyte long",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 202 Accepted\r\n"),
            Repeat(b"x-filler: 0123456789012345678901234567890123456789012345678901\r\n", 16_000),
            Send(b"\r\n"),
            Stall,
        ]),
        holds: &[PROTOCOL, Within(10)],
        ..ROW
    },
    Row {
        name: "oversized_header",
        fault: "one header of the answer never ends",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 202 Accepted\r\nx-filler: "),
            Repeat(&[b'x'; 1024], 1000),
            Stall,
        ]),
        holds: &[PROTOCOL, Within(10)],
        ..ROW
    },
    Row {
        name: "no_http",
        fault: "the intake speaks something else within TLS",
        inject: every(&[Shake(Best), Request, Send(b"220 mail.example.net ESMTP\r\n\r\n"), Stall]),
        holds: &[PROTOCOL],
        ..ROW
    },
    Row {
        name: "two_lengths",
        fault: "the answer has two lengths",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk"),
            Stall,
        ]),
        holds: &[PROTOCOL],
        ..ROW
    },
    Row {
        name: "length_and_chunks",
        fault: "the answer has a length and chunks",
        inject: every(&[
            Shake(Best),
            Request,
            Send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            Stall,
        ]),
        holds: &[PROTOCOL],
        ..ROW
    },
    Row {
        name: "invalid_chunk",
        fault: "a chunk's size is no number",
        inject: every(&[Shake(Best), Request, Send(CHUNKED), Pause(100), Send(b"zz\r\nab\r\n0\r\n\r\n"), Stall]),
        holds: &[Cut("upstream_protocol"), Within(10)],
        ..ROW
    },
    Row {
        name: "chunk_longer_than_it_says",
        fault: "a chunk is longer than its size",
        inject: every(&[Shake(Best), Request, Send(CHUNKED), Pause(100), Send(b"2\r\nabcd\r\n0\r\n\r\n"), Stall]),
        holds: &[Cut("upstream_protocol"), Within(10)],
        ..ROW
    },
    // HTTP/2.
    Row {
        name: "goaway_between_requests",
        fault: "maintenance, HTTP/2: GOAWAY behind an answer, and the end of the connection",
        inject: first(&[
            Shake(Http2),
            Send(SETTINGS),
            Stream,
            Send(HEADERS_200),
            Send(GO_AWAY_1),
            Pause(200),
            Notify,
        ]),
        asks: &[Ask::Get],
        holds: &[Relayed(200)],
        ..ROW
    },
    Row {
        name: "goaway_before_the_request",
        fault: "maintenance, HTTP/2: GOAWAY that says that the request was not looked at",
        inject: first(&[Shake(Http2), Send(SETTINGS), Stream, Send(GO_AWAY_0), Pause(200), Notify]),
        asks: &[Ask::Post(2_000)],
        holds: &[Relayed(202), Retries(1)],
        ..ROW
    },
    Row {
        name: "stream_refused",
        fault: "HTTP/2: the intake refuses the stream",
        inject: first(&[Shake(Http2), Send(SETTINGS), Stream, Send(RST_REFUSED), Pause(200), Notify]),
        asks: &[Ask::Post(2_000)],
        holds: &[Relayed(202), Retries(1)],
        ..ROW
    },
    Row {
        name: "stream_reset",
        fault: "HTTP/2: the intake resets the stream, and does not say that nothing was done",
        inject: first(&[Shake(Http2), Send(SETTINGS), Stream, Send(RST_INTERNAL), Pause(200), Notify]),
        asks: &[Ask::Post(2_000)],
        holds: &[PROTOCOL, Retries(0)],
        ..ROW
    },
];
