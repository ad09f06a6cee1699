//! Frames of a stream that are out of place, of a wrong length or wrong in themselves.

use crate::frames::*;
use crate::table::{Case, Gets, after, case, head, run};
use crate::world::post;

const FRAMES: &[Case] = &[
    case(
        "DATA on stream 0",
        "6.1",
        |raw| after(raw, &[frame(DATA, 0, 0, b"x")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "DATA on an idle stream",
        "5.1",
        |raw| after(raw, &[frame(DATA, 0, 1, b"x")]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "DATA after END_STREAM",
        "5.1",
        |raw| after(raw, &[head(1, WHOLE), frame(DATA, 0, 1, b"x")]),
        Gets::GoAway(PROTOCOL),
    )
    .beside_a_good_one(),
    case(
        "DATA on a stream that is answered",
        "5.1",
        |raw| {
            after(raw, &[head(1, WHOLE)]);
            raw.answer(1);
            raw.data(1, 0, b"x");
        },
        Gets::Reset(STREAM_CLOSED),
    )
    .beside_a_good_one(),
    case(
        "DATA with more padding than payload",
        "6.1",
        |raw| after(raw, &[head(1, END_HEADERS), frame(DATA, PADDED, 1, &[5, b'x'])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "HEADERS on stream 0",
        "6.2",
        |raw| after(raw, &[head(0, WHOLE)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "HEADERS on an even stream",
        "5.1.1",
        |raw| after(raw, &[head(2, WHOLE)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "HEADERS on a lower stream than before",
        "5.1.1",
        |raw| after(raw, &[head(5, WHOLE), head(3, WHOLE)]),
        Gets::GoAway(PROTOCOL),
    )
    .beside_a_good_one(),
    case(
        "HEADERS after END_STREAM",
        "5.1",
        |raw| after(raw, &[head(1, WHOLE), head(1, WHOLE)]),
        Gets::GoAway(PROTOCOL),
    )
    .beside_a_good_one(),
    case(
        "HEADERS after RST_STREAM",
        "5.1",
        |raw| after(raw, &[head(1, END_HEADERS), reset(1, CANCEL), head(1, WHOLE)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "trailers without END_STREAM",
        "8.1",
        |raw| {
            after(
                raw,
                &[
                    head(1, END_HEADERS),
                    frame(HEADERS, END_HEADERS, 1, &field("a", "b")),
                ],
            );
        },
        Gets::Reset(PROTOCOL),
    ),
    case(
        "HEADERS with more padding than payload",
        "6.2",
        |raw| after(raw, &[frame(HEADERS, WHOLE | PADDED, 1, &[200, 0])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "a stream that depends on itself",
        "5.3.1 of RFC 7540",
        |raw| {
            let payload = [&[0, 0, 0, 1, 15][..], &block(&post("/evil"))].concat();
            after(raw, &[frame(HEADERS, WHOLE | 0x20, 1, &payload)]);
        },
        Gets::Reset(PROTOCOL),
    ),
    case(
        "PRIORITY on stream 0",
        "6.3",
        |raw| after(raw, &[frame(PRIORITY, 0, 0, &[0; 5])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "PRIORITY of four bytes",
        "6.3",
        |raw| after(raw, &[frame(PRIORITY, 0, 1, &[0; 4])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "PRIORITY on an idle stream",
        "6.3",
        |raw| after(raw, &[frame(PRIORITY, 0, 9, &[0; 5])]),
        Gets::Nothing,
    ),
    case(
        "RST_STREAM on stream 0",
        "6.4",
        |raw| after(raw, &[reset(0, CANCEL)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "RST_STREAM on an idle stream",
        "6.4",
        |raw| after(raw, &[reset(1, CANCEL)]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "RST_STREAM of three bytes",
        "6.4",
        |raw| after(raw, &[head(1, END_HEADERS), frame(RST_STREAM, 0, 1, &[0; 3])]),
        Gets::GoAway(PROTOCOL),
    ),
    case(
        "frames behind the end of a stream that may have been on their way",
        "5.1",
        |raw| {
            after(raw, &[head(1, WHOLE)]);
            raw.answer(1);
            raw.send([window(1, 1), reset(1, CANCEL), frame(PRIORITY, 0, 1, &[0; 5])].concat());
        },
        Gets::Nothing,
    )
    .beside_a_good_one(),
];

#[test]
fn frames_of_a_stream_out_of_place_get_what_they_deserve() {
    run(FRAMES);
}
