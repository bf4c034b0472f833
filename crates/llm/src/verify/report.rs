//! What a verification finds.

use llm_int8_nn::checkpoint::verify::{Fault, Rows};

/// Something wrong with a tensor: no sound 8-bit model has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The tensor's name in the file. Names come from files and may hold control characters.
    pub tensor: String,
    /// What is wrong.
    pub fault: Fault,
    /// How many elements or rows; 1 if it concerns the tensor as a whole.
    pub count: u64,
    /// The first few rows, which are output features for a weight.
    pub rows: Vec<usize>,
    /// In words.
    pub detail: String,
}

/// Something unusual that a sound model may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The tensor; `None` for a note about the model.
    pub tensor: Option<String>,
    /// What it is. May hold names from files.
    pub detail: String,
}

/// The result of [`verify`](super::verify).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// The float source that it was compared with.
    pub against: Option<String>,
    /// Number of tensors read.
    pub tensors: usize,
    /// Layers stored as int8.
    pub int8_layers: usize,
    /// Layers stored as floats that become int8 when the model is loaded in 8 bit.
    pub float_layers: usize,
    /// Size of the tensors read, in bytes.
    pub bytes: u64,
    /// What is wrong, in the order of the model's tree.
    pub findings: Vec<Finding>,
    /// What is unusual.
    pub notes: Vec<Note>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// The number of findings of each kind, in the order of [`Fault`].
    pub fn counts(&self) -> Vec<(Fault, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for finding in &self.findings {
            *counts.entry(finding.fault).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    /// Adds what was found in rows of a tensor, as a finding or a note.
    pub(super) fn add_rows(&mut self, tensor: &str, fault: Fault, rows: Rows) {
        let detail = meaning(fault);
        if fault.is_harmless() {
            self.note(Some(tensor), format!("{}: {detail}", list(&rows)));
            return;
        }

        self.add_counted(tensor, fault, rows, detail.to_owned());
    }

    /// Adds a finding about rows of a tensor.
    pub(super) fn add_counted(&mut self, tensor: &str, fault: Fault, rows: Rows, detail: String) {
        self.findings.push(Finding {
            tensor: tensor.to_owned(),
            fault,
            count: rows.count,
            rows: rows.first,
            detail,
        });
    }

    /// Adds a finding about a tensor as a whole.
    pub(super) fn add(&mut self, tensor: &str, fault: Fault, detail: String) {
        self.findings.push(Finding {
            tensor: tensor.to_owned(),
            fault,
            count: 1,
            rows: Vec::new(),
            detail,
        });
    }

    pub(super) fn note(&mut self, tensor: Option<&str>, detail: String) {
        self.notes.push(Note {
            tensor: tensor.map(str::to_owned),
            detail,
        });
    }
}

/// What a fault of elements or rows is.
fn meaning(fault: Fault) -> &'static str {
    match fault {
        Fault::Nan => "NaN",
        Fault::Infinite => "infinity",
        Fault::BeyondF16 => {
            "beyond the range of float16 (65504), through which bitsandbytes quantises"
        }
        Fault::AbsmaxNegative => "negative absmax",
        Fault::AbsmaxZero => "absmax 0 beside codes that are not 0",
        Fault::AbsmaxDenormal => "denormal absmax",
        Fault::AbsmaxNotF16 => {
            "absmax that is no float16 value, as the largest of float16 weights is"
        }
        Fault::Minus128 => "code -128, which bitsandbytes never writes",
        Fault::DeadRow => "all codes 0 beside an absmax that is not 0",
        Fault::UnscaledRow => "no code of magnitude 127: not scaled by the row's own absmax",
        Fault::SaturatedRow => "more than one code in 16 has magnitude 127, as if clipped",
        Fault::ValuesDiffer => "not the value of the source",
        Fault::ZeroRow => "all zero, so the output is constant",
        Fault::SmallAbsmax => {
            "absmax below 6.1e-5, where float16 loses precision before quantising"
        }
        Fault::UnusualAbsmax => "absmax more than 16 times above or below the layer's median",
        // The others are described where they are found.
        _ => "",
    }
}

/// `row 3`, or `rows 3, 17, 20 and more`; `count` is that of rows or of elements in them.
pub(super) fn list(rows: &Rows) -> String {
    let first: Vec<String> = rows.first.iter().map(usize::to_string).collect();
    match (first.as_slice(), rows.count) {
        ([one], 1) => format!("row {one}"),
        (all, count) if all.len() as u64 == count => format!("rows {}", all.join(", ")),
        (some, _) => format!("rows {} and more", some.join(", ")),
    }
}

/// `a`, `b` and 3 more.
pub(super) fn list_names(names: &[String]) -> String {
    const LISTED: usize = 5;
    let first: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(LISTED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u64, first: &[usize]) -> Rows {
        Rows {
            count,
            first: first.to_vec(),
        }
    }

    #[test]
    fn lists_say_when_they_are_not_whole() {
        assert_eq!(list(&rows(1, &[3])), "row 3");
        assert_eq!(list(&rows(2, &[3, 5])), "rows 3, 5");
        assert_eq!(list(&rows(9, &[3])), "rows 3 and more");
        let names = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
        assert_eq!(list_names(&names[..2]), "`a`, `b`");
        assert_eq!(list_names(&names), "`a`, `b`, `c`, `d`, `e` and 1 more");
    }

    #[test]
    fn harmless_rows_are_notes_and_others_findings() {
        let mut report = Report {
            model: "m".into(),
            against: None,
            tensors: 0,
            int8_layers: 0,
            float_layers: 0,
            bytes: 0,
            findings: Vec::new(),
            notes: Vec::new(),
        };
        report.add_rows("t", Fault::ZeroRow, rows(1, &[4]));
        assert!(report.is_sound());
        assert_eq!(
            report.notes[0].detail,
            "row 4: all zero, so the output is constant"
        );

        report.add_rows("t", Fault::Nan, rows(7, &[1, 2]));
        report.add("u", Fault::Missing, "gone".into());
        report.add_rows("v", Fault::Nan, rows(1, &[0]));
        assert_eq!(report.counts(), [(Fault::Missing, 1), (Fault::Nan, 2)]);
        assert!(!report.is_sound());
        assert_eq!(
            (report.findings[0].count, report.findings[0].rows.as_slice()),
            (7, &[1, 2][..])
        );
    }
}
