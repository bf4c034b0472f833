//! The error type of this crate.

/// Why a kernel refuses its arguments.
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
    /// Arguments whose dimensions do not match.
    #[error("{what}: expected {expected}, found {found}")]
    WrongDimension {
        /// Which dimension of which argument.
        what: &'static str,
        /// What the other arguments require.
        expected: usize,
        /// What it is.
        found: usize,
    },
    /// A matmul over more columns than an i32 accumulator can sum without overflow.
    #[error(
        "a matmul over {columns} columns could overflow its 32-bit accumulator; at most {limit} are allowed"
    )]
    TooManyColumns {
        /// Columns of the weight, K.
        columns: usize,
        /// The most that cannot overflow.
        limit: usize,
    },
    /// A weight that is NaN, infinite or too large for float16.
    #[error(
        "the weight of output {row}, input {column} is {value}, which is not a finite float16 \
         (bitsandbytes quantises through float16, whose largest value is 65504)"
    )]
    NonFiniteWeight {
        /// Output feature.
        row: usize,
        /// Input feature.
        column: usize,
        /// The weight's value before rounding to float16.
        value: f32,
    },
    /// A code that row-wise quantisation never writes.
    #[error(
        "code {index} is -128, which is outside -127..=127; the weight was not written by LLM.int8()"
    )]
    CodeOutOfRange {
        /// Index in the slice.
        index: usize,
    },
    /// An outlier column whose full-precision weights were not given.
    #[error("outlier column {column} is not among the {given} full-precision columns given")]
    MissingOutlierColumn {
        /// The input feature.
        column: u32,
        /// The number of columns given.
        given: usize,
    },
    /// An unknown instruction set, or one that this CPU lacks.
    #[error("instruction set `{name}` is not available here; available: {available}")]
    UnknownIsa {
        /// The requested name.
        name: String,
        /// The available names, separated by commas.
        available: String,
    },
}
