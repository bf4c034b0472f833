//! The one error of this crate.

/// Arguments that a kernel cannot compute with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice whose length is not rows × columns.
    #[error("{found} values were given for a matrix of {rows} rows and {cols} columns")]
    WrongLength {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Length of the slice.
        found: usize,
    },
    /// Two arguments whose dimensions do not fit together.
    #[error("{what}: {expected} expected, {found} given")]
    WrongDimension {
        /// Which dimension of which argument.
        what: &'static str,
        /// What the other arguments ask for.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// More columns than an i32 accumulator is exact for.
    #[error(
        "a product over {columns} columns could overflow its 32-bit accumulator; at most {limit} are allowed"
    )]
    TooManyColumns {
        /// Columns asked for.
        columns: usize,
        /// The largest number allowed.
        limit: usize,
    },
    /// A weight that is not a finite float16.
    #[error(
        "the weight of output {row}, input {column} is {value}, which is not a finite float16 \
         (bitsandbytes quantises through float16, whose largest value is 65504)"
    )]
    NonFiniteWeight {
        /// Output feature.
        row: usize,
        /// Input feature.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A code that row-wise quantisation never writes.
    #[error(
        "code {index} is -128, which is outside of -127..=127; the weight was not written by LLM.int8()"
    )]
    CodeOutOfRange {
        /// Place in the slice.
        index: usize,
    },
    /// An outlier column without a full-precision weight.
    #[error("outlier column {column} is not among the {given} full-precision columns given")]
    MissingOutlierColumn {
        /// The column.
        column: u32,
        /// How many columns were given.
        given: usize,
    },
    /// An instruction set that does not exist here.
    #[error("instruction set `{name}` is not available here; available: {available}")]
    UnknownIsa {
        /// The name asked for.
        name: String,
        /// The names of those that are.
        available: String,
    },
}
