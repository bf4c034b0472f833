//! Server-sent events (section 9.2 of the HTML standard), of which chat completions use the data.

use std::fmt;

/// Bytes of an event that are kept at most: chunks of a chat have a few hundred.
const LARGEST_EVENT: usize = 16 << 20;

/// An event is larger than [`LARGEST_EVENT`].
#[derive(Debug, PartialEq)]
pub(super) struct TooLarge;

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an event has more than {} MiB", LARGEST_EVENT >> 20)
    }
}

/// Cuts a stream of bytes, which arrives in pieces of any size, into events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// The line that has not ended yet. Bytes, as a character may be cut.
    line: Vec<u8>,
    /// The data of the event that has not ended yet; `None` if it has none.
    data: Option<Vec<u8>>,
    /// The last byte was \r: a \n belongs to it.
    after_return: bool,
    has_begun: bool,
}

impl Events {
    /// The data of the events that end in these bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLarge> {
        let mut ended = Vec::new();
        for &byte in bytes {
            let is_second_half = byte == b'\n' && self.after_return;
            self.after_return = byte == b'\r';
            match byte {
                _ if is_second_half => {}
                b'\r' | b'\n' => ended.extend(self.end_line()),
                byte => self.line.push(byte),
            }

            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > LARGEST_EVENT {
                return Err(TooLarge);
            }
        }

        Ok(ended)
    }

    /// The data of an event that the stream ended in, if its last empty line is all that is missing.
    pub(super) fn finish(&mut self) -> Option<String> {
        self.end_line().or_else(|| self.end_event())
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = match self.has_begun {
            true => &line[..],
            false => line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line),
        };
        self.has_begun = true;
        if line.is_empty() {
            return self.end_event();
        }

        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &[][..]),
        };
        // Comments have an empty name. Other fields say nothing of a chat.
        if field == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        None
    }

    fn end_event(&mut self) -> Option<String> {
        let data = self.data.take()?;
        Some(String::from_utf8_lossy(&data).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut found = Vec::new();
        for piece in pieces {
            found.extend(events.push(piece).unwrap());
        }
        found.extend(events.finish());
        found
    }

    const STREAM: &str = "\u{feff}data: {\"a\": 1}\r\n\r\n: a comment\nevent: x\nid: 7\ndata:größe\r\
        data:  🙂\r\rretry: 5\n\ndata\n\ndatax: no\n\n\ndata: two\r\ndata:\r\ndata: lines\r\n\r\ndata: [DONE]\n\n";
    const EVENTS: [&str; 5] = ["{\"a\": 1}", "größe\n 🙂", "", "two\n\nlines", "[DONE]"];

    #[test]
    fn pieces_of_any_size_give_the_same_events() {
        let bytes = STREAM.as_bytes();
        assert_eq!(read(&[bytes]), EVENTS);
        for cut in 0..=bytes.len() {
            assert_eq!(
                read(&[&bytes[..cut], &bytes[cut..]]),
                EVENTS,
                "cut at {cut}"
            );
        }
        for size in 1..20 {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            assert_eq!(read(&pieces), EVENTS, "pieces of {size}");
        }
    }

    #[test]
    fn every_line_ending_is_one() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = ["data: a", "data: b", "", ": c", "", "data: d", "", ""].join(end);
            assert_eq!(read(&[stream.as_bytes()]), ["a\nb", "d"], "{end:?}");
        }
    }

    #[test]
    fn the_last_event_needs_no_empty_line() {
        for stream in ["data: a", "data: a\n", "data: a\r", "data: a\r\n\n"] {
            assert_eq!(read(&[stream.as_bytes()]), ["a"], "{stream:?}");
        }
        assert_eq!(read(&[b"", b": only a comment"]), [] as [String; 0]);
    }

    #[test]
    fn what_is_not_utf_8_is_replaced() {
        assert_eq!(read(&[b"data: a\xffb\n\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn endless_events_are_refused() {
        let mut events = Events::default();
        let line = [&b"data: "[..], &[b'x'; 1 << 20], b"\n"].concat();
        let refused = (0..17).find_map(|_| events.push(&line).err());
        assert_eq!(
            refused.unwrap().to_string(),
            "an event has more than 16 MiB"
        );

        let refused = (0..17).find_map(|_| Events::default().push(&[b'x'; 17 << 20]).err());
        assert_eq!(refused, Some(TooLarge));
    }
}
