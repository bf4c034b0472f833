//! Bytes as a sequence of choices.

/// The rest of an input. Once it is used up, every choice is the first one.
#[derive(Debug, Clone)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

/// Sizes at which arithmetic or allocation goes wrong.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    127,
    255,
    65_535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 33,
    1 << 62,
    (1 << 63) - 1,
    u64::MAX,
];

/// Pieces of text: the empty one, what other languages write, and what breaks a column count.
const TEXTS: [&str; 24] = [
    "a", "", "b", "ab", "ba", " ", "x y", "A", "<s>", "</s>", "▁", "Ġ", "é", "e\u{301}", "ß", "İ",
    "日本", "😀", "\u{0}", "\n", "\u{feff}", "##", "0", "<0x41>",
];

impl<'a> Choices<'a> {
    /// The choices of an input.
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// Whether no bytes are left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The next byte, 0 at the end.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return 0;
        };
        self.rest = rest;
        *first
    }

    /// Up to `count` bytes.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// A number below `bound`, which is at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    /// One of 256 times, if it asks for that.
    pub fn rarely(&mut self) -> bool {
        self.byte() == 255
    }

    /// True for half of all bytes.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// One of these.
    pub fn one<'b, T: ?Sized>(&mut self, of: &[&'b T]) -> &'b T {
        of[self.below(of.len())]
    }

    /// One of these numbers.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Two bytes as a number.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A number, mostly small; at times one at an edge.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=191 => u64::from(small % 64),
            192..=239 => self.pick(&EDGES),
            240..=247 => self.pick(&EDGES).wrapping_add(u64::from(self.byte())),
            _ => u64::from(self.short()),
        }
    }

    /// A float, at times one at an edge.
    pub fn float(&mut self) -> f64 {
        const ODD: [f64; 12] = [
            0.0,
            -0.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1e-310,
            1e300,
            65504.0,
            65520.0,
            3e38,
            1e-46,
            0.5,
        ];
        match self.byte() {
            byte @ 0..=199 => (f64::from(byte) - 100.0) / 16.0,
            200..=231 => self.pick(&ODD),
            _ => f64::from(f32::from_bits(
                u32::from(self.short()) << 16 | u32::from(self.short()),
            )),
        }
    }

    /// A short text.
    pub fn text(&mut self) -> String {
        match self.byte() {
            byte @ 0..=199 => TEXTS[usize::from(byte) % TEXTS.len()].to_owned(),
            200..=239 => {
                let count = self.below(6);
                (0..count).map(|_| TEXTS[self.below(TEXTS.len())]).collect()
            }
            _ => {
                let count = self.below(24);
                String::from_utf8_lossy(self.bytes(count)).into_owned()
            }
        }
    }
}
