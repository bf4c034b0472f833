//! Stop strings: found across pieces, and never shown in part.

/// Texts that end generating, and the text held back because it may become one.
pub(super) struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    pub(super) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(), held: String::new() }
    }

    /// The text that can be shown after `piece`, and whether a stop string was met.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(place) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(place);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let shown = self.held.len() - keep;
        let rest = self.held.split_off(shown);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn begun(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(place, _)| &stop[..place]).rev();
    beginnings.filter(|beginning| text.ends_with(beginning)).map(str::len).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_is_found_across_pieces_and_not_shown() {
        let mut stops = StopStrings::new(&["END".into(), "\n\n".into()]);
        assert_eq!(stops.push("one E"), ("one ".into(), false));
        assert_eq!(stops.push("x\n"), ("Ex".into(), false));
        assert_eq!(stops.push("EN"), ("\n".into(), false));
        assert_eq!(stops.push("D two"), (String::new(), true));
    }

    #[test]
    fn what_was_held_back_comes_at_the_end() {
        let mut stops = StopStrings::new(&["END".into()]);
        assert_eq!(stops.push("EN"), (String::new(), false));
        assert_eq!(stops.finish(), "EN");
    }

    proptest::proptest! {
        #[test]
        fn pieces_join_to_the_text_before_the_first_stop(pieces in proptest::collection::vec("[ab🙂]{0,3}", 0..20)) {
            let mut stops = StopStrings::new(&["ab🙂".into(), "bb".into()]);
            let whole: String = pieces.concat();
            let mut shown = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let (text, now) = stops.push(piece);
                shown.push_str(&text);
                if now {
                    stopped = true;
                    break;
                }
            }
            if !stopped {
                shown.push_str(&stops.finish());
                proptest::prop_assert_eq!(&shown, &whole);
            }
            let first = ["ab🙂", "bb"].iter().filter_map(|stop| whole.find(stop)).min();
            proptest::prop_assert_eq!(stopped, first.is_some());
            proptest::prop_assert_eq!(shown.len(), first.unwrap_or(whole.len()));
        }
    }
}
