//! As much DER as evidence needs: the dates of certificates and revocation lists, which the verifying library keeps to
//! itself. Nothing is decided from what is read here.

/// Contents of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT`
const CONTEXT_0: u8 = 0xa0;

/// Reads one value after the other.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next value: tag and contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // Up to four bytes of length: a list of 4 GiB is none of ours.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes
                    .iter()
                    .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, value))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|(found, _)| *found == tag)
            .map(|(_, value)| value)
    }

    fn skip_if(&mut self, tag: u8) {
        let mut ahead = *self;
        if ahead.expect(tag).is_some() {
            *self = ahead;
        }
    }

    fn time(&mut self) -> Option<u64> {
        let (tag, value) = self.next()?;
        time(tag, value)
    }
}

/// `thisUpdate` and `nextUpdate` of a CertificateList (RFC 5280, section 5.1), in seconds of Unix time.
pub(super) fn crl_dates(der: &[u8]) -> Option<(u64, u64)> {
    let mut list = Reader(Reader(der).expect(SEQUENCE)?);
    let mut body = Reader(list.expect(SEQUENCE)?);
    body.skip_if(INTEGER);
    let _algorithm = body.expect(SEQUENCE)?;
    let _issuer = body.expect(SEQUENCE)?;
    Some((body.time()?, body.time()?))
}

/// `notAfter` of a Certificate (RFC 5280, section 4.1), in seconds of Unix time.
pub(super) fn not_after(der: &[u8]) -> Option<u64> {
    let mut certificate = Reader(Reader(der).expect(SEQUENCE)?);
    let mut body = Reader(certificate.expect(SEQUENCE)?);
    body.skip_if(CONTEXT_0);
    let _serial = body.expect(INTEGER)?;
    let _algorithm = body.expect(SEQUENCE)?;
    let _issuer = body.expect(SEQUENCE)?;
    let mut validity = Reader(body.expect(SEQUENCE)?);
    let _not_before = validity.time()?;
    validity.time()
}

/// The value with tag and length of a SEQUENCE around it.
pub(super) fn sequence(contents: &[u8]) -> Vec<u8> {
    let mut der = vec![SEQUENCE];
    let length = contents.len().to_be_bytes();
    match u8::try_from(contents.len()) {
        Ok(short @ 0..=0x7f) => der.push(short),
        _ => {
            let digits: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            // The bytes of a length are at most eight.
            der.push(0x80 | u8::try_from(digits.len()).unwrap_or(8));
            der.extend(digits);
        }
    }
    der.extend_from_slice(contents);
    der
}

/// `YYMMDDHHMMSSZ`, or the same with four digits of the year: the forms that RFC 5280 allows.
fn time(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => {
            let year = number(&digits[..2])?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (GENERALIZED_TIME, 14) => (number(&digits[..4])?, &digits[4..]),
        _ => return None,
    };
    let mut parts = rest.chunks_exact(2).map(number);
    let mut part = || parts.next().flatten();
    let (month, day, hour, minute, second) = (part()?, part()?, part()?, part()?, part()?);
    let sound =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !sound || year < 1970 {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?
        .parse()
        .ok()
}

/// Days from 1970-01-01, in the proleptic Gregorian calendar, for years from 1970 on. Years are counted from March, so
/// that a leap day is the last of its year.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leaps = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    (year * 365 + leaps + (153 * month + 2) / 5 + day - 1).saturating_sub(719_468)
}

/// `2026-11-22T09:30:00Z`
pub(super) fn timestamp(unix: u64) -> String {
    let (mut day, second) = (unix / 86_400, unix % 86_400);
    let mut year = 1970;
    loop {
        let length = days(year + 1, 1, 1) - days(year, 1, 1);
        if day < length {
            break;
        }
        day -= length;
        year += 1;
    }
    let month = (1..=12)
        .rev()
        .find(|month| days(year, *month, 1) - days(year, 1, 1) <= day)
        .unwrap_or(1);
    let day = day - (days(year, month, 1) - days(year, 1, 1)) + 1;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_written() {
        for (tag, text, unix, written) in [
            (UTC_TIME, "700101000000Z", 0, "1970-01-01T00:00:00Z"),
            (UTC_TIME, "240229235959Z", 1_709_251_199, "2024-02-29T23:59:59Z"),
            (UTC_TIME, "491231235959Z", 2_524_607_999, "2049-12-31T23:59:59Z"),
            (
                GENERALIZED_TIME,
                "20500101000000Z",
                2_524_608_000,
                "2050-01-01T00:00:00Z",
            ),
            (
                GENERALIZED_TIME,
                "21000301000000Z",
                4_107_542_400,
                "2100-03-01T00:00:00Z",
            ),
            (
                GENERALIZED_TIME,
                "99991231235959Z",
                253_402_300_799,
                "9999-12-31T23:59:59Z",
            ),
        ] {
            assert_eq!(time(tag, text.as_bytes()), Some(unix), "{text}");
            assert_eq!(timestamp(unix), written);
        }
        for text in [
            "",
            "Z",
            "240229235959",
            "241329235959Z",
            "2402292359Z",
            "24022923595xZ",
            "+40229235959Z",
        ] {
            assert_eq!(time(UTC_TIME, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn lengths_of_every_form_are_read_and_written() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let contents = vec![7; length];
            let der = sequence(&contents);
            let mut reader = Reader(&der);
            assert_eq!(reader.expect(SEQUENCE), Some(&contents[..]), "{length}");
            assert!(reader.0.is_empty());
        }
    }

    #[test]
    fn a_certificate_ends_when_it_says() {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 5, 6);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let end = not_after(certificate.der()).unwrap();
        assert_eq!(timestamp(end), "2031-05-06T00:00:00Z");
    }

    proptest::proptest! {
        #[test]
        fn property_nothing_makes_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let _ = crl_dates(&bytes);
            let _ = not_after(&bytes);
            let _ = crl_dates(&sequence(&sequence(&bytes)));
        }
    }
}
